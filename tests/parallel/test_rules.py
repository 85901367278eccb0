"""The table of shardings against every parameter there is, and what follows from it."""

import dataclasses
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import vrrl_jax as vr
from vrrl_jax import testing
from vrrl_jax.checkpoint import hf
from vrrl_jax.config import OptimizerConfig
from vrrl_jax.models import critic
from vrrl_jax.models.config import from_hf
from vrrl_jax.models.lora import add_lora
from vrrl_jax.models.policy import Policy, abstract_params
from vrrl_jax.optimizer import make_optimizer
from vrrl_jax.parallel import rules
from vrrl_jax.parallel.mesh import make_mesh

GOLDENS = pathlib.Path(__file__).parents[1] / "models/goldens"
# The decoder's shape of the published 7B: 28 query heads, 4 of keys and values.
LARGE = {"width": 3584, "layers": 2, "heads": 28, "kv_heads": 4, "head_dim": 128}
LARGE |= {"intermediate": 18944, "vocab_size": 152064, "tied": False, "mrope_section": (16, 24, 24)}
LARGE_VISION = {"width": 1280, "heads": 16, "intermediate": 3420, "out_width": 3584, "window": 4}


def shaped(value_head=True, vision=(), **text):
    """Abstract parameters of the tiny policy with other fields, as {name: shape}."""
    policy, _ = testing.tiny_policy(value_head=value_head)
    config = dataclasses.replace(
        policy.config,
        text=dataclasses.replace(policy.config.text, **text),
        vision=dataclasses.replace(policy.config.vision, **dict(vision)),
    )
    return abstract_params(dataclasses.replace(policy, config=config))


def flat(tree):
    return {rules.path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def specs(params, mesh, head_dim=8, notes=None):
    shardings = rules.param_shardings(params, mesh, head_dim=head_dim, notes=notes)
    return {name: sharding.spec for name, sharding in flat(shardings).items()}


# --- coverage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_covered_once(tied):
    raw = json.loads((GOLDENS / "qwen3_vl_tiny/config.json").read_text())
    other = Policy(from_hf(raw | {"tie_word_embeddings": tied}))
    params = flat(shaped(tied=tied)) | flat(abstract_params(other))
    for policy in (testing.tiny_policy()[0], other):
        everywhere = {"rank": 4, "alpha": 8.0, "targets": ("decoder", "vision", "merger")}
        params |= flat(add_lora(policy, abstract_params(policy), **everywhere, seed=0))
    assert ("lm_head/kernel" in params) is not tied and "value_head/kernel" in params
    assert "visual/ln_q/scale" in params and "visual/deepstack/norm/scale" in params
    mesh, used = make_mesh(fsdp=4, tensor=2), set()
    for name, leaf in params.items():
        spec = rules.spec(name, leaf.shape, mesh, head_dim=8)
        used.add(next(i for i, (rule, _) in enumerate(rules.RULES) if re.search(rule, name)))
        if name.endswith("kernel"):
            assert "fsdp" in spec, f"{name}: every kernel is split over fsdp"
    unused = [rule for i, (rule, _) in enumerate(rules.RULES) if i not in used]
    assert unused == ([r"lm_head/kernel$"] if tied else []) + [r"ns_coeffs$"]


def test_a_parameter_without_a_rule_is_an_error():
    mesh = make_mesh(fsdp=4)
    with pytest.raises(ValueError, match=r"no sharding rule covers adapter/kernel \(8, 8\)"):
        rules.param_shardings({"adapter": {"kernel": jnp.zeros((8, 8))}}, mesh, head_dim=8)
    assert rules.param_shardings({"adapter": jnp.zeros((8, 8))}, None, head_dim=8) is None


def test_the_layer_axis_is_never_split():
    got = specs(shaped(layers=8), make_mesh(fsdp=4, tensor=2))
    stacked = {name: spec for name, spec in got.items() if "layers/" in name or "blocks/" in name}
    assert len(stacked) > 15
    assert all(not spec or spec[0] is None for spec in stacked.values())
    assert got["layers/q_proj/kernel"] == P(None, "fsdp", "tensor")
    assert got["layers/o_proj/kernel"] == P(None, "tensor", "fsdp")
    assert got["layers/mlp/down_proj/kernel"] == P(None, "tensor", "fsdp")
    assert got["embed_tokens/embedding"] == P("tensor", "fsdp")
    vision = [spec for name, spec in got.items() if name.startswith("visual")]
    assert not any("tensor" in spec for spec in vision)


def test_large_policies_divide():
    """Of the 7B on fsdp=4, tensor=2 nothing of weight is left whole."""
    notes = []
    params = shaped(vision=LARGE_VISION, **LARGE)
    mesh = make_mesh(fsdp=4, tensor=2)
    got = rules.param_shardings(params, mesh, head_dim=128, notes=notes)
    assert notes == []
    held = sum(
        np.prod(sharding.shard_shape(leaf.shape))
        for leaf, sharding in zip(jax.tree.leaves(params), jax.tree.leaves(got), strict=True)
    )
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert held / total < 0.14


# --- what doesn't divide -------------------------------------------------------------------------


def test_key_value_heads_are_whole_where_tensor_exceeds_them():
    """Two heads of width 8 are 16 columns: four parts divide those, but cut heads in two."""
    notes = []
    got = specs(shaped(), make_mesh(fsdp=2, tensor=4), notes=notes)
    assert got["layers/q_proj/kernel"] == P(None, "fsdp", "tensor")
    assert got["layers/o_proj/kernel"] == P(None, "tensor", "fsdp")
    for name in ("k_proj", "v_proj"):
        assert got[f"layers/{name}/kernel"] == P(None, "fsdp", None)
        assert got[f"layers/{name}/bias"] == P(None, None)
    assert len(notes) == 4 and all("2 heads over tensor=4" in note for note in notes)


def test_an_axis_that_does_not_divide_is_left_whole_and_noted():
    params, mesh = shaped(vocab_size=383), make_mesh(fsdp=4, tensor=2)
    assert specs(params, mesh)["embed_tokens/embedding"] == P(None, "fsdp")
    line = rules.left_whole(params, mesh, head_dim=8)
    assert line.startswith("left whole on this mesh: ")
    assert "embed_tokens/embedding (383 of [383, 32] over tensor=2)" in line
    assert "\n" not in line
    assert rules.left_whole(shaped(), mesh, head_dim=8) == ""
    assert rules.left_whole(params, None, head_dim=8) == ""


def test_query_heads_that_do_not_divide_are_an_error_at_load(tiny_checkpoint):
    for tensor in (1, 2, 4):
        assert hf.load_policy(tiny_checkpoint, mesh=make_mesh(tensor=tensor)).mesh is not None
    with pytest.raises(ValueError, match=r"mesh\.tensor=8 .* 4 query heads .* use one of 1, 2, 4$"):
        vr.load_pretrained(tiny_checkpoint, mesh=make_mesh(tensor=8))
    with pytest.raises(ValueError, match=r"tensor=3 .* 28 query heads .* 1, 2, 4, 7, 14, 28$"):
        rules.check_heads(make_mesh(tensor=3), 28)


def test_loading_puts_every_parameter_where_the_table_says(tiny_checkpoint):
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"))
    policy, params = vr.load_pretrained(tiny_checkpoint, mesh=mesh, value_head=True)
    assert policy.mesh == make_mesh(fsdp=4, tensor=2)
    want = flat(rules.param_shardings(params, policy.mesh, head_dim=8))
    alone = flat(vr.load_pretrained(tiny_checkpoint, value_head=True)[1])
    for name, leaf in flat(params).items():
        assert leaf.sharding.is_equivalent_to(want[name], leaf.ndim), name
        np.testing.assert_array_equal(leaf, alone[name])


def test_a_separate_critic_lies_as_the_policy_does(tiny_checkpoint):
    mesh = make_mesh(fsdp=4, tensor=2)
    policy, params = vr.load_pretrained(tiny_checkpoint, mesh=mesh, value_head=True)
    whole = flat(critic.add_critic(policy, params))
    for name, leaf in flat(params).items():
        own = whole[f"critic/{name}"]
        assert own.sharding.is_equivalent_to(leaf.sharding, leaf.ndim), name
        assert rules.spec(f"critic/{name}", leaf.shape, mesh, head_dim=8) == rules.spec(
            name, leaf.shape, mesh, head_dim=8
        )
    bare = critic.add_critic(policy, {k: v for k, v in params.items() if k != "value_head"})
    head = bare["critic"]["value_head"]["kernel"]
    assert head.sharding.is_equivalent_to(params["value_head"]["kernel"].sharding, 2)


def test_an_export_does_not_depend_on_the_mesh(tiny_checkpoint, tmp_path):
    for name, mesh in (("alone", None), ("split", make_mesh(fsdp=4, tensor=2))):
        policy, params = vr.load_pretrained(tiny_checkpoint, mesh=mesh, value_head=True)
        vr.save_pretrained(tmp_path / name, policy, params)
    files = sorted(p.name for p in (tmp_path / "alone").iterdir())
    assert "value_head.safetensors" in files and "model.safetensors" in files
    assert files == sorted(p.name for p in (tmp_path / "split").iterdir())
    for file in files:
        alone, split = ((tmp_path / name / file).read_bytes() for name in ("alone", "split"))
        assert alone == split, file
    assert json.loads((tmp_path / "split" / "config.json").read_text())["vocab_size"] == 384


# --- the optimizer follows -----------------------------------------------------------------------


@pytest.mark.parametrize("critic_first", [0, 2])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizer_state_lies_as_its_parameters(name, critic_first):
    params, mesh = shaped(), make_mesh(fsdp=4, tensor=2)
    want = specs(params, mesh)
    tx = make_optimizer(OptimizerConfig(name=name), 10, critic_first)
    state = jax.eval_shape(tx.init, params)
    moments: dict[str, int] = dict.fromkeys(want, 0)
    for path, spec in specs(state, mesh).items():
        owner = next((p for p in want if path.endswith("/" + p)), None)
        if owner is None:
            assert not any(spec), path  # counters and coefficients
        else:
            assert spec == want[owner], path
            moments[owner] += 1
    for owner, count in moments.items():
        matrix = "layers/" in owner or "blocks/" in owner or "merger" in owner
        one = name == "muon" and matrix and owner.endswith("kernel")
        assert count == (1 if one else 2), owner
