"""A progress bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import collections
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO


class Progress:
    """A bar on a terminal; elsewhere a line now and then, and one at the end.

    Args:
      total: the last step's number.
      unit: what is counted.
      stream: where to write; None is stderr.
      every: seconds between lines where there is no terminal.
      clock: seconds that never go back.
    """

    def __init__(
        self,
        total: int,
        *,
        unit: str = "step",
        stream: TextIO | None = None,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._unit = total, unit
        self._stream, self._every, self._clock = stream or sys.stderr, every, clock
        self._began = clock()
        self._last: tuple[int, float] | None = None
        self._written: float | None = None
        self._pending = ""
        self._seconds: collections.deque[float] = collections.deque(maxlen=20)
        self._bar = self._task = None
        if self._stream.isatty():
            self._open_bar()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def update(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """Moves on to `step` and shows `values` in their order."""
        now = self._clock()
        # The first update holds compilation, and all the steps before a resumed run.
        if self._last is not None and step > self._last[0]:
            self._seconds.append((now - self._last[1]) / (step - self._last[0]))
        self._last = step, now
        figures = [f"{name} {format_number(value)}" for name, value in (values or {}).items()]
        left = self.seconds_left()
        times = f"{format_seconds(now - self._began)}"
        times += f", {format_seconds(left)} left" if left is not None else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text="  ".join([*figures, times]))
            return
        self._pending = "  ".join([f"{self._unit} {step}/{self._total}", *figures, times])
        if self._written is None or now - self._written >= self._every:
            self._write_pending()
            self._written = now

    def seconds_left(self) -> float | None:
        """From the median of the last steps; None before the second."""
        if not self._seconds:
            return None
        return statistics.median(self._seconds) * max(0, self._total - self._last[0])

    def note(self, text: str) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Writes the last state, if it wasn't yet."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._write_pending()

    def _write_pending(self) -> None:
        if self._pending:
            print(self._pending, file=self._stream, flush=True)
            self._pending = ""

    def _open_bar(self) -> None:
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn(self._unit),
            progress.MofNCompleteColumn(),
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.fields[text]}", markup=False),
            console=Console(file=self._stream),
        )
        self._task = self._bar.add_task("", total=self._total, text="")
        self._bar.start()


@contextlib.contextmanager
def bytes_bar(
    what: str,
    *,
    after: float = 1.0,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[int, int], None]]:
    """A function of (bytes done, bytes in all) that shows them, in MB, as a bar or as lines.

        with bytes_bar("read") as progress:
            policy, params = vr.load_pretrained(directory, progress=progress)

    Args:
      what: is done to the bytes, such as "read".
      after: seconds before which nothing is shown: what is quick stays silent.
      stream, clock: as for `Progress`.
    """
    began = clock()
    with contextlib.ExitStack() as stack:
        bar: Progress | None = None
        shown = 0

        def progress(done: int, total: int) -> None:
            nonlocal bar, shown
            if bar is None and clock() - began >= after and done < total:
                bar = Progress(round(total / 1e6), unit=f"MB {what}", stream=stream, clock=clock)
                stack.enter_context(bar)
            if bar is not None and (done // 10**6 > shown or done == total):
                shown = done // 10**6
                bar.update(round(done / 1e6))

        yield progress


def format_number(value: float) -> str:
    """Three digits that matter: 0.512, 12.3, 1,234, 5e-07."""
    if value == 0:
        return "0"  # -0.0 too
    if 100 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.3f}" if 0.01 <= abs(value) < 1 else f"{value:.3g}"


def format_seconds(seconds: float) -> str:
    """42s, 3m07s, 2h05m."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest}s"
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
