"""The benchmarks: where their rows are, how they ask, which rules score them, how they add up."""

from __future__ import annotations

from collections.abc import Callable

from vrrl_jax.benchmarks import prompts, scorers
from vrrl_jax.benchmarks.benchmark import Benchmark, Part
from vrrl_jax.data.records import Record
from vrrl_jax.rewards import mega


def _one(split: str | None, folder: str = "") -> tuple[Part, ...]:
    return (Part("", folder, split),)


def _splits(*names: str) -> tuple[Part, ...]:
    return tuple(Part(name, "", name) for name in names)


def _asked_by(record: Record) -> str:
    """ChartQA's halves under the names of its paper, whatever the file calls them."""
    name = record.category.lower()
    return "human" if "human" in name else "augmented" if name else ""


def _standard_or_vision(record: Record) -> str:
    return record.id.source.rsplit("-", 1)[-1]


def _omitted_task(task: str) -> Callable[[Record], str | None]:
    return lambda record: "" if record.category == task else None


def _mega_omit(record: Record) -> str:
    return mega.uncovered(record.extra.get("fields"), record.extra.get("metric_info"))


def _refcoco(title: str, folder: str, *splits: str, note: str = "") -> Benchmark:
    return Benchmark(
        title=title,
        mapper="refcoco",
        folder=folder,
        parts=_splits(*splits),
        split="/".join(splits),
        prompts={"lmms-eval": prompts.refcoco, "json": prompts.refcoco_json},
        ask=prompts.refcoco_question,
        official=scorers.refcoco("official"),
        strict=scorers.refcoco("strict"),
        metric="ACC@0.5",
        macro=True,
        expected=splits,
        cluster=lambda record: f"{record.id.source}/{record.id.row}",
        native=("json",),
        notes=tuple(
            filter(
                None,
                (
                    "headline: mean over the splits that were asked",
                    "official reads the first [a, b, c, d] as shares of the picture; the reading "
                    "that tries two scales and keeps the better against the truth isn't offered",
                    note,
                ),
            )
        ),
    )


_VAL = "lmms-lab's val also holds Google's split: its numbers are not those of the UNC or UMD val"
_TEACHER = "the published score asks a language model; this is a rule, not comparable with it"
_MMMU_GUESS = (
    "official guesses where it reads no letter (seeded, counted as fallback); strict counts wrong"
)
_SPATIAL = {
    "mapper": "spatialeval",
    "folder": "SpatialEval",
    "prompts": {"spatialeval": prompts.spatialeval},
    "official": scorers.spatialeval_official,
    "strict": scorers.spatialeval,
    "notes": (
        "official takes substrings for right (1 in 12): compare strict",
        "official's reading of a reply is close to the published one, not proven the same",
    ),
}

BENCHMARKS: dict[str, Benchmark] = {
    "chartqa": Benchmark(
        title="ChartQA",
        mapper="chartqa",
        folder="ChartQA",
        parts=_one("test"),
        split="test",
        prompts={
            "lmms-eval": prompts.chartqa_single_word,
            "vlmevalkit": prompts.chartqa_phrase,
            "qwen": prompts.chartqa_short,
        },
        official=scorers.chartqa("official"),
        strict=scorers.chartqa("strict"),
        metric="relaxed accuracy",
        category=_asked_by,
        notes=("an answer in tags or a box is taken out of them first, in both modes",),
    ),
    "tablevqa": Benchmark(
        title="TableVQA-Bench",
        mapper="tablevqa",
        folder="TableVQA-Bench",
        parts=_splits("vwtq", "vwtq_syn", "vtabfact", "fintabnetqa"),
        split="all four",
        prompts={"ours": prompts.tablevqa},
        ask=prompts.table_question,
        form=prompts.table_form,
        official=scorers.tablevqa,
        strict=scorers.tablevqa_strict,
        macro=True,
        expected=("vwtq", "vwtq_syn", "vtabfact", "fintabnetqa"),
        notes=(
            "headline: mean of the four splits",
            "the prompt is the published one without its two examples",
            "fintabnetqa by its relieved rule; strict takes the answer out of tags or a box first",
        ),
    ),
    "chartmuseum": Benchmark(
        title="ChartMuseum (rule, not comparable)",
        mapper="chartmuseum",
        folder="ChartMuseum",
        parts=_one("test"),
        split="test",
        prompts={"chartmuseum": prompts.chartmuseum},
        strict=scorers.chartmuseum,
        notes=(_TEACHER,),
    ),
    "mathvista": Benchmark(
        title="MathVista",
        mapper="mathvista",
        folder="MathVista",
        parts=_one("testmini"),
        split="testmini",
        prompts={"mathvista": prompts.mathvista, "query": prompts.mathvista_query},
        ask=prompts.mathvista_question,
        official=scorers.mathvista("official"),
        strict=scorers.mathvista("strict"),
        notes=(
            "official normalises and compares as published, but a rule finds the answer in the "
            "reply where the published score asks a language model",
        ),
    ),
    "mathverse": Benchmark(
        title="MathVerse",
        mapper="mathverse",
        folder="MathVerse",
        parts=_one("testmini"),
        split="testmini",
        prompts={"query_wo": prompts.mathverse, "query_cot": prompts.mathverse_cot},
        strict=scorers.mathverse,
        macro=True,
        expected=(
            "Text Dominant",
            "Text Lite",
            "Vision Intensive",
            "Vision Dominant",
            "Vision Only",
        ),
        cluster=lambda record: str(record.extra.get("problem_index") or record.id),
        notes=(
            "headline: mean of the five versions; leaderboards often quote Vision Only alone",
            "the published score asks a language model twice; letters and mathematical equality "
            "here, as in VL-Rethinker's tables",
        ),
    ),
    "mathvision": Benchmark(
        title="MathVision",
        mapper="mathvision",
        folder="MathVision",
        parts=_one("test"),
        split="test",
        prompts={"lmms-eval": prompts.mathvision},
        official=scorers.mathvision,
        strict=scorers.strict_answer,
        notes=("official compares values rounded to two decimals: 3.14 answers \\pi",),
    ),
    "mmmu": Benchmark(
        title="MMMU",
        mapper="mmmu",
        folder="MMMU",
        parts=_one("validation"),
        split="val",
        prompts={"lmms-eval": prompts.mmmu, "qwen": prompts.mmmu_qwen},
        official=scorers.mmmu("official"),
        strict=scorers.mmmu("strict"),
        notes=(_MMMU_GUESS,),
    ),
    "mmmu_pro": Benchmark(
        title="MMMU-Pro",
        mapper="mmmu_pro",
        folder="MMMU_Pro",
        parts=(
            Part("standard", "standard (10 options)", "test"),
            Part("vision", "vision", "test"),
        ),
        split="standard (10 options), vision",
        prompts={"direct": prompts.mmmu_pro, "cot": prompts.mmmu_pro_cot},
        official=scorers.mmmu_pro("official"),
        strict=scorers.mmmu_pro("strict"),
        category=_standard_or_vision,
        macro=True,
        expected=("standard", "vision"),
        notes=("headline: mean of standard (10 options) and vision", _MMMU_GUESS),
    ),
    "emma": Benchmark(
        title="EMMA",
        mapper="emma",
        folder="EMMA",
        parts=_one("test"),
        split="test",
        prompts={"cot": prompts.emma_cot, "plain": prompts.emma},
        ask=prompts.emma_question,
        official=scorers.emma,
        strict=scorers.strict_answer,
        notes=("official is the fast score; lmms-eval asks a language model by default",),
    ),
    "mega_bench": Benchmark(
        title="MEGA-Bench, rule-scored part (not comparable with MEGA core)",
        mapper="mega_bench",
        folder="MEGA-Bench",
        parts=_one("test", "core"),
        split="core, covered",
        prompts={"mega": prompts.question},
        ask=prompts.question,
        form=prompts.mega_form,
        official=scorers.mega_bench("official"),
        strict=scorers.mega_bench("strict"),
        metric="score",
        macro=True,
        graded=True,
        omit=_mega_omit,
        notes=(
            "not comparable with MEGA core: only tasks whose rules are here, and no videos",
            "headline: mean over the covered tasks of their queries' mean",
        ),
    ),
    "refcoco": _refcoco("RefCOCO", "RefCOCO", "val", "testA", "testB", note=_VAL),
    "refcoco_plus": _refcoco("RefCOCO+", "RefCOCOplus", "val", "testA", "testB"),
    "refcocog": _refcoco("RefCOCOg", "RefCOCOg", "val", "test", note=_VAL),
    "spatialeval": Benchmark(
        title="SpatialEval", parts=_one("test", "vqa"), split="vqa", **_SPATIAL
    ),
    "spatialeval_mazenav": Benchmark(
        title="SpatialEval maze-nav",
        parts=_one("test", "vqa"),
        split="vqa, maze-nav",
        omit=_omitted_task("mazenav"),
        # Three questions share a maze.
        cluster=lambda record: str(record.extra.get("id") or record.id).rsplit(".", 1)[0],
        **_SPATIAL,
    ),
    "vsr": Benchmark(
        title="VSR",
        mapper="vsr",
        folder="VSR",
        parts=_one("test"),
        split="test",
        prompts={"ours": prompts.vsr},
        official=scorers.vsr_official,
        strict=scorers.vsr,
        notes=("there is no published prompt; strict takes true and false for yes and no, too",),
    ),
    "geometry3k": Benchmark(
        title="Geometry3K",
        mapper="geometry3k",
        folder="geometry3k",
        parts=_one("test"),
        split="test",
        prompts={"verl": prompts.geometry3k, "vl-rethinker": prompts.boxed},
        strict=scorers.strict_answer,
        notes=("also a source of MathVista and MathVerse, and trained on by many",),
    ),
    "mmk12": Benchmark(
        title="MMK12",
        mapper="mmk12",
        folder="MMK12",
        parts=_one("test"),
        split="test",
        prompts={"vl-rethinker": prompts.boxed},
        strict=scorers.strict_answer,
    ),
    "clevr": Benchmark(
        title="CLEVR counting",
        mapper="clevr",
        folder="Clevr_CoGenT_ValB",
        parts=_one(None),
        split="as given",
        prompts={"r1-v": prompts.clevr},
        strict=scorers.by_kind,
    ),
    "generated_tables": Benchmark(
        title="Tables, generated: questions",
        mapper="",
        folder="",
        parts=_splits("test_id", "test_ood"),
        split="test_id/test_ood",
        prompts={"ours": prompts.chartqa_phrase},
        strict=scorers.by_kind,
        macro=True,
        expected=("test_id", "test_ood"),
        notes=("made by this library from a fixed seed; 200 of each split unless limited",),
    ),
    "generated_cells": Benchmark(
        title="Tables, generated: the cell that answers",
        mapper="",
        folder="",
        parts=_splits("test_id", "test_ood"),
        split="test_id/test_ood",
        prompts={"lmms-eval": prompts.refcoco, "json": prompts.refcoco_json},
        ask=prompts.refcoco_question,
        official=scorers.refcoco("official"),
        strict=scorers.refcoco("strict"),
        metric="ACC@0.5",
        macro=True,
        expected=("test_id", "test_ood"),
        native=("json",),
        notes=("made by this library from a fixed seed; 200 of each split unless limited",),
    ),
}


def get(name: str) -> Benchmark:
    """The benchmark of a name.

    Raises:
      ValueError: there is none.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}: expected one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
