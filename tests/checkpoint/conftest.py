"""A checkpoint that a test may spoil."""

import pathlib
import shutil

import pytest

TINY = pathlib.Path(__file__).parents[1] / "models" / "goldens" / "qwen2_5_vl_tiny"


@pytest.fixture
def copy(tmp_path):
    """The directory of a copy."""
    directory = tmp_path / "checkpoint"
    shutil.copytree(TINY, directory, ignore=shutil.ignore_patterns("*.npz"))
    return directory
