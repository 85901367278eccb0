r"""Whether two pieces of LaTeX mean the same (math-verify), within limits that hold in any thread.

An expression like `9^{9^{9}}` takes for ever or all memory. math-verify's own time limit is a
signal, which only the main thread may set and which can't interrupt one long operation on big
integers. So the work is done in worker processes that outlive a question:

- texts of more than `LENGTH_LIMIT` characters, brackets more than `NESTING_LIMIT` deep, towers of
  three powers, exponents and factorials of six digits are refused unread;
- a question may take `seconds` of the worker's *processor* time (3 by default): a machine under
  load gives the same verdicts as an idle one. The kernel ends a worker that takes more, even where
  this process is gone; one that is silent for 60 times as long is ended from here;
- a worker may hold 2 GiB of memory.

A worker ends when its input closes, so none outlives this process. Up to four run side by side,
one a calling thread; further threads wait for one.
"""

from __future__ import annotations

import atexit
import contextlib
import decimal
import functools
import importlib.util
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Literal

Outcome = Literal["equal", "different", "unreadable", "refused", "timeout", "crash"]

LENGTH_LIMIT = 2_000
NESTING_LIMIT = 12
MEMORY_LIMIT = 2 << 30
_WORKERS = 4
_PATIENCE = 60  # seconds of waiting for a second of the worker's processor time
_START = 600.0  # seconds for a worker to import sympy, on a machine under load too
_BOMB = re.compile(
    r"(?:(?:\^|\*\*)\s*[{(]?\s*[\w.]{1,20}\s*){2}(?:\^|\*\*)"  # 9^{9^{9^9}}
    r"|(?:\^|\*\*)\s*[{(]?\s*-?\d{6}"
    r"|\d{6}\s*[)}]?\s*!"
)
_PLAIN = re.compile(r"[-+]?\d{1,15}(?:\.\d{1,6})?")

_idle: list[subprocess.Popen] = []
_lock = threading.Lock()
_slots = threading.BoundedSemaphore(_WORKERS)


def equivalent(answer: str, gold: str, *, seconds: float = 3.0) -> Outcome:
    r"""Whether an answer means what the gold one says. Not symmetric: `x=3` answers `3`.

    Args:
      answer, gold: what stands inside `\boxed{}`, without the box.
      seconds: of processor time; see the module.

    Returns:
      "equal" or "different"; "unreadable" where either can't be parsed; "refused"; "timeout";
      "crash" where the worker died or ran out of memory. Outcomes are remembered.

    Raises:
      ImportError: math-verify is not installed.
      RuntimeError: a worker can't be started; says why.
    """
    answer, gold = answer.strip(), gold.strip()
    if refused(answer) or refused(gold):
        return "refused"
    if not answer or not gold:
        return "unreadable"
    if answer == gold:
        return "equal"
    if _PLAIN.fullmatch(answer) and _PLAIN.fullmatch(gold):
        # Up to six decimals math-verify compares exactly, and so does this, without a worker.
        return "equal" if decimal.Decimal(answer) == decimal.Decimal(gold) else "different"
    return _remembered("equal", answer, gold, seconds)


def rounded(latex: str, *, seconds: float = 3.0) -> int | float | None:
    """A LaTeX expression's value rounded to two decimals, an int where it is one.

    None where it has no real value, can't be parsed, or breaks a limit.
    """
    latex = latex.strip()
    if not latex or refused(latex):
        return None
    value = _remembered("value", latex, "", seconds)
    return value if isinstance(value, int | float) else None


def failure(latex: str, *, seconds: float = 3.0) -> Literal["", "refused", "timeout", "crash"]:
    """Which limit kept `rounded` from a value; "" where none did."""
    if refused(latex):
        return "refused"
    outcome = _remembered("value", latex.strip(), "", seconds) if latex.strip() else ""
    return outcome if outcome in ("timeout", "crash") else ""


def same_value(a: str, b: str, *, seconds: float = 3.0) -> bool:
    """Whether the difference of two LaTeX expressions simplifies to nothing (EMMA's check)."""
    if not a.strip() or not b.strip() or refused(a) or refused(b):
        return False
    return _remembered("difference", a.strip(), b.strip(), seconds) is True


def refused(latex: str) -> bool:
    """Whether a text breaks a limit that is checked before anything parses it."""
    if len(latex) > LENGTH_LIMIT or _BOMB.search(latex):
        return True
    depth = deepest = 0
    for character in latex:
        if character in "{([":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "})]":
            depth -= 1
    return deepest > NESTING_LIMIT


def close() -> None:
    """Ends the idle workers; the next question starts one anew. Runs at exit by itself."""
    with _lock:
        ended = _idle[:]
        _idle.clear()
    for worker in ended:
        _end(worker)


@functools.lru_cache(maxsize=8192)
def _remembered(task: str, first: str, second: str, seconds: float) -> Any:
    with _slots:
        worker = _take()
        reply = None
        try:
            reply = _ask(worker, [task, first, second, seconds], seconds * _PATIENCE)
        finally:  # an interrupt may have left half a question in the pipe
            if reply is None:
                code = _end(worker)
        if reply is None:
            return "timeout" if code in (-signal.SIGPROF, None) else "crash"
        with _lock:
            _idle.append(worker)
        return reply[0]


def _take() -> subprocess.Popen:
    """An idle worker, or a new one that says it is ready."""
    with _lock:
        while _idle:
            worker = _idle.pop()
            if worker.poll() is None:
                return worker
            _end(worker)
    if importlib.util.find_spec("math_verify") is None:
        raise ImportError("comparing mathematics needs math-verify: pip install math-verify")
    # -P: the folder of this file must not shadow other modules' names.
    worker = subprocess.Popen(
        [sys.executable, "-P", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )
    if _line(worker, _START) is None:
        code = _end(worker)
        raise RuntimeError(f"the math-verify worker ended before it was ready (exit code {code})")
    return worker


def _ask(worker: subprocess.Popen, question: list[Any], seconds: float) -> Any:
    """A worker's reply; None where it died or kept silent."""
    try:
        worker.stdin.write(json.dumps(question).encode() + b"\n")
    except OSError:
        return None
    return _line(worker, seconds)


def _line(worker: subprocess.Popen, seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    received = b""
    with selectors.DefaultSelector() as waiting:
        waiting.register(worker.stdout, selectors.EVENT_READ)
        while not received.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not waiting.select(left):
                return None
            piece = os.read(worker.stdout.fileno(), 65536)
            if not piece:
                return None
            received += piece
    return json.loads(received)


def _end(worker: subprocess.Popen) -> int | None:
    """Ends a worker and gives the exit code it had of itself, None where it was still running."""
    for pipe in (worker.stdin, worker.stdout):
        with contextlib.suppress(OSError):
            pipe.close()
    try:  # its pipe closes a moment before it is gone
        return worker.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
        return None


def _forget() -> None:
    """After a fork: the workers belong to the parent, and a lock may have been held."""
    global _lock, _slots
    _idle.clear()
    _lock = threading.Lock()
    _slots = threading.BoundedSemaphore(_WORKERS)


atexit.register(close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


# What follows runs in the worker alone.


def _equal(answer: str, gold: str) -> Outcome:
    from math_verify import parse, verify

    a, b = (parse(rf"\boxed{{{t}}}", parsing_timeout=None) for t in (answer, gold))
    if not a or not b:
        return "unreadable"
    return "equal" if verify(b, a, timeout_seconds=None) else "different"


def _value(latex: str) -> int | float | None:
    from latex2sympy2_extended import latex2sympy

    expression = latex2sympy(latex).doit()
    if expression.is_Integer:
        return int(expression)
    value = round(float(expression.evalf()), 2)
    return value if value == value and abs(value) != float("inf") else None


def _difference(a: str, b: str) -> bool:
    from latex2sympy2_extended import latex2sympy
    from sympy import simplify

    return bool(simplify(latex2sympy(a) - latex2sympy(b)) == 0)


def _answer(task: str, first: str, second: str) -> Any:
    try:
        if task == "equal":
            return _equal(first, second)
        return _value(first) if task == "value" else _difference(first, second)
    except MemoryError:
        return "crash"
    except Exception:  # whatever a parser finds to raise on a text that a model wrote
        return "unreadable" if task == "equal" else None


def _serve() -> None:
    """Reads a question a line, writes an answer a line, until the input closes."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes the pipe
    out = os.dup(1)
    os.dup2(2, 1)  # parsers print
    _answer("equal", r"\frac{1}{2}", "0.5")  # the first parse builds tables, on nobody's time
    os.write(out, b"[true]\n")
    for line in sys.stdin.buffer:
        *question, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF, unhandled: the kernel ends us
        reply = _answer(*question)
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(out, json.dumps([reply]).encode() + b"\n")


if __name__ == "__main__":
    _serve()
