"""What parity tests share: where their helpers lie, and checkpoints made once a session."""

import functools
import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "scripts")]


@pytest.fixture(scope="session")
def references(tmp_path_factory):
    """name of a case -> `parity.Reference`."""
    parity = pytest.importorskip("parity", reason="needs torch and transformers")
    folder = tmp_path_factory.mktemp("checkpoints")
    return functools.cache(lambda name: parity.reference(folder / name, **parity.CASES[name]))


@pytest.fixture(scope="session")
def plain(references):
    """The reference that most tests use."""
    return references("nested untied")


@pytest.fixture(scope="session")
def plain3(references):
    """The same of Qwen3-VL."""
    return references("qwen3 untied")


@pytest.fixture(scope="session", params=["nested untied", "qwen3 untied"])
def either(request, references):
    """One after the other."""
    return references(request.param)
