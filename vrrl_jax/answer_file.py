"""A JSON lines file of questions about pictures into one of replies, batch by batch.

What a reply draws depends on the seed and the question's place in the file alone, not on its
batch, and the output can be gone on with after any crash.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from vrrl_jax import answer, inference
from vrrl_jax.checkpoint import hf
from vrrl_jax.inference import Options
from vrrl_jax.models.policy import Policy, View
from vrrl_jax.processing import processor as processing
from vrrl_jax.processing.processor import Processor
from vrrl_jax.progress import Progress
from vrrl_jax.rollout import engine
from vrrl_jax.types import Sequence

ASKED = ("prompt", "image", "images", "messages")  # the fields of a record that make its question
ADDED = ("reply", "replies", "finish", "error")  # the fields that its output adds


@dataclasses.dataclass(frozen=True)
class Record:
    """A line of the input.

    Attributes:
      line: counted from 1.
      fields: what it holds; {} where it isn't a JSON object.
      error: why it isn't, or "".
    """

    line: int
    fields: dict[str, Any]
    error: str = ""

    @property
    def carried(self) -> dict[str, Any]:
        """The fields that go to the output as they are."""
        return {k: v for k, v in self.fields.items() if k not in (*ASKED, *ADDED)}


class Prepared(NamedTuple):
    """A record ready for the device: a sequence, or the reason why there is none."""

    record: Record
    sequence: Sequence | None
    error: str


def read_records(path: str | os.PathLike) -> list[Record]:
    """The records of a JSON lines file; blank lines don't count."""
    records = []
    # Bytes: what is broken on one line stays on it, and only b"\n" ends one.
    for line, raw in enumerate(pathlib.Path(path).read_bytes().split(b"\n"), 1):
        if not raw.strip():
            continue
        try:
            fields = json.loads(raw.decode("utf-8-sig"))
            if not isinstance(fields, dict):
                raise ValueError(f"expected a JSON object, not {type(fields).__name__}")
            records.append(Record(line, fields))
        except (ValueError, RecursionError) as error:
            records.append(Record(line, {}, f"no valid record: {error}"))
    return records


def _question(
    fields: dict[str, Any], directory: pathlib.Path, system: str | None
) -> answer.Question:
    """The question of a record, paths relative to `directory`; a null field counts as absent."""
    fields = {name: value for name, value in fields.items() if value is not None}
    if ("prompt" in fields) == ("messages" in fields):
        raise ValueError("a record needs a prompt or messages, one of them")
    if "image" in fields and ("images" in fields or "messages" in fields):
        raise ValueError("image stands beside a prompt, and not with images")
    if "messages" in fields:
        if "images" in fields:
            raise ValueError("images stand beside a prompt; messages name their pictures in parts")
        return answer.read_messages(fields["messages"], directory, system)
    paths = [fields["image"]] if "image" in fields else fields.get("images", [])
    if not isinstance(paths, list) or not all(isinstance(p, str) and p for p in paths):
        raise ValueError('pictures are named as "image": "PATH" or "images": ["PATH", ...]')
    if not isinstance(fields["prompt"], str):
        raise ValueError(f"prompt must be a text, not {type(fields['prompt']).__name__}")
    return answer.ask(
        fields["prompt"], [directory / answer.local_path({"image": p}) for p in paths], system
    )


def _prepare(
    processor: Processor, record: Record, directory: pathlib.Path, system: str | None
) -> Prepared:
    """Reads a record's pictures; whatever is wrong with it is its own affair."""
    if record.error:
        return Prepared(record, None, f"line {record.line}: {record.error}")
    try:
        question = _question(record.fields, directory, system)
        return Prepared(record, answer.tokenise(processor, question), "")
    except (OSError, ValueError) as error:
        return Prepared(record, None, f"line {record.line}: {error}")


def decode_batch(
    policy: Policy,
    view: View,
    sequences: list[Sequence],
    questions: list[int],
    options: Options,
    key: jax.Array,
    rows: int,
) -> engine.Decoded:
    """n replies to each of at most `rows` prompts: row b * n + i is reply i to prompt b.

    Args:
      questions: what a prompt's draws depend on, beside the key.
      rows: prompts that the program is made for; those that are missing decode nothing.
    """
    n, live = options.n, len(sequences)
    state = inference.prefill(policy, view, sequences, options, rows)
    numbers = np.zeros(rows, np.int32)
    numbers[:live] = questions
    samples = np.tile(np.arange(n, dtype=np.int32), rows)
    _, out = engine.decode(
        policy,
        view,
        state,
        np.repeat(np.arange(rows) < live, n),
        engine.make_keys(key, 0, np.repeat(numbers, n), samples, 0),
        options.sampling,
        options.stops(policy),
        options.max_new_tokens,
        options.max_new_tokens,
    )
    return out


def read_reply(processor: Processor, out: engine.Decoded, row: int) -> tuple[str, str]:
    """(text, "stop" or "length") of a row of what `decode_batch` gave, on the host."""
    text = processing.decode(processor, out.tokens[row, : out.lengths[row]])
    return text, "stop" if out.stopped[row] else "length"


def _results(
    processor: Processor, batch: list[Prepared], out: engine.Decoded | None, n: int
) -> list[dict[str, Any]]:
    """The output records of a batch, in its order."""
    results, row = [], 0
    for record, sequence, error in batch:
        if sequence is None:
            results.append(record.carried | {"error": error})
            continue
        read = [read_reply(processor, out, r) for r in range(row, row + n)]
        replies, finish = map(list, zip(*read, strict=True))
        several = {"replies": replies, "finish": finish}
        one = {"reply": replies[0], "finish": finish[0]}
        results.append(record.carried | (several if n > 1 else one))
        row += n
    return results


def to_line(fields: dict[str, Any]) -> bytes:
    """A JSON object as a line."""
    try:
        return json.dumps(fields, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate in a carried field
        return json.dumps(fields).encode() + b"\n"


def whole_lines(target: pathlib.Path) -> tuple[list[bytes], int]:
    """A file's lines without their ends, and the bytes of all; a torn last one isn't among them."""
    raw = target.read_bytes()
    size = raw.rfind(b"\n") + 1
    return raw[:size].split(b"\n")[:-1], size


def _written(target: pathlib.Path, records: list[Record]) -> tuple[list[dict[str, Any]], int]:
    """The output's whole lines, and their bytes; a torn last line isn't among them.

    Raises:
      ValueError: the lines don't belong to these records.
    """
    found, size = whole_lines(target)
    if len(found) > len(records):
        raise ValueError(f"{target} has {len(found)} records, the input only {len(records)}")
    results = []
    for i, (line, record) in enumerate(zip(found, records, strict=False), 1):
        try:
            fields = json.loads(line)
            carried = {k: v for k, v in fields.items() if k not in ADDED}
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{target}, line {i}: no output record: {error}") from error
        if to_line(carried) != to_line(record.carried) or len(fields) == len(carried):
            raise ValueError(f"{target}, line {i}, is no reply to line {record.line} of the input")
        results.append(fields)
    return results, size


def main(
    checkpoint: str,
    source: str | os.PathLike,
    target: str | os.PathLike,
    options: Options,
    *,
    seed: int = 0,
    system: str | None = None,
    batch_size: int = 8,
    resume: bool = False,
) -> None:
    """Answers a JSON lines file into another, batch by batch; a record that can't be is told there.

    Args:
      checkpoint: a Hugging Face directory, or "nano".
      source: {"prompt": ..., "image": path or "images": [paths]} or {"messages": [...]} a line,
        paths relative to the file. Other fields are carried over.
      target: gets "reply" and "finish" ("stop" or "length"), lists named "replies" and "finish"
        where n > 1, or "error"; in the order of the source.
      resume: go on after the whole lines of the target.

    Raises:
      FileExistsError: there is a target, and no `resume`.
      ValueError: the target belongs to another source, or every record failed.
    """
    source, target = pathlib.Path(source), pathlib.Path(target)
    records = read_records(source)
    if target.exists() and not resume:
        raise FileExistsError(f"{target} exists; --resume goes on after its records")
    if target.exists() and target.samefile(source):
        raise ValueError(f"{target} is the input")
    results, size = _written(target, records) if target.exists() else ([], 0)
    processor = processing.load_processor(hf.load_policy(checkpoint).directory)
    policy, view = answer.load_view(checkpoint)
    target.parent.mkdir(parents=True, exist_ok=True)
    rows, key = max(1, min(batch_size, len(records))), jax.random.key(seed)
    errors = [r["error"] for r in results if "error" in r]

    def prepare(start: int) -> list[Prepared]:
        part = records[start : start + rows]
        return [_prepare(processor, record, source.parent, system) for record in part]

    def launch(start: int, batch: list[Prepared]) -> engine.Decoded | None:
        live = [i for i, item in enumerate(batch) if item.sequence is not None]
        if not live:
            return None
        sequences, numbers = [batch[i].sequence for i in live], [start + i for i in live]
        return decode_batch(policy, view, sequences, numbers, options, key, rows)

    # A batch holds the same records however often the run was stopped: the same bits come out.
    starts = range(len(results) // rows * rows, len(records), rows)
    with open(target, "ab") as out, Progress(len(records), unit="record") as bar:
        out.truncate(size)
        began, tokens = time.monotonic(), 0
        for start, batch, decoded in _pipeline(starts, prepare, launch):
            new = _results(processor, batch, decoded, options.n)[max(0, len(results) - start) :]
            out.write(b"".join(map(to_line, new)))
            out.flush()
            tokens += 0 if decoded is None else int(decoded.lengths.sum())
            errors += [r["error"] for r in new if "error" in r]
            rate = tokens / (time.monotonic() - began)
            bar.update(start + len(batch), {"tokens/s": rate, "failed": len(errors)})
    if records and len(errors) == len(records):
        raise ValueError(f"all {len(records)} records failed, the first: {errors[0]}")
    told = f", {len(errors)} failed, the first: {errors[0]}" if errors else ""
    print(f"{target}: {len(records) - len(errors)} answered{told}")


def _pipeline(starts: range, prepare: Callable, launch: Callable) -> Iterator[tuple]:
    """(start, batch, decoded) of every batch; the next one is read while the device decodes."""
    coming = prepare(starts[0]) if starts else []
    for start in starts:
        batch, decoded = coming, launch(start, coming)
        coming = prepare(start + starts.step)
        yield start, batch, jax.device_get(decoded)
