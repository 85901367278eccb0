"""What a suite can be told, and the configurations that ship."""

import pathlib

import pytest

from vrrl_jax.benchmarks.config import BenchmarkEntry, ConfigError, SuiteConfig, load, to_yaml
from vrrl_jax.evaluate import load_recipe
from vrrl_jax.strict_yaml import top_keys

SHIPPED = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("eval_*.yaml"))
CONFIGS = [path for path in SHIPPED if "benchmarks" in top_keys(path)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations(path, tmp_path):
    config = load(path, [], SuiteConfig)
    assert f"vrrl eval configs/{path.name}" in path.read_text()
    (tmp_path / "back.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "back.yaml", [], SuiteConfig) == config


@pytest.mark.parametrize("path", sorted(set(SHIPPED) - set(CONFIGS)), ids=lambda path: path.stem)
def test_shipped_recipes_of_evaluations(path):
    assert load_recipe(path, []).eval.enabled
    assert f"vrrl eval configs/{path.name}" in path.read_text()


def test_there_are_configurations():
    assert len(CONFIGS) >= 5 and len(SHIPPED) > len(CONFIGS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: nano", "benchmarks is empty"),
        (
            "benchmarks: [{name: chart}]",
            r"benchmarks\[0\].name is 'chart', expected one of chartqa",
        ),
        ("benchmarks: [{}]", r"benchmarks\[0\].name is missing"),
        ("benchmarks: [{name: chartqa, prompt: x}]", "prompt is 'x'; chartqa has lmms-eval"),
        ("benchmarks: [{name: refcoco, split: train}]", "split is 'train'; refcoco has val, testA"),
        ("benchmarks: [{name: vsr, modes: [direct, direct]}]", "modes holds one twice"),
        ("benchmarks: [{name: vsr, modes: [think]}]", "must be one of direct, cot, chain"),
        ("benchmarks: [{name: vsr}, {name: vsr}]", "asks twice in one mode"),
        (
            "benchmarks: [{name: refcoco}, {name: refcoco, split: val}]",
            "asks for a split beside the whole",
        ),
        ("benchmarks: [{name: vsr}]\nsampling: {samples: 2}", "are all alike at temperature 0"),
        ("benchmarks: [{name: vsr}]\nbatch_size: 0", "batch_size must be at least 1"),
    ],
)
def test_mistakes(tmp_path, text, message):
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(path, [], SuiteConfig)


def test_paths_and_labels():
    entries = (
        BenchmarkEntry(name="chartqa"),
        BenchmarkEntry(name="refcoco", split="val", path="elsewhere"),
    )
    config = SuiteConfig(benchmarks=entries, data="sets")
    assert config.path(entries[0]) == pathlib.Path("sets/ChartQA")
    assert config.path(entries[1]) == pathlib.Path("sets/elsewhere")
    assert [entry.label for entry in entries] == ["chartqa", "refcoco-val"]
