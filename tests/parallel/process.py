"""A process of a run that tests start: the `vrrl` command on a policy that speaks at random, with
something going wrong in one process where FAULT says so ("kind:process:step")."""

import argparse
import os
import signal
import sys
import time

import jax
import numpy as np
import pytest
from running import say

from vrrl_jax import cli, playing, sft, trajectories
from vrrl_jax.parallel import distributed
from vrrl_jax.rollout import transcript


def spoken(processor, ids) -> str:
    """Replies with their end tokens left out, which a stored one has and a sampled one has not."""
    ends = (processor.ids.im_end, processor.ids.endoftext)
    return say(processor, [i for i in ids if i not in ends])


def befall(step: int) -> bool:
    """Whether something is wrong here from `step` (0-based) on; deadly faults happen."""
    kind, process, when = os.environ.get("FAULT", "none:0:0").split(":")
    if kind == "none" or step != int(when) or jax.process_index() != int(process):
        return False
    again = os.environ.get("FAULT_ONCE")
    if again and os.path.exists(again):
        return False
    if again:
        open(again, "w").close()
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    if kind == "raise":
        raise RuntimeError("a fault of this process alone")
    return kind == "differ"


def main() -> int:
    transcript.decode_text = trajectories.decode_text = spoken
    play, draw = playing.play, sft.draw_sequences

    def played(game, view, groups, step, *rest):
        if befall(step):
            score = lambda *args: game.score(*args) | {"total": np.float32(time.time())}
            game = playing.dataclasses.replace(game, score=score)
        return play(game, view, groups, step, *rest)

    def drawn(step, *rest):
        befall(step)
        return draw(step, *rest)

    playing.play, sft.draw_sequences = played, drawn
    return cli.main(sys.argv[1:])


def steps(args) -> None:
    """A run in little: what a step of training asks of the other processes, and nothing else."""
    del args
    distributed.start()
    from vrrl_jax.parallel import mesh as meshes

    mesh = meshes.make_mesh(data=4)
    add = jax.jit(lambda a: a + a.mean())
    total = meshes.put(np.arange(8.0), meshes.row_sharding(mesh))
    with distributed.stops_on_sigterm():
        for step in range(20):
            distributed.agree(f"step {step + 1}", odd=befall(step))
            total = add(total)
            print(f"step {step + 1}: {meshes.fetch(total)[0]}", flush=True)
            if distributed.stopping():
                raise distributed.Preempted(f"stopped after step {step + 1}")
            time.sleep(0.2)


def checks() -> None:
    """What two processes of two devices each show of the functions that join them."""
    place = distributed.start()
    from jax.sharding import PartitionSpec as P

    from vrrl_jax.parallel import mesh as meshes

    mesh = meshes.make_mesh(data=2, tensor=2)
    meshes.connect(mesh)
    host = np.arange(24, dtype=np.float32).reshape(8, 3)
    split = meshes.put_rows(mesh, {"a": host, "b": np.arange(8)})
    assert not split["a"].is_fully_addressable
    whole = meshes.put(host, meshes.replicated(mesh))
    odd = jax.jit(lambda a: a[::-1])(split["a"])
    tree = {"split": split, "whole": whole, "odd": odd, "host": host, "number": 3}
    back = meshes.fetch(tree)
    assert isinstance(back["split"]["a"], np.ndarray) and back["number"] == 3
    for found in (back["split"]["a"], back["whole"], back["odd"][::-1], back["host"]):
        np.testing.assert_array_equal(found, host)
    assert int(meshes.fetch(jax.jit(lambda a: a.sum())(split["b"]))) == 28
    columns = meshes.put(host.T, jax.sharding.NamedSharding(mesh, P(None, ("data", "tensor"))))
    np.testing.assert_array_equal(meshes.fetch(columns), host.T)

    me = jax.process_index()
    assert (place.process, place.processes) == (me, 2) and distributed.several()
    assert distributed.broadcast(f"name of {me} é") == "name of 0 é"
    np.testing.assert_array_equal(distributed.of_first(np.full(3, me)), np.zeros(3))
    distributed.agree("here", seen=[1, "two", host], none=None)
    told = "step 7: other, third of process 1 differ from those of process 0"
    with pytest.raises(distributed.Disagreement, match=told):
        distributed.agree("step 7", same=1, other=me, third={"a": np.full(2, me)})
    with distributed.stops_on_sigterm():
        assert not distributed.stopping()
        if me == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        assert distributed.stopping()
    with pytest.raises(ValueError, match="leaves 1 of 4 devices idle: with 2 processes"):
        meshes.make_mesh(data=3)
    print("all seen", flush=True)
    distributed.end(0)


if __name__ == "__main__":
    sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    if sys.argv[1:2] == ["steps"]:
        args = argparse.Namespace(call=steps, command="steps")
        sys.exit(distributed.end(cli._call(args)))
    sys.exit(checks() if sys.argv[1:2] == ["checks"] else main())
