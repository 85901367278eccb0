"""The pure parts of the benchmarks against figures by hand; each of them whole as `slow`."""

import json
import os
import pathlib
import subprocess
import sys

import benching
import jax
import numpy as np
import pytest
from benching import Span, Spread

from vrrl_jax import roofline, testing
from vrrl_jax.models import policy as models
from vrrl_jax.models.config import from_hf

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def decode():
    pytest.importorskip("transformers", reason="the peer")
    import bench_decode

    return bench_decode


@pytest.fixture(scope="module")
def train():
    pytest.importorskip("transformers", reason="the peer")
    import bench_update

    return bench_update


# --- timing --------------------------------------------------------------------------------------


def test_spread_has_the_median_and_both_ends():
    assert benching.spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert benching.spread([3.0, 1.0, 2.0]).share == 1.0


def test_contenders_take_turns_and_warm_rounds_do_not_count():
    order = []

    def contender(name):
        def call():
            order.append(name)
            return {"run": Span(float(len(order)), 0.0)}

        return call

    found = benching.interleaved({n: contender(n) for n in "abc"}, 3, warm=1)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert [run["run"].wall for run in found["a"]] == [4, 9, 11]


def test_stages_add_up_run_by_run():
    runs = [
        {"a": Span(1, 10), "b": Span(5, 50)},
        {"a": Span(3, 30), "b": Span(1, 10)},
        {"a": Span(2, 20)},
    ]
    found = benching.by_stage(runs, "wall")
    assert found["a"] == Spread(2, 1, 3) and found["b"] == Spread(1, 0, 5)
    # The median of sums, not the sum of medians.
    assert found["total"] == Spread(4, 2, 6)
    assert benching.report(runs)["cpu"]["total"] == {"median": 40, "low": 20, "high": 60}


def test_a_watched_function_does_not_count_those_it_calls():
    class Module:
        @staticmethod
        def inner():
            end = benching.now().wall + 0.02
            while benching.now().wall < end:
                pass

        @staticmethod
        def outer():
            Module.inner()
            Module.inner()

    kept, watch = Module.inner, benching.Watch()
    with watch.watching([(Module, "inner", "in"), (Module, "outer", "out")]):
        Module.outer()
    assert Module.inner is kept
    assert watch.calls == {"in": 2, "out": 1}
    assert watch.stages["in"].wall >= 0.04 > 0.02 > watch.stages["out"].wall


# --- output --------------------------------------------------------------------------------------


def test_table_cells():
    text = benching.table(
        ("what", "figure"), [("a", 0.123456), ("b", 12345.6), ("c", None), ("d", Spread(2, 1, 3.5))]
    )
    assert text.splitlines() == [
        "| what | figure |",
        "| --- | ---: |",
        "| a | 0.123 |",
        "| b | 12,346 |",
        "| c | - |",
        "| d | 2 (1 .. 3.5) |",
    ]
    assert benching.percent(0.1234) == "12.3 %" and benching.percent(None) == "-"


def test_the_last_line_is_json(capsys, tmp_path):
    found = {"cells": [{"rate": Spread(2.0, 1.0, 3.0), "count": np.int64(3)}]}
    plain = {"cells": [{"rate": {"median": 2.0, "low": 1.0, "high": 3.0}, "count": 3}]}
    benching.emit(found, None, ["a table"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a table" and json.loads(lines[-1]) == plain
    benching.emit(found, str(tmp_path / "out.json"), [])
    assert json.loads((tmp_path / "out.json").read_text()) == plain


def test_what_can_not_run_on_this_machine_is_not_measured(monkeypatch):
    def none(kind):
        raise RuntimeError(f"no {kind}")

    monkeypatch.setattr(benching.jax, "devices", none)
    with pytest.raises(SystemExit, match="not measured"):
        benching.settle("gpu", 1)


# --- decode --------------------------------------------------------------------------------------


def test_decode_bytes_are_weights_once_a_step_and_the_filled_cache(decode):
    config = from_hf(testing.tiny_config())
    rows, prompt, new = 3, 10, 4
    work = decode.decode_work(config, rows, prompt, new, "float32")
    text, tree = config.text, models.abstract_params(models.Policy(config))
    sizes = {name: sum(a.size for a in jax.tree.leaves(part)) for name, part in tree.items()}
    weights = sizes["layers"] + sizes["norm"] + sizes["embed_tokens"]  # the head is tied
    slot = 2 * text.layers * text.kv_heads * text.head_dim
    held = sum(context + 1 for context in (10, 11, 12))  # three steps give tokens 2 to 4
    assert work.bytes == 4 * (3 * weights + rows * held * slot + 3 * rows * text.width)
    assert decode.decode_work(config, rows, prompt, new, "bfloat16").bytes * 2 == work.bytes


def cell(decode):
    """Ours twice as fast in decoding, and as fast as the static cache with the prefill."""
    work, opening = roofline.Work(600, 1000), roofline.Work(50, 0)
    runs = {
        "ours": [{"prefill": Span(3, 3), "decode": Span(1, 1)}],
        "peer, dynamic cache": [{"prefill": Span(1, 1), "decode": Span(4, 4)}],
        "peer, static cache": [{"prefill": Span(2, 2), "decode": Span(2, 2)}],
    }
    return {
        "size": "nano",
        "batch": 8,
        "new": 5,
        "contenders": {
            name: decode.figures(found, "cpu", 8, 5, work, opening, 2000.0, 1200.0)
            for name, found in runs.items()
        },
        "equal_tokens": {"peer, dynamic cache": 1.0, "peer, static cache": 1.0},
        "failed": {"peer, static cache, compiled": "no compiler"},
    }


def test_decode_figures_by_hand(decode):
    found = cell(decode)
    ours = found["contenders"]["ours"]
    assert ours["decode_tokens_per_second"] == Spread(32, 32, 32)
    assert ours["tokens_per_second"] == Spread(10, 10, 10)
    assert ours["bandwidth_share"] == 0.5 and ours["flop_share"] == 0.5
    assert ours["prefill_flop_share"] == pytest.approx(50 / 3 / 1200)
    first = dict(zip(decode.HEADER, decode.lines(found)[0], strict=False))
    assert first["of the peer's best"] == 1.0  # the last of two columns of this name
    assert decode.lines(found)[0][4] == 2.0 and decode.lines(found)[1][4] == 0.5
    assert decode.stage_lines(found, "cpu")[0][5] == Spread(250, 250, 250)
    assert decode.missing([found]) == [
        "not measured: peer, static cache, compiled, nano, batch 8: no compiler"
    ]


def test_a_contender_that_fails_is_named_and_ours_is_not_forgiven(decode):
    def fails():
        raise RuntimeError("no compiler\nand more")

    good = lambda: ({}, np.zeros(1))
    kept, failed = decode.usable({"ours": good, "peer, static cache": fails}, {})
    assert list(kept) == ["ours"] and "no compiler" in failed["peer, static cache"]
    with pytest.raises(RuntimeError):
        decode.usable({"ours": fails}, {})


def test_prompts_hold_their_pictures(decode):
    peer = decode.peer
    config = from_hf(peer.architecture("100m"))
    assert 1.0e8 < roofline.all_params(config) < 1.3e8
    batch = peer.prompts(config, 2, 30, side=3, pictures=2)
    assert batch.tokens.shape == (2, 30) and batch.grids.tolist() == [[1, 6, 6]] * 4
    assert (batch.tokens == config.image_token_id).sum(1).tolist() == [18, 18]
    assert [p.patches.shape for p in batch.pictures] == [(36, 1176)] * 4
    with pytest.raises(ValueError, match="take 22 tokens of a prompt of 22"):
        peer.prompts(config, 2, 22, side=3, pictures=2)


# --- update --------------------------------------------------------------------------------------


def grpo(train):
    policy, _ = testing.tiny_policy()
    prompts = train.peer.prompts(policy.config, 1, 12, 2)
    return policy, train.episodes_of(prompts, 4, 8, True)


def test_a_shared_prompt_stands_once_in_a_full_row(train):
    policy, episodes = grpo(train)
    assert [e.tokens.size - 12 for e in episodes] == [4, 5, 6, 8]
    shape = train.row_shape(policy, episodes, True)
    assert (shape.rows, shape.tokens) == (1, 40)  # 12 + 23, in eights
    packed = train.packing.pack(policy, episodes, [0, 1, 2, 3], shape, True)
    assert int((packed.episode[0] >= 0).sum()) == 35
    assert packed.spared == pytest.approx(36 / 71)
    whole = train.packing.pack(
        policy, episodes, [0, 1, 2, 3], train.row_shape(policy, episodes, False)
    )
    assert whole.rows[0].tokens.shape == (4, 20) and whole.spared == 0


def test_floor_of_a_shared_prompt_counts_it_once(train):
    policy, episodes = grpo(train)
    config, text = policy.config, policy.config.text
    whole = train.floor(config, episodes, "peer", "float32").flops
    shared = train.floor(config, episodes, "ours, shared", "float32").flops
    kernels = 2 * text.layers * roofline.layer_kernels(text)
    pairs = 4 * text.layers * text.heads * text.head_dim
    spared = 12 * kernels + pairs * (12 * 13 // 2) + roofline.vision(config, 1, 16).flops
    assert whole - shared == 3 * 3 * spared


def test_both_sides_train_on_the_same(train):
    _, episodes = grpo(train)
    fields = train.fields_of(episodes, 384)
    rows = train.padded(episodes, fields)
    assert fields["loss_weights"].sum() == pytest.approx(1) and rows.tokens.shape == (4, 20)
    assert rows.grids.shape == (4, 3) and rows.pixels.shape == (64, 1176)
    for tokens, weights, episode in zip(rows.tokens, rows.weights, episodes, strict=True):
        n = episode.tokens.size
        np.testing.assert_array_equal(tokens[:n], episode.tokens)
        np.testing.assert_array_equal(weights[:n] > 0, episode.loss_mask > 0)
        assert not weights[n:].any() and not tokens[n:].any()
    assert set(np.unique(fields["advantages"])) == {-1.0, 0.0, 1.0}


# --- growth --------------------------------------------------------------------------------------


def test_cells_of_growth_and_those_that_do_not_fit():
    import bench_growth as growth

    options = growth.read(["--batch", "1", "4", "--turns", "3", "--pictures", "2", "--tokens"])
    found = growth.cells(options)
    assert [(c.axis, c.batch, c.turns, c.pictures, c.tokens) for c in found] == [
        ("batch", 1, 2, 1, 512), ("batch", 4, 2, 1, 512),
        ("pictures", 1, 2, 2, 512 + 66), ("turns", 1, 3, 1, 512),
    ]  # fmt: skip
    policy, _ = testing.tiny_policy()
    assert growth.unfit(policy, found[0], options, 1e12, 2**34) is None
    assert "GB that are free" in growth.unfit(policy, found[0], options, 1e12, 2**20)
    assert "--limit" in growth.unfit(policy, found[0], options, 1e3, 2**34)
    small = growth.Cell("tokens", tokens=66)
    assert "no room" in growth.unfit(policy, small, options, 1e12, 2**34)


# --- whole ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decode", "update", "growth", "step"])
def test_smoke(name, tmp_path):
    if name in ("decode", "update"):
        pytest.importorskip("transformers", reason="the peer")
    command = [sys.executable, f"scripts/bench_{name}.py", "--smoke"]
    # One device: what conftest.py simulates is no benchmark's business.
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["benchmark"] == name and found["machine"]["device"] == "cpu"
    assert "| --- |" in done.stdout
    if name == "decode":
        (only,) = found["cells"]
        assert set(only["equal_tokens"].values()) == {1.0}
    if name == "update":
        for cell in found["cells"]:
            losses = [f["loss"] for f in cell["contenders"].values()]
            norms = [f["grad_norm"] for f in cell["contenders"].values()]
            np.testing.assert_allclose(losses, losses[0], rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(norms, norms[0], rtol=1e-3)
    if name == "growth":
        assert [c["left_out"] for c in found["cells"]] == [None] * 3
    if name == "step":
        first, *_, last = found["compilations"]
        assert first > 5 > last and found["steps_timed"] == 1
        assert 0 < found["steps"][0]["update_occupancy"] <= 1
