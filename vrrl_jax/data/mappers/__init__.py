"""From a published set's raw row to records: one pure function a set, and a table of their names.

A mapper takes (where the row stands, the row) and returns a record, or several where a row holds
several questions. It raises `ValueError` for a row that is broken, `Unsupported` for one of a kind
that isn't taken.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vrrl_jax.data.mappers import charts as charts
from vrrl_jax.data.mappers import exams as exams
from vrrl_jax.data.mappers import general as general
from vrrl_jax.data.mappers import spatial as spatial
from vrrl_jax.data.mappers import training as training
from vrrl_jax.data.mappers.general import Classification as Classification
from vrrl_jax.data.mappers.general import FieldMap as FieldMap
from vrrl_jax.data.records import At, Record
from vrrl_jax.data.stored import from_row

Mapper = Callable[[At, Mapping[str, Any]], Record | Sequence[Record]]

MAPPERS: dict[str, Mapper] = {
    "records": from_row,
    "fields": FieldMap(),
    "classification": Classification(),
    "vlmevalkit": general.vlmevalkit,
    # Training sets.
    "virl39k": training.virl39k,
    "mmk12": training.mmk12,
    "geometry3k": training.geometry3k,
    "clevr": training.clevr,
    "llava_cot": training.llava_cot,
    # Evaluation sets.
    "chartqa": charts.chartqa,
    "tablevqa": charts.tablevqa,
    "chartmuseum": charts.chartmuseum,
    "refchartqa": charts.refchartqa,
    "refocus": charts.refocus,
    "refcoco": spatial.refcoco,
    "vsr": spatial.vsr,
    "space": spatial.space,
    "spatialeval": spatial.spatialeval,
    "mathvista": exams.mathvista,
    "mathverse": exams.mathverse,
    "mathvision": exams.mathvision,
    "mmmu": exams.mmmu,
    "mmmu_pro": exams.mmmu_pro,
    "emma": exams.emma,
    "mega_bench": general.mega_bench,
}


def get(name: str) -> Mapper:
    """The mapper of a name.

    Raises:
      ValueError: there is none.
    """
    if name not in MAPPERS:
        raise ValueError(f"unknown mapper {name!r}: expected one of {', '.join(MAPPERS)}")
    return MAPPERS[name]
