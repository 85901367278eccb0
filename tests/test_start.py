"""Where a run starts: what learns, what stays, and whose arrays are whose."""

import jax
import numpy as np
import pytest

from vrrl_jax import start
from vrrl_jax.config import ConfigError, LoraConfig, PolicyConfig
from vrrl_jax.models import critic, lora
from vrrl_jax.parallel.rules import path_name


def flat(tree):
    return {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def begin(directory, **options):
    config = PolicyConfig(path=str(directory), value_head=True, **options)
    return start.start(config, None, seed=0)


@pytest.mark.parametrize(
    "options",
    [{}, {"freeze_vision": True}, {"lora": LoraConfig(rank=2)}],
    ids=["whole", "freeze_vision", "lora"],
)
def test_a_separate_critic_learns_what_the_policy_learns(tiny_checkpoint, options):
    shared = begin(tiny_checkpoint, **options)
    begun = begin(tiny_checkpoint, critic="separate", **options)
    trained, frozen = flat(begun.trained), flat(begun.frozen)
    policys = {name for name in flat(shared.trained) if not critic.is_head(name)}
    head = {"value_head/kernel", "value_head/bias"}
    assert trained.keys() == policys | {f"critic/{name}" for name in policys | head}
    assert frozen.keys() == {p + n for n in flat(shared.frozen) for p in ("", "critic/")}
    for name, leaf in (trained | frozen).items():
        own = name.removeprefix("critic/")
        if critic.is_head(name):
            assert not np.any(leaf) and leaf.dtype == np.float32
        elif own != name:
            theirs = (trained | frozen)[own]
            np.testing.assert_array_equal(leaf, theirs)
            # Trained arrays are donated: they must be there twice. Others needn't.
            assert (leaf is theirs) == (own in frozen), name


def test_an_adapter_of_its_own(tiny_checkpoint):
    """Each has adapters beside the same base, and only the policy's are the policy's."""
    begun = begin(tiny_checkpoint, critic="separate", lora=LoraConfig(rank=2))
    whole = lora.join_params(begun.trained, begun.frozen)
    one, other = (p["layers"]["q_proj"] for p in (whole, whole["critic"]))
    assert one["kernel"] is other["kernel"] and one["lora_b"] is not other["lora_b"]
    assert critic.has_critic(whole) and lora.has_lora(whole["critic"])


def test_a_separate_critic_is_no_critic_without_a_head():
    with pytest.raises(ConfigError, match="separate needs value_head: true"):
        PolicyConfig(critic="separate")
