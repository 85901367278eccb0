"""Records as data sets of TFDS, written and read without TensorFlow.

TFDS's own writer keeps a whole split in memory, and beyond a gigabyte of it calls TensorFlow: so
`write` streams into the same files. `builder` is for those who use TFDS's tools.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vrrl_jax.data import stored
from vrrl_jax.data.loading import Records, allowed_bad
from vrrl_jax.data.records import Record
from vrrl_jax.data.tfds_rows import RANDOM_ACCESS, TfdsRows, import_tfds

SHARD_BYTES = 512 * 2**20
# Protocol buffers end at 2 GiB, and a row has to fit in memory a few times.
MAX_ROW = 2**30
_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}")
_SPLIT = re.compile(r"[a-zA-Z][a-zA-Z0-9_]{0,99}")
_VERSION = re.compile(r"\d{1,9}\.\d{1,9}\.\d{1,9}")


def features():
    """The columns of a stored record: pictures as encoded bytes, boxes exact, `extra` as JSON."""
    kinds = import_tfds().features
    texts = ("source", "question", "answer", "kind", "category", "extra")
    return kinds.FeaturesDict(
        {name: kinds.Text() for name in texts}
        | {name: kinds.Scalar(np.int64) for name in ("row", "part")}
        | {name: kinds.Sequence(kinds.Text()) for name in ("options", "accepted")}
        | {
            "pictures": kinds.Sequence(kinds.Tensor(shape=(), dtype=np.object_)),
            # Numbers of float64 would lose half of their digits; bytes keep them.
            "boxes": kinds.Tensor(shape=(None, 4), dtype=np.float64, encoding="bytes"),
        }
    )


def to_example(record: Record) -> dict[str, Any]:
    """A record as `features` take it.

    Raises:
      ValueError: it is too large, or a picture's file is.
      OSError: a picture's file can't be read.
    """
    row = stored.to_row(record)
    size = sum(map(len, row["pictures"])) + len(row["extra"]) + len(row["question"])
    if size > MAX_ROW:
        raise ValueError(f"a row of {size} bytes, at most {MAX_ROW} are stored")
    return row | {"boxes": np.asarray(row["boxes"], np.float64).reshape(-1, 4)}


# --- writing -----------------------------------------------------------------------------------


class Written(NamedTuple):
    """What was written.

    Attributes:
      folder: of the data set's version: what `read` takes.
      counts: records by split.
      skipped: records that couldn't be stored, a line each.
    """

    folder: pathlib.Path
    counts: dict[str, int]
    skipped: list[str]


def write(
    records: Iterable[Record] | Mapping[str, Iterable[Record]],
    directory: str | pathlib.Path,
    name: str,
    *,
    split: str = "train",
    version: str = "1.0.0",
    description: str = "",
    max_bad: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Written:
    """Writes records, in their order, as the data set `directory`/`name`/`version`.

    All of it appears at once when it is complete. Memory holds a record at a time.

    Args:
      records: of one split; or by split, several.
      directory: the data folder of TFDS.
      name: lower case, digits and "_".
      split: the name of the split, where there is one.
      version: three numbers.
      description: goes into the data set's own.
      max_bad: records allowed whose pictures can't be read; None: as `loading.load`.
      progress: told how many records are done.

    Raises:
      FileExistsError: there is such a version.
      ValueError: an unfit name, no records, or too many that can't be stored.
    """
    tfds = import_tfds()
    splits = dict(records) if isinstance(records, Mapping) else {split: records}
    for text, pattern in ((name, _NAME), (version, _VERSION), *((key, _SPLIT) for key in splits)):
        if not pattern.fullmatch(text):
            raise ValueError(f"{text!r} is no name of TFDS: expected {pattern.pattern}")
    folder = pathlib.Path(directory).expanduser() / name / version
    skipped: list[str] = []
    done = itertools.count(1)
    shards = {}
    with _whole(folder) as unfinished:
        for key, items in splits.items():
            rows = _serialized(items, f"{name}, {key}", skipped, max_bad)
            told = (progress(next(done)) or row for row in rows) if progress else rows
            shards[key] = _write_split(unfinished, f"{name}-{key}", told)
            if not shards[key][0]:
                raise ValueError(f"{name}, {key}: there are no records to write")
        _describe(tfds, unfinished, shards, name, version, description)
    return Written(folder, {key: sum(lengths) for key, (lengths, _) in shards.items()}, skipped)


def _serialized(
    records: Iterable[Record], where: str, skipped: list[str], max_bad: int | None
) -> Iterator[bytes]:
    """Records as rows of the files; those that can't be stored are named in `skipped`.

    Raises:
      ValueError: too many.
    """
    serialize = features().serialize_example
    bad, seen = [], 0
    for record in records:
        seen += 1
        try:
            row = serialize(to_example(record))
        except (ValueError, OSError) as error:
            bad.append(f"{record.id}: {error}")
            continue
        yield row
    if len(bad) > allowed_bad(seen, max_bad) or len(bad) == seen > 0:
        first = "\n  ".join(bad[:5])
        raise ValueError(f"{where}: {len(bad)} of {seen} records can't be stored:\n  {first}")
    skipped += bad


@contextlib.contextmanager
def _whole(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder beside `folder` that takes its place in the end, or goes."""
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it, or give another version")
    unfinished = folder.with_name(f".{folder.name}.unfinished-{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        with contextlib.suppress(OSError):  # others' data may lie there
            folder.parent.rmdir()


def _write_split(folder: pathlib.Path, stem: str, rows: Iterable[bytes]) -> tuple[list[int], int]:
    """Writes the shards of a split; (rows of each shard, bytes in all)."""
    from array_record.python import array_record_module

    lengths, total, writer, size = [], 0, None, 0
    part = lambda number: folder / f"{stem}.part{number:05}"
    for row in rows:
        if writer is None or size > SHARD_BYTES:
            if writer is not None:
                writer.close()
            # Groups of one: every row is found and decompressed alone. Pictures hardly compress.
            writer = array_record_module.ArrayRecordWriter(
                str(part(len(lengths))), "group_size:1,zstd:1"
            )
            lengths.append(0)
            size = 0
        writer.write(row)
        lengths[-1] += 1
        size, total = size + len(row), total + len(row)
    if writer is not None:
        writer.close()
    for number in range(len(lengths)):
        name = f"{stem}.array_record-{number:05}-of-{len(lengths):05}"
        part(number).rename(folder / name)
    return lengths, total


def _describe(tfds, folder, shards, name: str, version: str, description: str) -> None:
    """Writes `dataset_info.json` and `features.json`."""
    core = tfds.core
    identity = core.dataset_info.DatasetIdentity(
        name=name, version=core.Version(version), data_dir=os.fspath(folder), module_name=""
    )
    info = core.DatasetInfo(
        builder=identity, features=features(), description=description, disable_shuffling=True
    )
    info.set_file_format("array_record")
    splits = []
    for key, (lengths, total) in shards.items():
        template = core.ShardedFileTemplate(
            data_dir=folder, dataset_name=name, split=key, filetype_suffix="array_record"
        )
        splits.append(
            core.SplitInfo(
                name=key, shard_lengths=lengths, num_bytes=total, filename_template=template
            )
        )
    info.set_splits(core.splits.SplitDict(splits))
    info.write_to_directory(folder)


# --- reading -----------------------------------------------------------------------------------


def read(path: str | pathlib.Path, split: str | None = None) -> Records:
    """The records of a data set that `write` or a `builder` wrote; each is read when asked for.

    A row that is no sound record is a ValueError when it is asked for; `loading.load` with the
    mapper "records" looks at all of them beforehand, and names the broken ones.

    Args:
      path: as for `tfds_rows.find`: a folder, or a name below $TFDS_DATA_DIR.
      split: as TFDS spells it, such as "train[:10%]"; None: the only one.

    Raises:
      FileNotFoundError: no such data set or split.
      ValueError: it isn't stored for random access, or holds no records.
    """
    rows = TfdsRows(path, split)
    absent = set(features()) - set(rows.features)
    if absent:
        raise ValueError(
            f"{rows.folder} holds no records, but {sorted(rows.features)}: read it by `load` with "
            "a mapper"
        )
    index = np.stack([np.arange(len(rows)), np.zeros(len(rows), np.int64)], axis=1)
    return Records(rows, stored.from_row, rows.folder.parent.name, rows.folder, index, split or "")


def builder(
    name: str,
    splits: Mapping[str, Callable[[], Sequence[Record]]],
    *,
    version: str = "1.0.0",
    description: str = "",
) -> type:
    """A `GeneratorBasedBuilder` of records, for TFDS's own tools.

        builder("maps", {"train": make_maps})(data_dir="data").download_and_prepare()

    Args:
      name: of the data set.
      splits: by name, what makes the records. A split of a gigabyte or more takes TensorFlow to
        write: use `write`.
      version: three numbers.
      description: of the data set.
    """
    core = import_tfds().core

    class Builder(core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = core.Version(version)
        pkg_dir_path = pathlib.Path(__file__).parent

        def __init__(self, *, file_format: Any = "array_record", **kwargs):
            form = getattr(file_format, "value", file_format)
            if form not in RANDOM_ACCESS:
                raise ValueError(
                    f"file_format {form!r} takes TensorFlow: use one of {RANDOM_ACCESS}"
                )
            super().__init__(file_format=form, **kwargs)

        def _info(self):
            return core.DatasetInfo(
                builder=self,
                features=features(),
                description=description,
                disable_shuffling=True,  # the records' order is theirs
            )

        def _split_generators(self, dl_manager):
            return {key: self._generate_examples(make) for key, make in splits.items()}

        def _generate_examples(self, make):
            for key, record in enumerate(make()):
                yield key, to_example(record)

    Builder.name = name
    return Builder
