"""The questions of a benchmark: its rows as records, read when they are asked for."""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from vrrl_jax.benchmarks import registry
from vrrl_jax.benchmarks.benchmark import Benchmark, Part
from vrrl_jax.benchmarks.config import BenchmarkEntry, SuiteConfig
from vrrl_jax.data import loading
from vrrl_jax.data.records import Id, Record
from vrrl_jax.rewards.extraction import number

GENERATED = 200  # questions of each generated split
SEED = 20_000_003  # of the generated ones


@dataclasses.dataclass(frozen=True, eq=False)
class Questions(Sequence):
    """The questions of an entry, in the order of its parts and their rows.

    Attributes:
      entry: what was asked for.
      benchmark: of that name.
      sources: records by part.
      index: (part, place in it) of each question.
      skipped: rows that are broken or of a kind that isn't taken, a line each.
      omitted: reason -> rows that can't be scored here.
    """

    entry: BenchmarkEntry
    benchmark: Benchmark
    sources: tuple[Sequence[Record], ...]
    index: tuple[tuple[int, int], ...]
    skipped: tuple[str, ...] = ()
    omitted: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Record:
        part, place = self.index[i]
        return self.sources[part][place]

    def id(self, i: int) -> str:
        """The id of question i; its row isn't read."""
        part, place = self.index[i]
        source = self.sources[part]
        if not isinstance(source, loading.Records):
            return str(source[place].id)
        row, which = map(int, source.index[place])
        return str(Id(source.source, row, which))


def load(config: SuiteConfig, entry: BenchmarkEntry) -> Questions:
    """Reads an entry's data; every row is looked at, pictures aren't decoded.

    Raises:
      FileNotFoundError: it isn't there; says where it was looked for.
      ValueError: too many broken rows, or no question.
    """
    benchmark = registry.get(entry.name)
    path, skipped, sources, index = config.path(entry), [], [], []
    omitted: collections.Counter[str] = collections.Counter()
    for part in _parts(benchmark, entry, path):
        if not benchmark.mapper:
            sources.append(_generated(entry, part))
        else:
            loaded = _load_part(benchmark, entry, path, part)
            sources.append(loaded.records)
            skipped += loaded.skipped
        kept = 0
        for place, record in enumerate(sources[-1]):
            if entry.limit is not None and kept >= entry.limit:
                break
            reason = benchmark.omit(record)
            if reason == "":
                index.append((len(sources) - 1, place))
                kept += 1
            elif reason is not None:
                omitted[reason] += 1
    if not index:
        why = "".join(f"; {n} of {reason}" for reason, n in omitted.items())
        raise ValueError(f"{path} holds no question of {benchmark.title}{why}")
    left = dict(sorted(omitted.items()))
    return Questions(entry, benchmark, tuple(sources), tuple(index), tuple(skipped), left)


def _parts(benchmark: Benchmark, entry: BenchmarkEntry, path: pathlib.Path) -> tuple[Part, ...]:
    """What to read: the entry's split, or all."""
    parts = benchmark.parts
    if len(parts) > 1 and entry.split is not None:
        parts = tuple(part for part in parts if part.name == entry.split)
    elif entry.split is not None:
        parts = (dataclasses.replace(parts[0], split=entry.split),)
    if len(parts) > 1 and (path.is_file() or "*" in str(path)):
        raise ValueError(
            f"{path}: {benchmark.title} is read from a folder; for one file name its split"
        )
    return parts


def _load_part(
    benchmark: Benchmark, entry: BenchmarkEntry, path: pathlib.Path, part: Part
) -> loading.Loaded:
    """Rows in the part's own folder, in the benchmark's, or one folder deeper (a subject each)."""
    source = f"{entry.name}-{part.name}" if part.name else entry.label
    # Where nothing is left out for its kind, no row behind the limit need be read.
    limit = None if benchmark.omit is not Benchmark.omit else entry.limit
    read = functools.partial(loading.load, mapper=benchmark.mapper, source=source, limit=limit)
    if not path.is_dir():
        return read(path)  # a file or a glob holds what is wanted, whatever its name says
    home = path / part.folder if (path / part.folder).is_dir() else path
    try:
        return read(home, split=part.split, folder=path)
    except FileNotFoundError as error:
        deeper = f"*/{part.split or ''}*.parquet"
        if not list(home.glob(deeper)):
            raise FileNotFoundError(f"{benchmark.title}: {error}") from error
        return read(home / deeper, folder=path)


def _generated(entry: BenchmarkEntry, part: Part) -> list[Record]:
    """Tables of our own with a question: its answer, or the cell that holds it."""
    from vrrl_jax.data import tables
    from vrrl_jax.render.tables import render, target_boxes

    records, index = [], 0
    wanted = entry.limit or GENERATED
    while len(records) < wanted:
        table, style = tables.example(SEED, part.name, index)
        index += 1
        cells = entry.name == "generated_cells"
        if cells and (len(table.targets) != 1 or table.kind == "count"):
            continue
        drawn = render(table, style)
        box = tuple(float(v) for v in target_boxes(table, drawn)[0])
        stream = io.BytesIO()
        Image.fromarray(np.asarray(drawn.image)).save(stream, "PNG")
        records.append(
            Record(
                id=Id(f"{entry.name}-{part.name}", index - 1),
                question=f"<image>{table.question}",
                pictures=(stream.getvalue(),),
                answer=str(list(box)) if cells else table.answer,
                kind="box" if cells else "text" if number(table.answer) is None else "number",
                boxes=(box,) if cells else (),
                category=part.name,
                extra={"kind": table.kind},
            )
        )
    return records
