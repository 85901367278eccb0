"""The doubles that the package offers for tests are what they say."""

import jax
import numpy as np
import pytest

import vrrl_jax as vr
from vrrl_jax import testing
from vrrl_jax.processing import processor as processing


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_the_checkpoint_holds_the_policy(tmp_path, family):
    path = testing.write_tiny_checkpoint(tmp_path / "new" / "folder", seed=3, family=family)
    policy, params = testing.tiny_policy(3, family)
    assert policy.config.family == family
    loaded_policy, loaded = vr.load_pretrained(path)
    assert loaded_policy == policy
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), loaded, params))
    other = testing.tiny_policy(4, family)[1]
    assert np.any(other["embed_tokens"]["embedding"] != params["embed_tokens"]["embedding"])
    assert {p.name for p in path.iterdir()} >= {"config.json", "tokenizer.json", "vrrl.yaml"}


def test_the_policy_is_tiny_and_has_every_kind_of_part(tiny):
    policy, params = tiny
    assert sum(a.size for a in jax.tree.leaves(params)) < 150_000
    config = policy.config
    assert config.text.width == 32 and config.text.heads > config.text.kv_heads
    assert 0 < len(config.vision.full_blocks) < config.vision.layers
    changed, _ = testing.tiny_policy(value_head=True, stop_ids=(7,))
    assert changed.value_head and changed.stop_ids == (7,)


def test_processor_environment_and_maps_fit(tiny, tiny_processor):
    assert tiny_processor.vocab_size <= tiny[0].config.text.vocab_size
    assert tiny_processor.ids.image_pad == tiny[0].config.image_token_id
    maps = testing.tiny_maps(5)
    assert len({map.key for map in maps}) == 5
    assert all(map.size == 3 and map.solvable for map in maps)
    assert testing.tiny_maps(5) == maps != testing.tiny_maps(5, seed=1)
    board = testing.tiny_environment(2)
    prompt = board.reset(maps[0])
    assert prompt.text == "Solve" and prompt.pictures[0].shape == (84, 84, 3)
    assert processing.picture(tiny_processor, prompt.pictures[0]).grid == (1, 6, 6)
    after = board.step(maps[0], "<ANSWER>up</ANSWER>", 0)
    assert not after.done and after.prompt.text == "Verify"
    assert board.step(maps[0], "<ANSWER>up</ANSWER>", 1).done
