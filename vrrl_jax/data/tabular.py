"""Raw rows of published data sets: Parquet, `save_to_disk` directories, JSON lines, TSV, TFDS.

`open_rows` takes a file, a glob or a folder. Rows are plain dictionaries in the files' own columns;
what they mean is for the mappers to say. Pictures stay as encoded bytes or as paths.
"""

from __future__ import annotations

import bisect
import glob
import itertools
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vrrl_jax.data import tfds_rows
from vrrl_jax.data.lines import JsonLines, JsonRows, TsvRows
from vrrl_jax.data.records import inside
from vrrl_jax.data.rows import Rows

_BATCH = 64  # Rows decoded at a time: pictures of some MB each must not pile up.
_SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}(?:-\w+)?")
_TFDS_SHARD = re.compile(r".+-(?P<split>\w+)\.[a-z_]+-\d{5}-of-\d{5}")
_FORMATS = ("parquet", "jsonl", "json", "tsv", "arrow")


def split_of(file: pathlib.Path) -> str:
    """Of train-00000-of-00004.parquet, train/0000.parquet, maps-train.array_record-00000-of-00001.

    "" for other names.
    """
    if file.stem.isdigit():
        return file.parent.name
    match = _TFDS_SHARD.fullmatch(file.name) or _SHARD.fullmatch(file.stem)
    return match["split"] if match else ""


# --- Parquet -----------------------------------------------------------------------------------


class ParquetRows(Rows):
    """Rows of Parquet shards, in the order given.

    At most one row group is in memory for `[i]`, and a few rows of one for `scan`. Reading rows in
    random order reads a row group for each: sets that are trained on are better rewritten.

    Raises:
      ValueError: a file is no Parquet.
    """

    def __init__(self, files: Sequence[pathlib.Path]):
        import pyarrow
        import pyarrow.parquet

        self.files, self.metadata, self.labels = list(files), [], {}
        for file in self.files:
            try:
                self.metadata.append(pyarrow.parquet.read_metadata(file))
            except (pyarrow.ArrowException, OSError) as error:
                raise ValueError(f"{file}: no Parquet file ({_brief(error)})") from None
            self.labels |= _label_names(self.metadata[-1].metadata)
        # (file, row group) and first row of each group; the last entry ends the last group.
        self.groups = [
            (f, g) for f, data in enumerate(self.metadata) for g in range(data.num_row_groups)
        ]
        sizes = [self.metadata[f].row_group(g).num_rows for f, g in self.groups]
        self.starts = [0, *itertools.accumulate(sizes)]
        counts = [data.num_rows for data in self.metadata]
        self.firsts = [0, *itertools.accumulate(counts)]  # of each file
        self._last = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_last": None}

    def __len__(self) -> int:
        return self.starts[-1]

    def _open(self, group: int):
        import pyarrow.parquet

        file = self.groups[group][0]
        # Mapped and not buffered ahead: a row group may hold hundreds of MB of pictures.
        return pyarrow.parquet.ParquetFile(
            self.files[file], metadata=self.metadata[file], memory_map=True, pre_buffer=False
        )

    def __getitem__(self, i: int) -> dict[str, Any]:
        import pyarrow

        group = bisect.bisect_right(self.starts, self.check(i)) - 1
        last = self._last  # Read once: another thread may replace it.
        if last is None or last[0] != group:
            try:
                with self._open(group) as file:
                    last = group, file.read_row_group(self.groups[group][1])
            except (pyarrow.ArrowException, OSError) as error:
                raise ValueError(f"its row group is unreadable ({_brief(error)})") from None
            self._last = last
        return _row(last[1], i - self.starts[group])

    def scan(self) -> Iterator[dict[str, Any] | ValueError]:
        import pyarrow

        for group, (_, number) in enumerate(self.groups):
            done, size = 0, self.starts[group + 1] - self.starts[group]
            try:
                with self._open(group) as file:
                    for batch in file.iter_batches(_BATCH, row_groups=[number]):
                        for row in _rows_or_errors(batch):
                            done += 1
                            yield row
            except (pyarrow.ArrowException, OSError) as error:
                for _ in range(size - done):
                    yield ValueError(f"its row group is unreadable ({_brief(error)})")

    def place(self, i: int) -> tuple[pathlib.Path, int]:
        file = bisect.bisect_right(self.firsts, self.check(i)) - 1
        return self.files[file], i - self.firsts[file]


def _row(table, i: int) -> dict[str, Any]:
    """Row i of a table or record batch, as Python values."""
    import pyarrow

    try:
        return table.slice(i, 1).to_pylist()[0]
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"not readable ({_brief(error)})") from None


def _rows_or_errors(batch) -> list[dict[str, Any] | ValueError]:
    """The rows of a record batch; in the place of one that can't be read, the error."""
    import pyarrow

    try:
        return batch.to_pylist()  # In one go: some times faster than row by row.
    except (pyarrow.ArrowException, UnicodeDecodeError):
        rows: list[dict[str, Any] | ValueError] = []
        for i in range(batch.num_rows):
            try:
                rows.append(_row(batch, i))
            except ValueError as error:
                rows.append(error)
        return rows


def _brief(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _label_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """Names of class labels, from what Hugging Face writes into a schema's metadata."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: tuple(map(str, feature["names"]))
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # Only a convenience: files without it are as good.


# --- Arrow -------------------------------------------------------------------------------------


class ArrowRows(Rows):
    """Rows of a `save_to_disk` directory, or of bare Arrow streams; mapped, not read.

    Raises:
      ValueError: a state that isn't one, a file outside of the folder, or no Arrow stream.
    """

    def __init__(self, files: Sequence[pathlib.Path]):
        self.files = list(files)
        self._open()

    def _open(self) -> None:
        import pyarrow

        self.batches, self.firsts, self._sound, self.labels = [], [0], set(), {}
        for file in self.files:
            try:
                stream = pyarrow.ipc.open_stream(pyarrow.memory_map(str(file)))
                self.labels |= _label_names(stream.schema.metadata)
                batches = list(stream)
            except (pyarrow.ArrowException, OSError) as error:
                raise ValueError(f"{file}: no Arrow stream ({_brief(error)})") from None
            self.batches += batches
            self.firsts.append(self.firsts[-1] + sum(batch.num_rows for batch in batches))
        self.starts = [0, *itertools.accumulate(batch.num_rows for batch in self.batches)]

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.files = state["files"]
        self._open()

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, i: int) -> dict[str, Any]:
        import pyarrow

        number = bisect.bisect_right(self.starts, self.check(i)) - 1
        batch = self.batches[number]
        if number not in self._sound:
            # Mapped offsets are used as they stand: false ones would read beyond the file.
            try:
                batch.validate(full=True)
            except pyarrow.ArrowException as error:
                raise ValueError(f"its record batch is broken ({_brief(error)})") from None
            self._sound.add(number)
        return _row(batch, i - self.starts[number])

    def place(self, i: int) -> tuple[pathlib.Path, int]:
        file = bisect.bisect_right(self.firsts, self.check(i)) - 1
        return self.files[file], i - self.firsts[file]


def _saved_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The Arrow files that the state of a saved data set names; others are cached transforms."""
    state = folder / "state.json"
    try:
        entries = json.loads(state.read_text(encoding="utf-8"))["_data_files"]
        names = [str(entry["filename"]) for entry in entries]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{state}: not the state of a saved data set ({reason})") from None
    files = []
    for name in names:
        file = inside(folder.resolve(), name)
        if file is None:
            raise ValueError(f"{state}: there is no file {name!r}")
        files.append(file)
    return files


# --- finding -----------------------------------------------------------------------------------


def open_rows(path: str | pathlib.Path, split: str | None = None) -> Rows:
    """The rows of a data set.

    Args:
      path: a .parquet, .jsonl, .json, .tsv or .arrow file; a glob of them; a directory that
        `save_to_disk` wrote; one that TFDS prepared (`name/1.0.0`, or `name`); or a folder of
        shards `<split>-00000-of-00004.parquet` or of one file, these also below `data`.
      split: which one, where a folder holds several.

    Raises:
      FileNotFoundError: nothing of the kind is at `path`, or no such split.
      ValueError: several splits and none chosen, several formats, or unreadable files.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_file():
        return _open_files([path])
    if path.is_dir():
        return _open_folder(path, split)
    files = [pathlib.Path(name) for name in sorted(glob.glob(str(path)))]
    files = [file for file in files if file.is_file()]
    if not files:
        raise FileNotFoundError(
            f"{path}: expected a file ({', '.join(_FORMATS)}), a glob of them, a folder of shards, "
            "or a directory written by save_to_disk"
        )
    return _open_files(_of_split(files, split, path))


def _open_folder(path: pathlib.Path, split: str | None) -> Rows:
    if tfds_rows.is_prepared(path):
        return tfds_rows.TfdsRows(path, split)
    if (path / "state.json").is_file():
        return ArrowRows(_saved_files(path))
    if (path / "dataset_dict.json").is_file():
        saved = sorted(file.parent.name for file in path.glob("*/state.json"))
        return ArrowRows(_saved_files(path / _chosen(saved, split, path)))
    for folder, ending in itertools.product((path, path / "data"), _FORMATS[:-1]):
        files = sorted(folder.glob(f"*.{ending}"))
        if files:
            return _open_files(_of_split(files, split, path))
    raise FileNotFoundError(
        f"{path}: no {', '.join(_FORMATS[:-1])} file in it or below data, no state.json of "
        "save_to_disk, and no dataset_info.json of TFDS"
    )


def _of_split(
    files: list[pathlib.Path], split: str | None, path: pathlib.Path
) -> list[pathlib.Path]:
    """The files of one split.

    A file that isn't a shard is a split of its own name in a folder; a glob asks for all of them.
    """
    splits: dict[str, list[pathlib.Path]] = {}
    for file in files:
        name = split_of(file) or (file.stem if path.is_dir() else "")
        splits.setdefault(name, []).append(file)
    return splits[_chosen(sorted(splits), split, path)]


def _chosen(splits: Sequence[str], split: str | None, path: pathlib.Path) -> str:
    if split is None:
        if len(splits) != 1:
            raise ValueError(f"{path} holds {len(splits)} splits: choose one of {list(splits)}")
        return splits[0]
    if split not in splits:
        raise FileNotFoundError(f"{path} holds no split {split!r}, only {list(splits)}")
    return split


def _open_files(files: list[pathlib.Path]) -> Rows:
    formats = {file.suffix.lower().lstrip(".") for file in files}
    if len(formats) > 1:
        raise ValueError(f"files of several formats: {sorted(formats)}; give one of them")
    kind = formats.pop()
    if kind == "parquet":
        return ParquetRows(files)
    if kind == "arrow":
        return ArrowRows(files)
    readers = {"jsonl": JsonLines, "ndjson": JsonLines, "json": JsonRows, "tsv": TsvRows}
    if kind not in readers:
        raise ValueError(f"{files[0]}: unknown format; expected one of {', '.join(_FORMATS)}")
    if len(files) > 1:
        raise ValueError(f"{len(files)} files of {kind}: give one; only shards are put together")
    return readers[kind](files[0])
