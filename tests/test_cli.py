"""The `vrrl` command: every subcommand on tiny data, failures as one readable line."""

import json
import os
import pathlib

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file

import vrrl_jax as vr
from vrrl_jax import answer, cli, testing
from vrrl_jax.checkpoint import convert, hf
from vrrl_jax.envs.frozenlake import render

TRAIN = """
policy: {path: CHECKPOINT}
data: {count: 6, levels: [3]}
env: {cell: 28, max_turns: 3, question: Solve, verify: Verify}
rollout: {questions: 4, samples: 4, max_new_tokens: 4}
algorithm: {kl_coefficient: 0.1}
update: {rows_per_microbatch: 8}
eval: {count: 4, levels: [3], temperatures: [0]}
log: {tensorboard: false}
"""
SFT = """
policy: {path: CHECKPOINT, init: random, config: CHECKPOINT/config.json}
data: {levels: [3]}
demonstrations: {max_turns: 3}
env: {cell: 28, max_turns: 3, question: Solve, verify: Verify}
rollout: {max_new_tokens: 4}
batch: {rows: 4, row_tokens: 128, picture_slots: 3, slot_patches: 64, sequences: 16, fill: 0.6}
optimizer: {name: muon, learning_rate: 0.02, warmup_steps: 0, schedule: constant}
ema_decay: 0.9
eval: {enabled: false}
log: {tensorboard: false}
"""


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """A working directory of its own, and an environment that is put back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("cli"))
        for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
            patch.setenv(name, os.environ.get(name, "unused"))
        patch.delenv("VRRL_DEBUG", raising=False)
        yield pathlib.Path.cwd()


@pytest.fixture(scope="module")
def recipes(place, tiny_checkpoint):
    for name, text in (("tiny_train", TRAIN), ("tiny_sft", SFT)):
        path = place / f"{name}.yaml"
        path.write_text(text.replace("CHECKPOINT", str(tiny_checkpoint)))
    return place


@pytest.fixture(scope="module")
def trained(recipes):
    """The run directory of `vrrl train`, named by the command itself."""
    assert cli.main(["train", "tiny_train.yaml", "steps=1", "seed=3"]) == 0
    (run,) = recipes.glob("runs/tiny_train-*")
    return run


@pytest.fixture(scope="module")
def tuned(recipes):
    assert cli.main(["sft", "tiny_sft.yaml", "steps=2", "run_dir=tuned"]) == 0
    return recipes / "tuned"


def bits(directory):
    return {
        name: (value.dtype, value.shape, value.tobytes())
        for path in sorted(pathlib.Path(directory).glob("*.safetensors"))
        for name, value in load_file(path).items()
    }


# --- runs ----------------------------------------------------------------------------------------


def test_train_leaves_a_run(trained):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["steps"] == 1 and config["seed"] == 3
    assert (trained / "report.html").is_file() and (trained / "hf" / "config.json").is_file()
    assert (trained / "evaluation_final.json").is_file()


def test_resume_goes_on_in_the_run(trained, capsys):
    before = bits(trained / "hf")
    argv = ["train", "tiny_train.yaml", "--resume", f"run_dir={trained}", "steps=1", "seed=3"]
    assert cli.main(argv) == 0
    assert bits(trained / "hf") == before
    assert cli.main(["train", "tiny_train.yaml", "--resume"]) == 2
    assert "run_dir" in capsys.readouterr().err


def test_eval_scores_a_checkpoint_and_a_run(trained, tiny_checkpoint, capsys):
    options = ["eval.count=4", "eval.levels=[3]", "eval.temperatures=[0]"]
    output = ["--output", "new/scores.json"]
    assert cli.main(["eval", str(tiny_checkpoint), *options, *output]) == 0
    assert "3x3" in capsys.readouterr().out
    (table,) = json.loads(pathlib.Path("new/scores.json").read_text())
    assert table["rows"][0] | {"split": "3x3", "maps": 4} == table["rows"][0]
    # A run brings its own recipe; its tables go beside it.
    assert cli.main(["eval", str(trained)]) == 0
    tables = json.loads((trained / "evaluation.json").read_text())
    assert [t["name"] for t in tables] == ["greedy"]
    # A recipe's settings hold for any checkpoint.
    argv = [
        "eval",
        str(trained / "hf"),
        "--config",
        "tiny_train.yaml",
        "--output",
        "by_recipe.json",
    ]
    assert cli.main(argv) == 0
    assert json.loads(pathlib.Path("by_recipe.json").read_text()) == tables


def test_sft_and_a_report_about_it(tuned, capsys):
    assert (tuned / "hf" / "model.safetensors").is_file()
    assert cli.main(["report", str(tuned)]) == 0
    assert capsys.readouterr().out.strip() == str(tuned / "report.html")
    assert "target" in (tuned / "report.html").read_text()


# --- generate ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_generate_prints_an_answer(tiny_checkpoint, tiny_processor, place, capsys, pictures):
    argv = ["generate", str(tiny_checkpoint), "--prompt", "Solve", "--max-new-tokens", "5"]
    images = [render(map, cell=28) for map in testing.tiny_maps(pictures)]
    for i, image in enumerate(images):
        Image.fromarray(image).save(place / f"{i}.png")
        argv += ["--image", f"{i}.png"]
    assert cli.main(argv) == 0
    policy, params = vr.load_pretrained(tiny_checkpoint)
    options = {"max_new_tokens": 5, "temperature": 0}
    wanted = answer.answer(policy, params, tiny_processor, "Solve", images, **options)
    assert capsys.readouterr().out == wanted + "\n"


def test_generate_samples_by_its_seed(tiny_checkpoint, capsys):
    def say(*options):
        argv = ["generate", str(tiny_checkpoint), "--prompt", "Solve", "--max-new-tokens", "5"]
        assert cli.main([*argv, "--temperature", "2", *options]) == 0
        return capsys.readouterr().out

    first = say("--seed", "1")
    assert say("--seed", "1") == first
    assert say("--seed", "2") != first
    assert say("--seed", "1", "--top-k", "1") == say("--seed", "2", "--top-k", "1")


# --- convert -------------------------------------------------------------------------------------


def test_import_and_export_give_the_same_bits(tiny_checkpoint, place, capsys):
    assert cli.main(["convert", "import", str(tiny_checkpoint), "ours"]) == 0
    assert capsys.readouterr().out.strip() == str(place / "ours")
    assert cli.main(["convert", "export", "ours", "back"]) == 0
    assert bits("back") == bits(tiny_checkpoint)
    names = {path.name for path in tiny_checkpoint.iterdir()}
    assert {path.name for path in pathlib.Path("back").iterdir()} == names
    for name in names - {"model.safetensors"}:
        assert (place / "back" / name).read_bytes() == (tiny_checkpoint / name).read_bytes()


def test_a_critic_goes_through_a_conversion(place):
    policy, params = testing.tiny_policy(value_head=True)
    params["value_head"]["kernel"] = np.full((32, 1), 0.25, np.float32)
    hf.save_pretrained("critic", policy, params, testing.write_tiny_checkpoint("plain"))
    assert cli.main(["convert", "import", "critic", "critic_ours"]) == 0
    assert cli.main(["convert", "export", "critic_ours", "critic_back"]) == 0
    assert bits("critic_back") == bits("critic")
    _, loaded = vr.load_pretrained("critic_back", value_head=True)
    assert (np.asarray(loaded["value_head"]["kernel"]) == 0.25).all()


def test_runs_are_exported_as_they_export_themselves(trained, tuned):
    for run in (trained, tuned):  # the second one's average
        assert cli.main(["convert", "export", str(run), f"{run.name}_hf"]) == 0
        assert bits(f"{run.name}_hf") == bits(run / "hf")


def test_dtype_and_shards_are_the_caller_s(tiny_checkpoint, place, capsys):
    assert (
        cli.main(["convert", "import", str(tiny_checkpoint), "small", "--dtype", "bfloat16"]) == 0
    )
    assert cli.main(["convert", "export", "small", "shards", "--max-shard-size", "100KB"]) == 0
    files = sorted(path.name for path in (place / "shards").glob("*.safetensors"))
    assert len(files) > 1
    assert json.loads((place / "shards" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    wanted = {
        k: v.astype("bfloat16")
        for k, v in load_file(place / tiny_checkpoint / "model.safetensors").items()
    }
    found = {k: v for name in files for k, v in load_file(place / "shards" / name).items()}
    assert found.keys() == wanted.keys()
    assert all((np.asarray(found[k]) == wanted[k]).all() for k in wanted)
    with pytest.raises(FileExistsError):
        convert.to_checkpoint(tiny_checkpoint, "small")


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "missing.yaml"], "missing.yaml"),
        (["train", "tiny_train.yaml", "rollout.smaples=4"], "samples"),
        (["train", "tiny_train.yaml", "steps=some"], "steps"),
        (["train", "tiny_train.yaml", "policy.path=nowhere"], "nowhere"),
        (["train", "tiny_train.yaml", "data.path=nowhere"], "nowhere"),
        (["sft", "missing.yaml"], "missing.yaml"),
        (["sft", "tiny_sft.yaml", "batch.rows=0"], "batch.rows"),
        (["sft", "tiny_sft.yaml", "policy.config=nowhere/config.json"], "nowhere"),
        (["eval", "nowhere"], "nowhere"),
        (["eval", "bare"], "--config"),
        (["eval", "missing.yaml"], "missing.yaml"),
        (["eval", "tiny_train.yaml", "policy.path=nowhere"], "nowhere"),
        (["data", "inspect", "nowhere", "--mapper", "chartqa"], "nowhere"),
        (["data", "build", "tabels", "there"], "tabels"),
        (["generate", "nowhere", "--prompt", "Solve"], "nowhere"),
        (["generate", "CHECKPOINT", "--prompt", "Solve", "--image", "nowhere.png"], "nowhere.png"),
        (["generate", "CHECKPOINT", "--prompt", "Solve", "--image", "broken.png"], "broken.png"),
        (["generate", "CHECKPOINT", "--prompt", "Solve", "--image", "bare"], "bare"),
        (["generate", "CHECKPOINT", "--prompt", "<|im_end|>"], "im_end"),
        (["generate", "CHECKPOINT", "--prompt", "Solve", "--top-p", "7"], "top_p"),
        (["convert", "import", "nowhere", "target"], "nowhere"),
        (["convert", "import", "CHECKPOINT", "bare"], "not empty"),
        (["convert", "export", "bare", "target"], "run directory"),
        (["report", "nowhere"], "nowhere"),
    ],
)
def test_a_failure_is_one_line_and_exit_code_2(recipes, tiny_checkpoint, capsys, argv, words):
    bare = recipes / "bare"
    bare.mkdir(exist_ok=True)
    (bare / "config.json").write_bytes((tiny_checkpoint / "config.json").read_bytes())
    (recipes / "broken.png").write_bytes(b"no picture")
    before = sorted(recipes.glob("*"))
    argv = [str(tiny_checkpoint) if word == "CHECKPOINT" else word for word in argv]
    assert cli.main(argv) == 2
    # A machine under load tells how far reading the weights has come.
    told = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()
    (error,) = [line for line in told if line and not line.startswith("MB read")]
    assert error.startswith(f"vrrl {argv[0]}: ") and words in error
    assert sorted(recipes.glob("*")) == before  # nothing was begun


def test_debugging_shows_the_whole_error(monkeypatch):
    monkeypatch.setenv("VRRL_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        cli.main(["report", "nowhere"])


def test_an_interrupted_command_says_how_to_go_on(monkeypatch, capsys):
    from vrrl_jax import report

    def interrupted(run):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "write_report", interrupted)
    assert cli.main(["report", "."]) == 130
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [[], ["fly"], ["train"], ["data"], ["generate", "nano"], ["convert", "sideways", "a", "b"]],
)
def test_a_command_that_cannot_be_read_is_a_usage_error(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 2
    assert "usage: vrrl" in capsys.readouterr().err


def test_overrides_may_stand_behind_options(monkeypatch, capsys):
    from vrrl_jax import train

    seen = []
    monkeypatch.setattr(train, "main", lambda config, resume: seen.append((config, resume)))
    argv = ["train", "tiny_train.yaml", "seed=2", "--resume", "steps=7", "run_dir=there"]
    assert cli.main(argv) == 0
    ((config, resume),) = seen
    assert (config.seed, config.steps, config.run_dir, resume) == (2, 7, "there", True)
    with pytest.raises(SystemExit):
        cli.main(["report", "here", "steps=7"])
    with pytest.raises(SystemExit):
        cli.main(["train", "tiny_train.yaml", "--resume", "--fast"])
