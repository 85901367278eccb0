"""What `vrrl plan` says, against the rooms it asks and against cases by hand."""

import dataclasses
import json
import pathlib

import pytest

from vrrl_jax import cli, plan, planning, playing, roofline, tasks, testing
from vrrl_jax.config import (
    AlgorithmConfig,
    MeshConfig,
    ModesConfig,
    NavigationEnv,
    RolloutConfig,
    TrainConfig,
    load,
)

ROOT = pathlib.Path(__file__).parents[1]
PUBLISHED = str(ROOT / "configs/vrrl_frozenlake_qwen2_5_vl_3b.yaml")
MODEL = str(ROOT / "configs/models/qwen2_5_vl_3b.json")
SHAPES = {"model": MODEL, "slots": 5664, "patches": 576}
TINY = """
policy: {path: CHECKPOINT, compute_dtype: float32}
data: {count: 6, levels: [3]}
env: {cell: 28, max_turns: 3, question: Solve, verify: Verify}
rollout: {questions: 4, samples: 4, max_new_tokens: 4}
mesh: {fsdp: 2}
"""


@pytest.fixture
def recipe(tmp_path, tiny_checkpoint, monkeypatch):
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.setenv(name, "unused")
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("CHECKPOINT", str(tiny_checkpoint)))
    return str(path)


def published(*overrides):
    """(recipe, policy, shapes) of the published recipe, without its checkpoint."""
    config = load(PUBLISHED, ["mesh.fsdp=1", *overrides], TrainConfig)
    policy = planning.architecture(config, MODEL)
    return config, policy, planning.given_shapes(config, policy, 5664, 576)


# --- the command ---------------------------------------------------------------------------------


def test_the_command_says_what_a_run_would_hold(recipe, tiny_processor, capsys):
    assert (
        cli.main(["plan", recipe, "--device", "v5e", "policy.remat=true", "--device", "H100"]) == 0
    )
    said = capsys.readouterr().out
    config = load(recipe, ["policy.remat=true"], TrainConfig)
    policy, params = testing.tiny_policy(remat=True)
    task = tasks.make(config, tiny_processor)
    stages = playing.stages_of(config, task, tiny_processor)
    shapes = playing.plan_shapes(
        policy, tiny_processor, config, stages, task.probes(task.training())
    )
    policy = dataclasses.replace(policy, mesh=plan.abstract_mesh(fsdp=2))
    memory = plan.plan(policy, plan.workload(config, policy, shapes), config.optimizer)
    lines = [line.split() for line in said.splitlines() if line]
    figures = {cells[0]: cells[1] for cells in lines if len(cells) == 2}
    for kind in planning.KINDS:
        assert figures[kind] == f"{getattr(memory, kind) / 1e9:.3f}"
    assert figures["peak"] == f"{memory.peak / 1e9:.3f}"
    assert f"16 episodes of {shapes.slots} slots" in said and "fsdp 2" in said
    assert [cells[2] for cells in lines if cells[0] in roofline.CHIPS] == ["yes", "yes"]


def test_a_plan_without_the_checkpoint(capsys):
    argv = ["plan", PUBLISHED, "--model", MODEL, "--slots", "5664", "--patches", "576"]
    assert cli.main([*argv, "--device", "H100"]) == 0
    said = capsys.readouterr().out
    assert "3,754,622,976 parameters" in said and "mesh.fsdp is -1" in said
    config, policy, shapes = published()
    (least,) = planning.smallest(config, policy, shapes, ["H100"]).values()
    assert f"no; fsdp={least} does" in said


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([PUBLISHED], "--model config.json --slots N --patches P"),
        ([PUBLISHED, "--model", MODEL], "they are needed"),
        ([PUBLISHED, "--model", MODEL, "--slots", "64"], "go together"),
        ([PUBLISHED, "--model", MODEL, "--slots", "640", "--patches", "576"], "takes 144 of them"),
        ([PUBLISHED, "--device", "H900"], "no device H900"),
        ([PUBLISHED, "policy.lora.rank=8"], "policy.lora.rank=0"),
    ],
)
def test_what_it_refuses(argv, words, capsys):
    assert cli.main(["plan", *argv]) == 2
    assert words in capsys.readouterr().err


# --- shapes and memory ---------------------------------------------------------------------------


def test_given_shapes_are_what_a_run_plans(recipe):
    config = load(recipe, [], TrainConfig)
    policy, _ = testing.tiny_policy()
    shapes = planning.planned_shapes(config, policy)
    given = planning.given_shapes(config, policy, shapes.slots, shapes.patches)
    assert (given.slots, given.patches) == (shapes.slots, shapes.patches)
    assert abs(given.prompt - shapes.prompt) <= 16  # what rounding the slots up may add


def test_the_smallest_that_fits_is_the_smallest():
    config, policy, shapes = published()
    found = planning.smallest(config, policy, shapes, ["H100", "H200"])
    for name, fsdp in found.items():
        at = lambda n: planning.memory_of(planning.spread(config, n), policy, shapes)
        assert fsdp > 1 and at(fsdp).fits(name) and not at(fsdp // 2).fits(name)
    assert found["H200"] <= found["H100"]


def test_episodes_bound_the_mesh():
    """Sixteen episodes don't divide over more than sixteen parts."""
    config, policy, shapes = published(
        "rollout.questions=2", "roll_in.capacity=4096", "policy.dtype=float32"
    )
    assert planning.spread(config, 16).update.rows_per_microbatch == 16
    assert planning.smallest(config, policy, shapes, ["v5e"]) == {"v5e": None}


# --- floors --------------------------------------------------------------------------------------


def single_turn(**changes):
    return TrainConfig(
        env=NavigationEnv(max_turns=1),
        rollout=RolloutConfig(questions=4, samples=2, max_new_tokens=8),
        algorithm=AlgorithmConfig(epochs=2, minibatches=2, kl_coefficient=0.1),
        modes=ModesConfig(normal=1.0, rtm=0.0, roll_in=0.0),
        **changes,
    )


def test_floors_by_hand():
    """One turn: a prompt a question, eight tokens an episode, two passes over eight episodes."""
    policy, _ = testing.tiny_policy()
    config = single_turn()
    shapes = planning.given_shapes(config, policy, 64, 16)
    work = {phase.name: phase.work for phase in planning.phases(config, policy, shapes)}
    model = policy.config
    assert shapes.slots == 64 and 40 < shapes.prompt <= 56
    assert work["prompts"] == roofline.prefill(model, 4, shapes.prompt, 4, shapes.patches, 4)
    drawn = [roofline.decode(model, 8, shapes.prompt + i, 4) for i in range(8)]
    assert work["replies"].flops == pytest.approx(sum(w.flops for w in drawn), rel=0.01)
    assert work["replies"].bytes == pytest.approx(sum(w.bytes for w in drawn), rel=0.01)
    episodes = (model, 8, shapes.slots, 8 * 8)
    once = roofline.forward(*episodes, 4) + roofline.vision(model, 8, shapes.patches, 4)
    assert work["reference"] == once
    assert work["gradients"].flops == 2 * 3 * once.flops
    assert work["optimizer"].bytes == 4 * 8 * 4 * roofline.all_params(model)


def test_what_a_mesh_shares():
    """Rows go over data and fsdp, a row's work over tensor, the optimizer over fsdp and tensor."""
    config, policy, shapes = published()
    at = lambda **mesh: {
        phase.name: phase
        for phase in planning.phases(
            dataclasses.replace(planning.spread(config, 8), mesh=MeshConfig(**mesh)), policy, shapes
        )
    }
    one, rows, both = at(), at(data=2, fsdp=4), at(fsdp=8, tensor=2)
    assert 8 * rows["gradients"].work.flops == one["gradients"].work.flops
    assert rows["replies"].work.bytes > one["replies"].work.bytes / 8  # weights, eight times
    assert (rows["gradients"].chips, rows["optimizer"].chips) == (1, 4)
    assert (both["gradients"].chips, both["optimizer"].chips) == (2, 16)
    for name in one:
        times = [planning.seconds(phases[name], "v5p") for phases in (one, rows, both)]
        assert times == sorted(times, reverse=True)


def test_what_isnt_there_takes_no_time():
    config, policy, shapes = published("algorithm.kl_coefficient=0")
    names = lambda c: [phase.name for phase in planning.phases(c, policy, shapes)]
    assert "reference" in names(published()[0]) and "reference" not in names(config)
    frozen = published("policy.freeze_vision=true")[0]
    whole = published()[0]
    for name in ("reference", "gradients", "optimizer"):
        less, more = (
            {p.name: p.work for p in planning.phases(c, policy, shapes)}[name]
            for c in (frozen, whole)
        )
        assert less.bytes < more.bytes


def test_the_model_file_is_read(tmp_path):
    raw = json.loads(pathlib.Path(MODEL).read_text())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(raw | {"num_hidden_layers": 5}))
    config = load(PUBLISHED, [], TrainConfig)
    policy = planning.architecture(config, str(path))
    assert policy.config.text.layers == 5 and policy.remat
    assert policy.compute_dtype == "bfloat16"  # what the recipe leaves open is an accelerator's
