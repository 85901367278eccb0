"""What a run leaves behind while it goes: metrics, a progress line, episodes to look at.

run_dir/
  config.yaml       the resolved configuration
  command.txt       how the run was started, one line a start
  metrics.jsonl     one object a step
  tensorboard/      the same for TensorBoard
  episodes/         step_000010.json and the pictures in step_000010/
"""

from __future__ import annotations

import datetime
import json
import math
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

import numpy as np

from vrrl_jax.config import LogConfig, SftConfig, TrainConfig, to_yaml
from vrrl_jax.parallel import distributed
from vrrl_jax.progress import Progress
from vrrl_jax.types import Episode

# What the progress line shows, and the metrics it may be read from, the first one found.
SHOWN: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("reward", ("reward", "reward/total", "total")),
    ("success", ("success", "reward/final_em", "final_em")),
    ("loss", ("loss",)),
    ("tokens/s", ("tokens_per_second",)),
)


# --- the directory of a run --------------------------------------------------------------------


def default_run_dir(recipe: str | pathlib.Path, now: datetime.datetime | None = None) -> str:
    """runs/<name of the recipe>-<time>."""
    stamp = (now or datetime.datetime.now()).strftime("%Y%m%d-%H%M%S")
    return str(pathlib.Path("runs") / f"{pathlib.Path(recipe).stem}-{stamp}")


def open_run(
    config: TrainConfig | SftConfig, *, resume: bool = False, command: str | None = None
) -> pathlib.Path:
    """Makes the run's directory and writes how it was started.

    On several processes every one must call this; the first writes, and all go where it does.

    Args:
      config: `run_dir` None takes a new one named after the kind of the run.
      resume: go on in a directory that is there. The configuration is written again, an earlier
        one that differs is kept as config.<n>.yaml.
      command: as typed; None takes the program's own arguments.

    Raises:
      FileExistsError: the directory holds a run, and this one doesn't resume it.
      FileNotFoundError: there is nothing to resume, or another process can't see the directory.
      Disagreement: processes have other configurations.
    """
    distributed.agree("start", configuration=to_yaml(config))
    opened, failed = "", None
    if distributed.first():
        try:
            opened = str(_begin(config, resume, command))
        except OSError as error:
            failed = error
    distributed.agree_on_error(failed)
    run_dir = pathlib.Path(distributed.broadcast(opened))
    if distributed.several() and not distributed.gathered(_appears(run_dir / "config.yaml")).all():
        raise FileNotFoundError(
            f"{run_dir} must lie on a file system that all processes share: not every one "
            "sees what the first one wrote there"
        )
    return run_dir


def _appears(path: pathlib.Path, seconds: float = 30.0) -> np.ndarray:
    """bool [1], whether a file shows up within some seconds: network file systems take their
    time."""
    until = time.monotonic() + seconds
    while not path.is_file() and time.monotonic() < until:
        time.sleep(0.5)
    return np.array([path.is_file()])


def _begin(config: TrainConfig | SftConfig, resume: bool, command: str | None) -> pathlib.Path:
    kind = "sft" if isinstance(config, SftConfig) else "train"
    if resume and config.run_dir is None:
        raise FileNotFoundError("--resume needs the run to go on with: give run_dir=runs/...")
    run_dir = pathlib.Path(config.run_dir or default_run_dir(kind))
    resolved, text = run_dir / "config.yaml", to_yaml(config)
    if resume and not resolved.is_file():
        raise FileNotFoundError(f"nothing to resume at {run_dir}: it has no config.yaml")
    if not resume and resolved.exists():
        raise FileExistsError(f"{run_dir} holds a run: add --resume, or give another run_dir")
    run_dir.mkdir(parents=True, exist_ok=True)
    if resolved.exists() and resolved.read_text(encoding="utf-8") != text:
        earlier = len(list(run_dir.glob("config.*.yaml")))
        resolved.rename(run_dir / f"config.{earlier}.yaml")
    write_atomically(resolved, text)
    with open(run_dir / "command.txt", "a", encoding="utf-8") as file:
        typed = [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
        file.write((command or shlex.join(typed)) + "\n")
    return run_dir


def write_atomically(path: pathlib.Path, text: str) -> None:
    """A reader, and a run that is killed, never see half a file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


# --- metrics -----------------------------------------------------------------------------------


class Writer:
    """The metrics of a run, as a context: JSONL, TensorBoard, and the progress line.

    The first step that is written drops what a killed run wrote from that step on, so that a
    resumed run's file reads like that of one that was never killed.

    Args:
      run_dir: an existing directory.
      steps: of the whole run.
      config: of logging.
      resume: keep what metrics.jsonl holds, until the first step is written.
      active: False writes nothing, for all processes of a run but the first.
      stream: where progress goes; None is stderr.
    """

    def __init__(
        self,
        run_dir: str | pathlib.Path,
        steps: int,
        config: LogConfig | None = None,
        *,
        resume: bool = False,
        active: bool = True,
        stream: TextIO | None = None,
    ):
        self.path = pathlib.Path(run_dir) / "metrics.jsonl"
        self._active, self._stream = active, stream
        self._tensorboard = (config or LogConfig()).tensorboard
        self._last: int | None = None
        self._file = self._events = None
        self._progress = Progress(steps, stream=stream) if active else None
        if active and not resume:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def truncate(self, step: int) -> None:
        """Drops every line after `step`, and one that was cut while it was written."""
        self._last = None
        if self._active:
            self._close_files()
            kept = [line for line in read_metrics(self.path) if line["step"] <= step]
            text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in kept)
            write_atomically(self.path, text)

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one line and moves the progress on.

        Args:
          step: counted from 1, greater than the one before.
          metrics: scalars of Python, numpy or jax. One that isn't finite is written as null.

        Raises:
          ValueError: `step` doesn't go forward; or a metric is no scalar, or has a name that the
            writer takes itself: names it.
        """
        if self._last is not None and step <= self._last:
            raise ValueError(f"step {step} was written after step {self._last}")
        if "step" in metrics or "time" in metrics:
            raise ValueError("metrics 'step' and 'time' are written by themselves")
        values = {name: _scalar(name, value) for name, value in metrics.items()}
        if self._active:
            self._open(step)
            line = {"step": step, "time": round(time.time(), 3)} | values
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
            for name, value in values.items():
                if self._events is not None and value is not None:
                    self._events.add_scalar(name, value, step)
            if self._progress is not None:
                self._progress.update(step, shown(values))
        self._last = step

    def note(self, text: str) -> None:
        """A line for people, above the progress."""
        if self._progress is not None:
            self._progress.note(text)
        elif self._active:
            print(text, file=self._stream or sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the progress line and closes the files."""
        if self._progress is not None:
            self._progress.close()
            self._progress = None
        self._close_files()

    def _open(self, step: int) -> None:
        if self._file is None:
            self.truncate(step - 1)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close
            if self._tensorboard:
                from tensorboardX import SummaryWriter

                folder = str(self.path.parent / "tensorboard")
                self._events = SummaryWriter(folder, purge_step=step, flush_secs=10)

    def _close_files(self) -> None:
        for file in (self._file, self._events):
            if file is not None:
                file.close()
        self._file = self._events = None


def read_metrics(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; [] without a file. A cut last line is left out.

    Raises:
      ValueError: another line is broken; names file and line.
    """
    path = pathlib.Path(path)
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    records = []
    for number, line in enumerate(lines, 1):
        if number == len(lines):
            break  # What follows the last line end was never finished, or is empty.
        try:
            record = json.loads(line)
            record["step"] = int(record["step"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}:{number}: not a line of metrics: {line[:80]!r}") from error
        records.append(record)
    return records


def shown(values: Mapping[str, float | None]) -> dict[str, float]:
    """The metrics that the progress line shows, by their short names."""
    found = {}
    for label, names in SHOWN:
        for name in names:
            if values.get(name) is not None:
                found[label] = values[name]
                break
    return found


def _scalar(name: str, value: Any) -> float | int | None:
    if isinstance(value, bool | int):
        return int(value)
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metric {name} must be a scalar, got {value!r}") from error
    # JSON has no NaN, and most readers refuse the word.
    return number if math.isfinite(number) else None


# --- episodes ----------------------------------------------------------------------------------


def save_episodes(
    run_dir: str | pathlib.Path, step: int, episodes: Iterable[Episode]
) -> pathlib.Path:
    """Writes episodes/step_<step>.json, and every picture of every turn as a PNG beside it.

    Turn u shows the pictures `images[u]` and answers `texts[u]`; either may be missing at the end.
    Of several processes the first one writes.
    """
    from PIL import Image

    name = f"step_{step:06d}"
    folder = pathlib.Path(run_dir) / "episodes"
    if not distributed.first():
        return folder / f"{name}.json"
    (folder / name).mkdir(parents=True, exist_ok=True)
    records = []
    for i, episode in enumerate(episodes):
        turns = []
        for u in range(max(len(episode.images), len(episode.texts))):
            shown = episode.images[u] if u < len(episode.images) else ()
            files = [f"{name}/{i:02d}_turn{u}_{k}.png" for k in range(len(shown))]
            for file, image in zip(files, shown, strict=True):
                Image.fromarray(image).save(folder / file, optimize=True)
            text = episode.texts[u] if u < len(episode.texts) else None
            prompt = episode.prompts[u] if u < len(episode.prompts) else None
            turns.append({"pictures": files, "prompt": prompt, "text": text})
        records.append(
            {
                "question": int(episode.question),
                "group": int(episode.group),
                "sample": int(episode.sample),
                "mode": episode.mode,
                "prefix_turns": int(episode.prefix_turns),
                "prefix_right": bool(episode.prefix_right),
                "truncated": bool(episode.truncated),
                "rewards": {key: _scalar(key, value) for key, value in episode.rewards.items()},
                "turns": turns,
            }
        )
    path = folder / f"{name}.json"
    write_atomically(path, json.dumps({"step": step, "episodes": records}, indent=1))
    return path
