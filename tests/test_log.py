"""What a run writes: its directory, metrics that survive a kill, progress, episodes."""

import dataclasses
import datetime
import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vrrl_jax import config as c
from vrrl_jax import log
from vrrl_jax.progress import Progress, format_number, format_seconds
from vrrl_jax.types import Episode

QUIET = c.LogConfig(tensorboard=False)


def writer(run_dir, **options):
    return log.Writer(run_dir, 100, QUIET, stream=io.StringIO(), **options)


def steps(run_dir):
    return [line["step"] for line in log.read_metrics(run_dir / "metrics.jsonl")]


# --- the directory ---


def test_a_run_records_its_configuration_and_command(tmp_path):
    config = c.TrainConfig(run_dir=str(tmp_path / "runs" / "a"), seed=7)
    run_dir = log.open_run(config, command="vrrl train x.yaml seed=7")
    assert run_dir == tmp_path / "runs" / "a"
    assert c.load(run_dir / "config.yaml", (), c.TrainConfig) == config
    assert (run_dir / "command.txt").read_text() == "vrrl train x.yaml seed=7\n"


def test_a_run_is_not_overwritten(tmp_path):
    config = c.SftConfig(run_dir=str(tmp_path))
    log.open_run(config)
    with pytest.raises(FileExistsError, match="add --resume"):
        log.open_run(config)
    log.open_run(config, resume=True)
    assert not list(tmp_path.glob("config.*.yaml"))


def test_resuming_with_another_configuration_keeps_the_first(tmp_path):
    config = c.TrainConfig(run_dir=str(tmp_path))
    log.open_run(config, command="one")
    later = dataclasses.replace(config, steps=9)
    log.open_run(later, resume=True, command="two")
    assert c.load(tmp_path / "config.yaml", (), c.TrainConfig) == later
    assert c.load(tmp_path / "config.0.yaml", (), c.TrainConfig) == config
    assert (tmp_path / "command.txt").read_text() == "one\ntwo\n"


def test_resuming_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        log.open_run(c.TrainConfig(run_dir=str(tmp_path / "a")), resume=True)
    with pytest.raises(FileNotFoundError, match="run_dir="):
        log.open_run(c.TrainConfig(), resume=True)


def test_the_default_directory_is_named_after_recipe_and_time():
    now = datetime.datetime(2026, 1, 2, 3, 4, 5)
    assert log.default_run_dir("configs/nano.yaml", now) == "runs/nano-20260102-030405"


# --- metrics ---


def test_metrics_are_one_object_a_step_at_once(tmp_path):
    with writer(tmp_path) as w:
        w.step(1, {"loss": jnp.float32(0.5), "count/a": np.int64(3), "ok": True})
        first = json.loads((tmp_path / "metrics.jsonl").read_text())  # flushed before closing
        w.step(5, {"loss": float("nan"), "ratio": np.float32("inf")})
    assert first["step"] == 1
    assert (first["loss"], first["count/a"], first["ok"]) == (0.5, 3, 1)
    second = log.read_metrics(tmp_path / "metrics.jsonl")[1]
    assert (second["step"], second["loss"], second["ratio"]) == (5, None, None)


def test_steps_go_forward_and_metrics_are_scalars(tmp_path):
    with writer(tmp_path) as w:
        w.step(2, {})
        with pytest.raises(ValueError, match="step 2 was written after step 2"):
            w.step(2, {})
        with pytest.raises(ValueError, match="metric curve must be a scalar"):
            w.step(3, {"curve": np.zeros(2)})
        with pytest.raises(ValueError, match="'step'"):
            w.step(3, {"step": 3})
    assert steps(tmp_path) == [2]


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path):
    with writer(tmp_path) as w:
        for step in range(1, 8):
            w.step(step, {"loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')  # killed here
    with writer(tmp_path, resume=True) as w:
        assert steps(tmp_path) == list(range(1, 8))
        w.step(5, {"loss": 2.0})
        w.step(6, {"loss": 2.0})
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    losses = [line["loss"] for line in log.read_metrics(tmp_path / "metrics.jsonl")]
    assert losses == [1, 1, 1, 1, 2, 2]


def test_truncate_and_a_fresh_start(tmp_path):
    with writer(tmp_path) as w:
        for step in (1, 2, 3):
            w.step(step, {})
        w.truncate(1)
        assert steps(tmp_path) == [1]
        w.step(2, {})
    assert steps(tmp_path) == [1, 2]
    with writer(tmp_path) as w:  # not resumed
        w.step(1, {})
    assert steps(tmp_path) == [1]


def test_only_the_first_process_writes(tmp_path):
    with writer(tmp_path, active=False) as w:
        w.step(1, {"loss": 1.0})
        w.truncate(0)
        w.note("silence")
    assert not list(tmp_path.iterdir())


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2"):
        log.read_metrics(path)
    assert log.read_metrics(tmp_path / "absent.jsonl") == []


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.event_file_writer import EventFileWriter  # noqa: F401 - the package is whole
    from tensorboardX.proto import event_pb2

    with log.Writer(tmp_path, 10, c.LogConfig(), stream=io.StringIO()) as w:
        w.step(1, {"loss": 0.25, "bad": float("nan")})
        w.step(2, {"loss": 0.125})
    found = []
    for path in (tmp_path / "tensorboard").iterdir():
        data, at = path.read_bytes(), 0
        while at < len(data):  # records: length, its checksum, the event, its checksum
            size = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            at += 16 + size
    assert found == [(1, "loss", 0.25), (2, "loss", 0.125)]


# --- progress ---


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_come_now_and_then_and_at_the_end():
    now = [0.0]
    stream = io.StringIO()
    with Progress(10, stream=stream, every=10.0, clock=lambda: now[0]) as progress:
        for step in range(1, 9):
            now[0] += 60.0 if step == 1 else 4.0  # the first step compiles
            progress.update(step, {"reward": 0.5, "tokens/s": 1234.5})
        progress.note("a note")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 1/10  reward 0.500  tokens/s 1,234  1m00s"
    assert lines[-2] == "a note"
    lines.remove("a note")
    assert [line.split()[1] for line in lines] == ["1/10", "4/10", "7/10", "8/10"]
    assert lines[-1].endswith("1m28s, 8s left")  # two steps of 4 s, whatever the first took


def test_a_resumed_run_estimates_from_its_own_steps():
    now = [0.0]
    progress = Progress(100, stream=io.StringIO(), clock=lambda: now[0])
    assert progress.seconds_left() is None
    progress.update(51)
    assert progress.seconds_left() is None
    now[0] += 2.0
    progress.update(52)
    assert progress.seconds_left() == 96.0


def test_a_terminal_gets_a_bar():
    stream = Terminal()
    with Progress(3, stream=stream) as progress:
        progress.update(2, {"success": 0.25})
        progress.note("[look] here")
    text = stream.getvalue()
    assert "2/3" in text
    assert "success 0.250" in text
    assert "[look] here" in text


def test_the_writer_shows_what_it_finds(tmp_path):
    stream = io.StringIO()
    with log.Writer(tmp_path, 4, QUIET, stream=stream) as w:
        w.step(1, {"total": 0.75, "tokens_per_second": 2000.0, "kl": 1.0})
        w.note("evaluated")
    assert stream.getvalue().startswith("step 1/4  reward 0.750  tokens/s 2,000")
    assert "evaluated" in stream.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-0.0, "0"),
        (0.5, "0.500"),
        (12.34, "12.3"),
        (1234.5, "1,234"),
        (5e-7, "5e-07"),
        (-0.5, "-0.500"),
    ],
)
def test_numbers(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(("value", "text"), [(41.6, "42s"), (187, "3m07s"), (7500, "2h05m")])
def test_times(value, text):
    assert format_seconds(value) == text


# --- episodes ---


def episode(**changes):
    empty = np.zeros(0, np.float32)
    fields = {
        "question": 3,
        "sample": 1,
        "group": 0,
        "tokens": np.zeros(0, np.int32),
        "loss_mask": empty,
        "turn_index": np.zeros(0, np.int32),
        "logprobs": empty,
        "pictures": (),
        "texts": ("<ANSWER>up</ANSWER>", "<FINAL>up</FINAL>"),
        "spans": (),
        "rewards": {"total": np.float32(0.5), "format": 0.1},
        "mode": "roll_in",
        "prefix_turns": 1,
        "images": tuple((np.full((8, 6, 3), 40 * u, np.uint8),) for u in range(2)),
    }
    known = {f.name for f in dataclasses.fields(Episode)}
    return Episode(**{k: v for k, v in (fields | changes).items() if k in known})


def test_episodes_keep_every_picture_of_every_turn(tmp_path):
    path = log.save_episodes(tmp_path, 10, [episode(), episode(images=(), texts=("<x>",))])
    assert path == tmp_path / "episodes" / "step_000010.json"
    record = json.loads(path.read_text())
    assert record["step"] == 10
    first, second = record["episodes"]
    assert (first["mode"], first["prefix_turns"], first["question"]) == ("roll_in", 1, 3)
    assert first["rewards"] == {"total": 0.5, "format": 0.1}
    assert [turn["text"] for turn in first["turns"]] == list(episode().texts)
    for u, turn in enumerate(first["turns"]):
        (name,) = turn["pictures"]
        picture = np.asarray(Image.open(path.parent / name))
        np.testing.assert_array_equal(picture, episode().images[u][0])
    assert second["turns"] == [{"pictures": [], "prompt": None, "text": "<x>"}]


def test_a_picture_without_a_reply_is_kept(tmp_path):
    path = log.save_episodes(tmp_path, 1, [episode(texts=("one",))])
    turns = json.loads(path.read_text())["episodes"][0]["turns"]
    assert [turn["text"] for turn in turns] == ["one", None]
    assert turns[1]["pictures"] == ["step_000001/00_turn1_0.png"]
