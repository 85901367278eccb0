"""Asks a benchmark and keeps every reply, batch by batch, so that a killed run goes on.

What a reply draws depends on the seed, the benchmark, the mode, the question and the sample, not on
its batch.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from vrrl_jax.answer import Question
from vrrl_jax.answer_file import to_line, whole_lines
from vrrl_jax.benchmarks import prompting
from vrrl_jax.benchmarks.config import BenchmarkEntry, SuiteConfig
from vrrl_jax.benchmarks.model import Answer, Call, Reply
from vrrl_jax.benchmarks.questions import Questions
from vrrl_jax.data.records import Record
from vrrl_jax.progress import Progress


def settings(config: SuiteConfig) -> dict[str, Any]:
    """What replies depend on, beside the question: stands in every prediction."""
    drawn = dataclasses.asdict(config.sampling)
    names = ("min_pixels", "max_pixels", "max_prompt_tokens", "system")
    return drawn | {name: getattr(config, name) for name in names}


def target(output: pathlib.Path, entry: BenchmarkEntry, mode: str) -> pathlib.Path:
    """The file of an entry's predictions in one mode."""
    return output / "predictions" / f"{entry.label}.{mode}.jsonl"


def ask(
    asked: Questions,
    mode: str,
    config: SuiteConfig,
    answer: Answer,
    path: pathlib.Path,
    *,
    coordinates: str = "pixel",
    resume: bool = False,
) -> None:
    """Answers all questions in one mode into a file of predictions, a line each reply.

    Args:
      asked: the questions.
      mode: out of `prompting.TURNS`.
      config: of the suite.
      answer: what replies.
      path: of the predictions.
      coordinates: of boxes in the model's own form.
      resume: go on after the whole lines of the file.

    Raises:
      FileExistsError: there is a file, and no `resume`.
      ValueError: the file holds other questions or other settings, or every question failed.
    """
    samples, rows = config.sampling.samples, config.batch_size
    total = len(asked) * samples
    heads = _Heads(asked, mode, config)
    done, size = _written(path, heads, total, resume)
    path.parent.mkdir(parents=True, exist_ok=True)
    failed = sum("error" in fields for fields in done)
    first = next((fields["error"] for fields in done if "error" in fields), "")
    # A batch holds the same questions however often the run was stopped.
    starts = range(len(done) // rows * rows, total, rows)
    with open(path, "ab") as out, Progress(total, unit="reply") as bar:
        out.truncate(size)
        for start, batch in _read_ahead(asked, mode, config, starts, total):
            lines = _answered(asked, mode, heads, batch, start, answer, coordinates)
            new = lines[max(0, len(done) - start) :]
            out.write(b"".join(map(to_line, new)))
            out.flush()
            errors = [fields["error"] for fields in new if "error" in fields]
            failed, first = failed + len(errors), first or next(iter(errors), "")
            bar.update(start + len(batch), {"failed": failed})
    if failed == total:
        raise ValueError(f"{asked.entry.label}: all {total} failed, the first: {first}")


class _Heads(NamedTuple):
    """The fields that open every prediction."""

    asked: Questions
    mode: str
    config: SuiteConfig

    def of(self, number: int) -> dict[str, Any]:
        """Those of reply `number`: questions in order, the samples of each together."""
        question, sample = divmod(number, self.config.sampling.samples)
        entry, benchmark = self.asked.entry, self.asked.benchmark
        return {
            "benchmark": entry.label,
            "id": self.asked.id(question),
            "mode": self.mode,
            "prompt": prompting.prompt_id(benchmark, self.mode, entry.prompt),
            "sample": sample,
            "model": self.config.model,
            "sampling": settings(self.config),
        }


def _written(
    path: pathlib.Path, heads: _Heads, total: int, resume: bool
) -> tuple[list[dict[str, Any]], int]:
    """The predictions that are there, and the bytes of their lines.

    Raises:
      FileExistsError: there are, and they aren't to be gone on with.
      ValueError: they are of other questions or settings; says which field differs.
    """
    if not path.exists():
        return [], 0
    if not resume:
        raise FileExistsError(f"{path} exists; --resume goes on after its replies")
    lines, size = whole_lines(path)
    if len(lines) > total:
        raise ValueError(f"{path} has {len(lines)} replies, only {total} are asked for")
    done = []
    for number, line in enumerate(lines):
        try:
            fields = json.loads(line)
            expected = json.loads(json.dumps(heads.of(number)))
            other = [name for name, value in expected.items() if fields.get(name) != value]
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path}, line {number + 1}: no prediction: {error}") from error
        if other:
            was, now = fields.get(other[0]), expected[other[0]]
            raise ValueError(
                f"{path}, line {number + 1}: {other[0]} was {was!r} and is {now!r} now; a run goes "
                "on with the settings it began with"
            )
        done.append(fields)
    return done, size


class Opened(NamedTuple):
    """A question ready to be asked: a chat, or the reason why there is none."""

    record: Record
    chat: Question | None
    error: str


def open_question(asked: Questions, mode: str, config: SuiteConfig, number: int) -> Opened:
    record = asked[number // config.sampling.samples]
    try:
        prompt = asked.entry.prompt
        chat = prompting.question(asked.benchmark, record, mode, prompt, config.system)
        return Opened(record, chat, "")
    except (OSError, ValueError) as error:
        return Opened(record, None, f"{record.id}: {error}")


def _read_ahead(
    asked: Questions, mode: str, config: SuiteConfig, starts: range, total: int
) -> Iterator[tuple[int, list[Opened]]]:
    """(start, batch) of every batch; the next one's pictures are read while this one is asked."""

    def read(start: int) -> list[Opened]:
        stop = min(start + config.batch_size, total)
        return [open_question(asked, mode, config, number) for number in range(start, stop)]

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        coming = pool.submit(read, starts[0]) if starts else None
        for start in starts:
            batch = coming.result()
            if start + starts.step < total:
                coming = pool.submit(read, start + starts.step)
            yield start, batch


def _answered(
    asked: Questions,
    mode: str,
    heads: _Heads,
    batch: list[Opened],
    start: int,
    answer: Answer,
    coordinates: str,
) -> list[dict[str, Any]]:
    """The predictions of a batch: every turn of all its questions that go on."""
    chats, errors = [item.chat for item in batch], [item.error for item in batch]
    replies: list[list[Reply]] = [[] for _ in batch]
    for turn in range(prompting.TURNS[mode]):
        live = [i for i, chat in enumerate(chats) if chat is not None]
        if not live:
            break
        if turn:
            for i in live:
                text = prompting.follow(asked.benchmark, batch[i].record, mode, turn)
                chats[i] = prompting.go_on(chats[i], replies[i][-1].text, text)
        stream = zlib.crc32(f"{asked.entry.label} {mode} {turn}".encode()) & 0x7FFFFFFF
        calls = [Call(chats[i], start + i, stream) for i in live]
        for i, reply in zip(live, answer(calls), strict=True):
            replies[i].append(reply)
            if reply.error:
                chats[i], errors[i] = None, f"{batch[i].record.id}, turn {turn + 1}: {reply.error}"
    return [
        heads.of(start + i)
        | ({"error": errors[i]} if errors[i] else _body(asked, item, mode, replies[i], coordinates))
        for i, item in enumerate(batch)
    ]


def _body(
    asked: Questions, item: Opened, mode: str, replies: list[Reply], coordinates: str
) -> dict[str, Any]:
    """A prediction's own fields."""
    cut = any(reply.finish == "length" for reply in replies)
    fields: dict[str, Any] = {"reply": replies[-1].text, "finish": "length" if cut else "stop"}
    if len(replies) > 1:
        fields["turns"] = [reply.text for reply in replies]
    if item.record.kind == "box":
        own = mode in ("direct", "reflect")
        prompt = asked.entry.prompt or next(iter(asked.benchmark.prompts))
        native = own and prompt in asked.benchmark.native
        fields["coordinates"] = coordinates if native else "unit"
        fields["shown"] = [list(size) for size in replies[-1].shown]
    return fields
