"""Programs compiled for chips that aren't there: what is read from their text, what is refused,
and, where libtpu is installed, a tiny run for a slice of four chips."""

import dataclasses
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vrrl_jax import cli, compiled, hlo, hlo_cost, plan, planning, roofline, testing, topology
from vrrl_jax.config import MeshConfig, TrainConfig, load

ROOT = pathlib.Path(__file__).parents[1]
PUBLISHED = str(ROOT / "configs/vrrl_frozenlake_qwen2_5_vl_3b.yaml")
MODEL = str(ROOT / "configs/models/qwen2_5_vl_3b.json")
GIVEN = ["--model", MODEL, "--slots", "5664", "--patches", "576"]
LIBTPU = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(not LIBTPU, reason="needs libtpu, the extra topology")

# A loop of twelve rounds (counted by its condition) around one of three (said), and outside them a
# sum over groups of two, a scattered sum, a permutation that runs while others compute.
TEXT = """HloModule jit_f, is_scheduled=true, num_partitions=4

%scatter (given: f32[64]) -> f32[16] {
  %given = f32[64]{0} parameter(0)
  %sum.1 = f32[64]{0} all-reduce(%given), replica_groups={{0,1,2,3}}, to_apply=%add
  %at = s32[] constant(16)
  ROOT %kept = f32[16]{0} dynamic-slice(%sum.1, %at), dynamic_slice_sizes={16}
}

%inner_body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %swapped = f32[8]{0} all-to-all(%x), replica_groups=[2,2]<=[4], dimensions={0}
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %swapped)
}

%inner_condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]{0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

%body (q: (s32[], bf16[4,8], f32[8])) -> (s32[], bf16[4,8], f32[8]) {
  %one = s32[]{:T(128)} constant(1)
  %q = (s32[], bf16[4,8]{1,0}, f32[8]{0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %w = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%q), index=1
  %y = f32[8]{0} get-tuple-element(%q), index=2
  %next = s32[] add(%j, %one)
  %whole = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%w), replica_groups=mesh['a'=4,'b'=1] {'a'}, dimensions={0}, metadata={op_name="jit(f)/dot"}
  %out = f32[4,16]{1,0} dot(%w, %whole), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %start = (s32[], f32[8]{0}) tuple(%j, %y)
  %loop = (s32[], f32[8]{0}) while(%start), condition=%inner_condition, body=%inner_body, backend_config={"known_trip_count":{"n":"3"}}
  %z = f32[8]{0} get-tuple-element(%loop), index=1
  ROOT %t = (s32[], bf16[4,8]{1,0}, f32[8]{0}) tuple(%next, %w, %z)
}

%condition (q: (s32[], bf16[4,8], f32[8])) -> pred[] {
  %bound = s32[] constant(12)
  %q = (s32[], bf16[4,8]{1,0}, f32[8]{0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %more = pred[] compare(%j, %bound), direction=LT
}

ENTRY %main (a: bf16[4,8], b: f32[8], c: f32[64]) -> f32[8] {
  %a = bf16[4,8]{1,0} parameter(0)
  %b = f32[8]{0} parameter(1)
  %c = f32[64]{0} parameter(2)
  %zero = s32[] constant(0)
  %first = s32[] copy(%zero)
  %start = (s32[], bf16[4,8]{1,0}, /*index=2*/f32[8]{0}) tuple(%first, %a, %b)
  %while.1 = (s32[], bf16[4,8]{1,0}, f32[8]{0}) while(%start), condition=%condition, body=%body
  %summed = f32[8]{0} all-reduce(%b), replica_groups={{0,1},{2,3}}, to_apply=%add
  %part = f32[16]{0} fusion(%c), kind=kCustom, calls=%scatter
  %sent = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%b), source_target_pairs={{0,1}}
  %got = f32[8]{0} collective-permute-done(%sent)
  ROOT %result = f32[8]{0} get-tuple-element(%while.1), index=2
}
"""  # noqa: E501


# --- text ----------------------------------------------------------------------------------------


def test_collectives_count_as_often_as_loops_run():
    once, inside = hlo_cost.costs(TEXT)
    assert inside == hlo_cost.Cost()
    kinds = {k: (c.count, c.bytes, c.received) for k, c in once.by_kind().items()}
    assert kinds == {
        "all-gather": (12, 12 * 256, 12 * 192),  # three quarters come from others
        "all-reduce": (1, 32, 32),  # half of it there, half of it back
        "reduce-scatter": (1, 64, 192),
        "all-to-all": (36, 36 * 32, 36 * 16),
        "collective-permute": (1, 32, 32),
    }
    assert once.received == sum(received for _, _, received in kinds.values())
    (gathered,) = (c for c in once.collectives if c.kind == "all-gather")
    assert gathered.source == "jit(f)/dot"
    assert once.flops == 12 * 2 * 4 * 16 * 8


def test_a_loop_of_unknown_length_stands_apart():
    text = TEXT.replace("%j, %bound), direction=LT", "%j, %j), direction=LT")
    once, inside = hlo_cost.costs(text)
    assert set(once.by_kind()) == {"all-reduce", "reduce-scatter", "collective-permute"}
    counts = {kind: c.count for kind, c in inside.by_kind().items()}
    assert counts == {"all-gather": 1, "all-to-all": 3}  # a round
    both = once + inside.times(12)
    assert both.by_kind() == hlo_cost.costs(TEXT)[0].by_kind()


@pytest.mark.parametrize(("start", "step", "rounds"), [(0, 1, 12), (3, 1, 9), (0, 5, 3), (0, 0, 0)])
def test_rounds_from_counter_and_bound(start, step, rounds):
    text = TEXT.replace("%zero = s32[] constant(0)", f"%zero = s32[] constant({start})")
    text = text.replace(" constant(1)\n", f" constant({step})\n")
    once, inside = hlo_cost.costs(text)
    counted = once if step else inside  # a counter that stands still tells nothing
    assert counted.by_kind()["all-gather"].count == (rounds or 1)


def test_parts_of_one_exchange_count_once():
    """One that is spread over two fusions is written down in both, under one number."""
    text = """
%near (x: f32[4]) -> f32[8] {
  %x = f32[4]{0} parameter(0)
  ROOT %g = f32[8]{0} all-gather(%x), channel_id=7, replica_groups={{0,1}}, dimensions={0}
}

ENTRY %main (x: f32[4]) -> f32[8] {
  %x = f32[4]{0} parameter(0)
  %first = f32[8]{0} fusion(%x), kind=kCustom, calls=%near
  ROOT %second = f32[8]{0} fusion(%x), kind=kCustom, calls=%near
}
"""
    assert hlo_cost.costs(text)[0].by_kind()["all-gather"].count == 1
    assert hlo_cost.costs(text.replace("channel_id=7, ", ""))[0].by_kind()["all-gather"].count == 2


def test_of_a_branch_the_lighter_way():
    text = """
%light (x: f32[8]) -> f32[8] {
  ROOT %x = f32[8]{0} parameter(0)
}

%heavy (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %s = f32[8]{0} all-reduce(%x), replica_groups={}, to_apply=%add
}

ENTRY %main (p: pred[], x: f32[8]) -> f32[8] {
  %p = pred[] parameter(0)
  %x = f32[8]{0} parameter(1)
  ROOT %r = f32[8]{0} conditional(%p, %x, %x), true_computation=%heavy, false_computation=%light
}
"""
    assert hlo_cost.costs(text)[0].collectives == ()


def test_what_lies_on_the_chip_crosses_no_memory():
    """Of a stack only the slice that is taken, of a result in S(1) nothing."""
    text = """
%take (stack: f32[10,64], i: s32[]) -> f32[64] {
  %stack = f32[10,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,64]{1,0} dynamic-slice(%stack, %i, %zero), dynamic_slice_sizes={1,64}
  ROOT %flat = f32[64]{0} bitcast(%row)
}

ENTRY %main (stack: f32[10,64], i: s32[]) -> f32[64] {
  %stack = f32[10,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %near = f32[64]{0:T(128)S(1)} fusion(%stack, %i), kind=kLoop, calls=%take
  ROOT %far = f32[64]{0} negate(%near)
}
"""
    assert hlo_cost.costs(text)[0].bytes == 64 * 4 + 4 + 64 * 4


def test_products_that_are_written_as_convolutions():
    plain = "dim_labels=bf_io->bf"
    assert hlo_cost.convolution((16, 32), (32, 8), (16, 8), plain) == 2 * 16 * 32 * 8
    # Five products of [16, 32] with [32, 8], the batch as a dilated spatial dimension.
    batch = "window={size=5 stride=4 lhs_dilate=5}, dim_labels=0bf_0io->0bf"
    sizes = (5, 16, 32), (5, 32, 8), (5, 16, 8)
    assert hlo_cost.convolution(*sizes, batch) == 5 * 2 * 16 * 32 * 8
    # A window of three over eight entries with padding: two of 24 pairs lie outside.
    window = "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f"
    assert hlo_cost.convolution((1, 8, 4), (3, 4, 2), (1, 8, 2), window) == 22 * 2 * 4 * 2


def test_shapes():
    shape = "(f32[2,3]{1,0:T(8,128)S(1)}, /*index=1*/(bf16[4]{0}, pred[]), s4[8]{0})"
    assert [hlo.size(part) for part in hlo.parts(shape)] == [24, 9, 4]
    assert hlo.size(shape, memory_only=True) == 13
    line = hlo.instruction("  ROOT %a.1 = (f32[2]{0}, u32[]) copy-start(f32[2]{0} %b-c), x={1}")
    assert (line.name, line.op, line.operands, line.root) == ("a.1", "copy-start", ("b-c",), True)


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups=[4,16]<=[64]", 16),
        ("replica_groups=[8,8]<=[4,16]T(1,0)", 8),
        ("replica_groups=mesh['a'=4,'b'=8] {'b'}", 8),
        ("replica_groups=mesh['a'=4,'b'=8] {'a','b'}", 32),
        ("replica_groups={}", 2),
    ],
)
def test_who_exchanges_with_whom(groups, devices):
    assert hlo_cost.group(f", channel_id=1, {groups}, use_global_device_ids=true") == devices


# --- figures -------------------------------------------------------------------------------------


def test_bounds_by_hand():
    chip = roofline.Chip(flops=10.0, bandwidth=5.0, memory=100.0, interconnect=4.0)
    exchange = hlo_cost.Collective("all-gather", 1, 40.0, 30.0)
    program = topology.Program("decode", None, (), 8, ("optimizer",))
    figures = compiled.Figures(
        program, arguments=20, outputs=10, reused=5, temporaries=7, code=1, held=4,
        cost=hlo_cost.Cost(flops=50.0, bytes=40.0, collectives=(exchange,)),
    )  # fmt: skip
    assert figures.bounds(chip) == {"products": 5.0, "memory": 8.0, "links": 15.0}
    assert compiled.bound(figures, chip) == (15.0, "links")
    assert figures.peak == 37
    said = "\n".join(compiled.total([figures], chip, 36.0, complete=True))
    assert "at least 120 s" in said and "DOESN'T FIT" in said
    assert "DOESN'T" not in "\n".join(compiled.total([figures], chip, 37.0, complete=True))


def test_what_is_held_beside_the_arguments():
    memory = plan.Memory(10, 20, 3, 5, 4, 8, 1, 7)  # of the parameters 4 are trained
    assert compiled._held(memory, ("trained", "optimizer")) == 24
    assert compiled._held(memory, ("frozen", "reference", "view")) == 14


def test_a_mesh_that_fits_is_suggested(monkeypatch):
    config = load(PUBLISHED, ["mesh.fsdp=4", "update.rows_per_microbatch=4"], TrainConfig)
    policy = planning.architecture(config, MODEL)
    shapes = planning.given_shapes(config, policy, 5664, 576)
    said = planning.suggested(config, policy, shapes, "v5p")
    found = {k: int(v) for k, v in (w.split("=") for w in said.split() if "=" in w)}
    mesh = MeshConfig(**{k.removeprefix("mesh."): v for k, v in found.items() if "mesh." in k})
    there = dataclasses.replace(config, mesh=MeshConfig(tensor=mesh.tensor))
    assert planning.memory_of(planning.spread(there, mesh.fsdp), policy, shapes).fits("v5p")
    assert mesh.fsdp * mesh.tensor >= 4 and found["update.rows_per_microbatch"] % mesh.fsdp == 0
    monkeypatch.setattr(planning, "MOST_PARTS", 4)
    assert "no mesh of up to 4" in planning.suggested(config, policy, shapes, "v5e")


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--topology", "v9:2x2"], "chips are v5e, v5p, v6e"),
        (["--topology", "v5e:4x4", "--program", "decoder"], "no program decoder"),
    ],
)
def test_what_it_refuses(argv, words, capsys):
    assert cli.main(["plan", PUBLISHED, *GIVEN, *argv]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--program", "decode"], ["--topology", "a:1", "--device", "b"]])
def test_options_that_do_not_go_together(argv, capsys):
    with pytest.raises(SystemExit):
        cli.main(["plan", PUBLISHED, *argv])
    assert "--topology" in capsys.readouterr().err


def test_without_the_compiler(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"vrrl-jax\[topology\]"):
        topology.devices_of("v5e:2x2")


@pytest.mark.parametrize("sizes", [{"fsdp": 3}, {"fsdp": 16}, {"fsdp": -1, "tensor": 3}])
def test_a_mesh_of_another_size(sizes):
    with pytest.raises(ValueError, match="has 8 chips"):
        topology.mesh_of(MeshConfig(**sizes), jax.devices()[:8], "v5e:2x4")


def test_what_is_left_goes_to_minus_one():
    mesh = topology.mesh_of(MeshConfig(fsdp=-1, tensor=2), jax.devices()[:8], "v5e:2x4")
    assert dict(mesh.shape) == {"data": 1, "fsdp": 4, "tensor": 2}


def test_no_room_is_an_answer():
    """The compiler's refusal is told, other errors are raised."""

    def refusing(message):
        class Function:
            def lower(self, *args):
                return self

            def compile(self):
                raise jax.errors.JaxRuntimeError(message)

        return topology.Program("apply", Function(), (), 1, ())

    full = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.51G of 15.75G hbm."
    result = topology.compile_program(refusing(full))
    assert result == (result.program, None, "used 20.51g of 15.75g hbm")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        topology.compile_program(refusing("INTERNAL: no"))


# --- the compiler itself -------------------------------------------------------------------------


def test_the_arrays_are_those_of_a_run():
    """On a mesh that is there: what is compiled is what runs, argument for argument."""
    config = load(PUBLISHED, ["mesh.fsdp=8", "update.rows_per_microbatch=8"], TrainConfig)
    policy, _ = testing.tiny_policy(mesh=topology.mesh_of(config.mesh, jax.devices()[:8], "x:8"))
    shapes = planning.given_shapes(config, policy, 5664, 16)
    programs = topology.programs(config, policy, shapes, ("view", "reference", "accumulate"))
    found = {program.name: program for program in programs}
    assert list(found) == ["view", "reference", "accumulate"]
    assert found["accumulate"].calls == 32 and found["reference"].calls == 32
    _, whole = found["view"].args
    spread = whole["layers"]["q_proj"]["kernel"].sharding
    assert spread == NamedSharding(policy.mesh, P(None, "fsdp", "tensor"))
    trained, frozen, grads, batch = found["accumulate"].args
    assert not frozen and jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, trained)
    assert batch.rows.tokens.sharding.shard_shape(batch.rows.tokens.shape)[0] == 1
    assert batch.rows.positions.sharding.shard_shape(batch.rows.positions.shape)[:2] == (3, 1)


@needs_libtpu
def test_an_unknown_slice():
    with pytest.raises(ValueError, match="v5e:2x2, v5e:4x4"):
        topology.devices_of("v5e:3x7")


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("in_flight", [None, 4])
def test_a_tiny_step_for_four_chips(tmp_path, in_flight):
    """Through the compiler: all programs of a small recipe, and what a tensor axis exchanges."""
    model = tmp_path / "config.json"
    model.write_text(json.dumps(testing.tiny_config()))
    sizes = ["rollout.questions=4", "rollout.samples=2", "rollout.max_new_tokens=8"]
    sizes += ["env.max_turns=2", "roll_in.max_prefix_turns=1", "update.rows_per_microbatch=2"]
    sizes += [f"rollout.in_flight={in_flight or 'null'}"]
    config = load(PUBLISHED, ["mesh.fsdp=2", "mesh.tensor=2", *sizes], TrainConfig)
    options = {"model": str(model), "slots": 128, "patches": 16}
    said = planning.compiled_for(config, "v5e:2x2", **options)
    again = "place" if in_flight else "repeat"
    for name in (
        "view",
        "prompt",
        again,
        "follow-up",
        "decode",
        "reference",
        "accumulate",
        "apply",
    ):
        assert len([line for line in said.splitlines() if line.startswith(f"{name} ")]) == 3
    assert "step: at least" in said and ": fits" in said and "all-reduce" in said


@needs_libtpu
def test_the_counts_agree_with_xlas():
    """For a product without a loop; with one, XLA counts a round and we count all."""
    mesh = topology.mesh_of(MeshConfig(fsdp=4), topology.devices_of("v5e:2x2"), "v5e:2x2")
    place = lambda *axes: NamedSharding(mesh, P(*axes))
    w = jax.ShapeDtypeStruct((5, 256, 256), jnp.bfloat16, sharding=place(None, "fsdp", None))
    x = jax.ShapeDtypeStruct((64, 256), jnp.bfloat16, sharding=place("fsdp"))

    def layers(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    done = jax.jit(layers).lower(w, x).compile()
    once, inside = hlo_cost.costs(done.as_text())
    assert once.flops == 5 * 2 * 16 * 256 * 256 and inside == hlo_cost.Cost()
    assert once.by_kind()["all-gather"] == hlo_cost.Collective(
        "all-gather", 5, 5 * 2 * 256 * 256, 5 * 2 * 192 * 256
    )
    assert done.cost_analysis()["flops"] == pytest.approx(once.flops / 5, rel=0.05)
