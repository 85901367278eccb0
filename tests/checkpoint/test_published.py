"""The published sizes, without their weights: our tensors are those that transformers creates."""

import json
import math
import pathlib

import pytest

from vrrl_jax.checkpoint import hf, names
from vrrl_jax.models.policy import abstract_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FOLDER = pathlib.Path(__file__).parents[2] / "configs" / "models"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.json"))}
QUICK = {"qwen2_5_vl_3b", "qwen3_vl_8b"}  # one tied, one not
pytestmark = pytest.mark.skipif(not FILES, reason="no configs/models here")


def directory(name, tmp_path) -> pathlib.Path:
    """A checkpoint directory without weights."""
    (tmp_path / "config.json").write_bytes(FILES[name].read_bytes())
    return tmp_path


def on_disk(name: str, family: str) -> str:
    """A module's parameter as published files call it."""
    if family == "qwen3_vl":
        return name
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def on_meta(path) -> dict:
    """name of a module's parameter -> its shape, as transformers builds them."""
    config = transformers.AutoConfig.from_pretrained(path)
    assert config.text_config.dtype == torch.bfloat16
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    # Shared parameters are named once: a tied head is not among them.
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in FILES]
)
def test_names_and_shapes(name, tmp_path):
    path = directory(name, tmp_path)
    policy = hf.load_policy(path)
    leaves = dict(hf._flatten(abstract_params(policy)))
    tensors = list(names.tensors(policy.config, leaves))
    ours = {tensor.name: tensor.shape for tensor in tensors}
    theirs = on_meta(path)
    assert len(ours) == len(tensors)
    family = policy.config.family
    assert ours == {on_disk(key, family): shape for key, shape in theirs.items()}
    for key in theirs:  # raw state dicts are read too
        assert names.canonical(key, policy.config) == on_disk(key, family)
    raw = json.loads(FILES[name].read_text())
    assert ("lm_head.weight" in ours) != raw["tie_word_embeddings"]
    count = sum(math.prod(shape) for shape in ours.values())
    print(f"{name}: {len(ours)} tensors, {count / 1e9:.2f}e9 parameters")
