"""Where a benchmark's rows are found, and which of them are asked."""

import pathlib
import shutil

import pytest

from vrrl_jax.benchmarks import questions
from vrrl_jax.benchmarks.config import BenchmarkEntry, SuiteConfig
from vrrl_jax.rewards.boxes import iou


def ids(published: pathlib.Path, **entry) -> list[str]:
    entry = BenchmarkEntry(**entry)
    asked = questions.load(SuiteConfig(data=str(published), benchmarks=(entry,)), entry)
    found = [str(asked[i].id) for i in range(len(asked))]
    assert found == [asked.id(i) for i in range(len(asked))]
    return found


def test_splits_of_one_folder_and_folders_of_splits(published):
    named = ids(published, name="tablevqa")
    assert named[:3] == ["tablevqa-vwtq/0", "tablevqa-vwtq/1", "tablevqa-vwtq_syn/0"]
    assert ids(published, name="tablevqa", split="vtabfact") == [
        "tablevqa-vtabfact/0",
        "tablevqa-vtabfact/1",
    ]
    standard = ["mmmu_pro-standard/0", "mmmu_pro-standard/1", "mmmu_pro-vision/0"]
    assert ids(published, name="mmmu_pro") == standard
    assert ids(published, name="mmmu_pro", limit=1) == [standard[0], standard[2]]
    # Two expressions for one object.
    assert ids(published, name="refcoco", split="testB") == [
        "refcoco-testB/0",
        "refcoco-testB/0.1",
    ]


def test_a_folder_a_subject_and_one_folder_for_all(published, tmp_path):
    assert len(ids(published, name="mmmu")) == 3 and len(ids(published, name="emma")) == 2
    merged = tmp_path / "MMMU/data"
    merged.mkdir(parents=True)
    shutil.copy(next((published / "MMMU/Art").iterdir()), merged)
    assert len(ids(tmp_path, name="mmmu")) == 2
    one = str(next((published / "MMMU/Math").iterdir()))
    assert len(ids(published, name="mmmu", path=one)) == 1
    assert len(ids(published, name="mmmu", path="MMMU/*/validation-*.parquet")) == 3


def test_only_what_belongs_and_can_be_scored(published):
    assert len(ids(published, name="spatialeval")) == 4
    assert len(ids(published, name="spatialeval_mazenav")) == 3
    entry = BenchmarkEntry(name="mega_bench")
    asked = questions.load(SuiteConfig(data=str(published), benchmarks=(entry,)), entry)
    assert len(asked) == 3 and asked.omitted == {"gpt_4o_as_judge": 1}


def test_a_file_can_not_be_several_splits(published):
    path = "RefCOCO/data/val-00000-of-00001.parquet"
    with pytest.raises(ValueError, match="for one file name its split"):
        ids(published, name="refcoco", path=path)
    assert len(ids(published, name="refcoco", path=path, split="val")) == 2


def test_generated_tables_are_the_same_every_time(published):
    from vrrl_jax.data import tables
    from vrrl_jax.render.tables import render

    entry = BenchmarkEntry(name="generated_cells", limit=2)
    config = SuiteConfig(benchmarks=(entry,))
    asked = questions.load(config, entry)
    again = questions.load(config, entry)
    assert [asked[i] for i in range(4)] == [again[i] for i in range(4)]
    record = asked[3]
    assert record.category == "test_ood" and record.id.source == "generated_cells-test_ood"
    table, style = tables.example(questions.SEED, "test_ood", record.id.row)
    cells = render(table, style).boxes["cell"]
    best = max(cells, key=lambda key: iou(record.boxes[0], cells[key]))
    assert best == table.targets[0] and record.question == f"<image>{table.question}"
