"""Raw rows of any prepared TensorFlow data set, read without TensorFlow.

TFDS decodes pictures too, but shows palettes as grey and leaves transparency in: here they stay
encoded, and are decoded like all others.
"""

from __future__ import annotations

import bisect
import itertools
import json
import os
import pathlib
import re
from typing import Any

import numpy as np

from vrrl_jax.data.records import inside
from vrrl_jax.data.rows import Rows

RANDOM_ACCESS = ("array_record", "parquet")
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_FILES = ("dataset_info.json", "features.json")  # the first alone is one of Hugging Face
_FEATURES = "tensorflow_datasets.core.features."


def import_tfds():
    """The module `tensorflow_datasets`.

    Raises:
      ModuleNotFoundError: it, or what it needs without saying so, isn't installed.
    """
    try:
        import importlib_resources  # noqa: F401 (TFDS imports it and doesn't require it)
        import tensorflow_datasets
    except ImportError as error:
        raise ModuleNotFoundError(
            f"data sets of TFDS need packages that are missing ({error}): "
            "pip install tensorflow-datasets importlib_resources"
        ) from None
    return tensorflow_datasets


# --- finding -----------------------------------------------------------------------------------


def is_prepared(path: pathlib.Path) -> bool:
    """Whether a folder is a version of a prepared data set, or holds versions of one."""
    return _is_version(path) or (path.is_dir() and bool(_versions(path)))


def _is_version(path: pathlib.Path) -> bool:
    return all((path / name).is_file() for name in _FILES)


def _versions(path: pathlib.Path) -> list[pathlib.Path]:
    """Its versions, the latest last. What was never finished has a longer name."""
    found = {}
    for folder in path.iterdir():
        match = _VERSION.fullmatch(folder.name)
        if match and _is_version(folder):
            found[tuple(map(int, match.groups()))] = folder
    return [found[version] for version in sorted(found)]


def find(path: str | pathlib.Path) -> pathlib.Path:
    """The folder of a prepared data set.

    Args:
      path: that folder (name/1.0.0); the one above, for its latest version; or a name below
        $TFDS_DATA_DIR (without it: ~/tensorflow_datasets).

    Raises:
      FileNotFoundError: there is none.
    """
    home = pathlib.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    places = [pathlib.Path(path).expanduser()]
    if not places[0].is_absolute() and ".." not in places[0].parts:
        places.append(home / path)
    for place in places:
        if _is_version(place):
            return place.resolve()
        if place.is_dir() and (versions := _versions(place)):
            return versions[-1].resolve()
    raise FileNotFoundError(
        f"{path}: expected a prepared data set, a folder NAME/1.0.0 with "
        f"{' and '.join(_FILES)}, the one above it, or the name of one in {home}"
    )


# --- reading -----------------------------------------------------------------------------------


class TfdsRows(Rows):
    """Rows of one split of a prepared data set.

    Texts are str, pictures encoded bytes, class labels their index, arrays lists.

    Args:
      path: what `find` takes.
      split: as TFDS spells it: "train", "train[:10%]", "train+test"; None: the only one.

    Raises:
      FileNotFoundError: there is no data set, no such split, or a file of it is missing.
      ValueError: several splits and none chosen, a format that takes TensorFlow to read, or files
        that describe no data set.
    """

    def __init__(self, path: str | pathlib.Path, split: str | None = None):
        self.folder, self.split = find(path), split
        self._open()

    def _open(self) -> None:
        tfds = import_tfds()
        _check_features(self.folder / "features.json")
        try:
            builder = tfds.builder_from_directory(self.folder)
            splits = {name: info.num_examples for name, info in builder.info.splits.items()}
        except Exception as error:  # whatever TFDS makes of files that aren't its own
            raise ValueError(f"{self.folder}: no data set of TFDS ({_brief(error)})") from None
        self.split = self._chosen(splits)
        stored = builder.info.file_format
        if stored is None or stored.value not in RANDOM_ACCESS:
            raise ValueError(
                f"{self.folder} is stored as {stored and stored.value}, which can't be read row by "
                "row without TensorFlow: prepare it with file_format='array_record'"
            )
        try:
            self.source = builder.as_data_source(
                self.split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
            )
            parts = builder.info.splits[self.split].file_instructions
        except Exception as error:
            raise ValueError(f"{self.folder}, {self.split!r}: {_brief(error)}") from None
        self.parts = [(pathlib.Path(part.filename), part.skip) for part in parts]
        for file, _ in self.parts:
            if inside(self.folder, os.path.relpath(file, self.folder)) is None:
                raise FileNotFoundError(f"{self.folder}: there is no file {file.name!r}")
        self.firsts = [0, *itertools.accumulate(part.take for part in parts)]
        self.features = _undecoded(tfds, builder.info.features)
        self.labels = _labels(tfds, self.features)

    def _chosen(self, splits: dict[str, int]) -> str:
        if self.split is None:
            if len(splits) != 1:
                raise ValueError(
                    f"{self.folder} holds {len(splits)} splits: choose one of {sorted(splits)}"
                )
            return next(iter(splits))
        for name in re.split(r"\s*\+\s*", str(self.split)):
            if name.partition("[")[0] not in splits:
                raise FileNotFoundError(
                    f"{self.folder} holds no split {name!r}, only {sorted(splits)}"
                )
        return str(self.split)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "split": self.split}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder, self.split = state["folder"], state["split"]
        self._open()

    def __len__(self) -> int:
        return self.firsts[-1]

    def __getitem__(self, i: int) -> dict[str, Any]:
        try:
            row = self.features.deserialize_example_np(self.source[self.check(i)])
        except IndexError:
            raise
        except Exception as error:  # protobuf's, array_record's and TFDS's own, all kinds of them
            raise ValueError(f"not readable ({_brief(error)})") from None
        return _plain(self.features, row)

    def place(self, i: int) -> tuple[pathlib.Path, int]:
        part = bisect.bisect_right(self.firsts, self.check(i)) - 1
        file, skip = self.parts[part]
        return file, skip + i - self.firsts[part]


def _check_features(file: pathlib.Path) -> None:
    """The file names Python classes, whose modules TFDS would import: only its own are let in.

    Raises:
      ValueError: others, or no such file.
    """

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key in ("pythonClassName", "type"):
                name = value.get(key)
                if isinstance(name, str) and "." in name and not name.startswith(_FEATURES):
                    raise ValueError(
                        f"{file} names {name[:80]!r}, which is none of TFDS's features"
                    )
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, dict | list):
                walk(item)

    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: no description of features ({_brief(error)})") from None
    walk(described if isinstance(described, dict) else {})


def _undecoded(tfds, feature):
    """A feature that reads the same bytes and leaves pictures as they are stored."""
    kinds = tfds.features
    if isinstance(feature, kinds.FeaturesDict):
        return kinds.FeaturesDict({key: _undecoded(tfds, item) for key, item in feature.items()})
    if isinstance(feature, kinds.Sequence):
        return kinds.Sequence(_undecoded(tfds, feature.feature))
    if isinstance(feature, kinds.Image):
        return kinds.Tensor(shape=(), dtype=np.object_)
    return feature


def _labels(tfds, features) -> dict[str, tuple[str, ...]]:
    """Names of class labels by column; labels without names are left out."""
    found = {}
    for name, feature in features.items():
        if isinstance(feature, tfds.features.ClassLabel) and feature.num_classes:
            found[name] = tuple(feature.int2str(i) for i in range(feature.num_classes))
    return found


def _plain(feature, value: Any) -> Any:
    """A value of a feature in Python's own types.

    Raises:
      ValueError: a text that is no UTF-8.
    """
    from tensorflow_datasets import features as kinds

    if isinstance(feature, kinds.Sequence):
        feature = feature.feature
        if not isinstance(feature, kinds.FeaturesDict):
            return [_plain(feature, item) for item in value]
        # TFDS gives a list of structs as a struct of lists.
        return {key: [_plain(feature[key], item) for item in value[key]] for key in value}
    if isinstance(feature, kinds.FeaturesDict):
        return {key: _plain(feature[key], value[key]) for key in value}
    if isinstance(feature, kinds.Text):
        try:
            return bytes(value).decode("utf-8") if not isinstance(value, str) else value
        except UnicodeDecodeError:
            raise ValueError("a text is not valid UTF-8") from None
    return value.tolist() if hasattr(value, "tolist") else value


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
