"""Recipes: what is accepted, and that every mistake names its place and a remedy."""

import dataclasses

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vrrl_jax import config as c


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe and loads it."""

    def load(text, *overrides, cls=c.TrainConfig):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return c.load(path, overrides, cls)

    return load


@pytest.fixture
def refused(recipe):
    """Loads a recipe that must be refused; gives the message."""

    def load(text, *overrides, cls=c.TrainConfig):
        with pytest.raises(c.ConfigError) as caught:
            recipe(text, *overrides, cls=cls)
        return str(caught.value)

    return load


def test_an_empty_recipe_is_the_released_one(recipe):
    config = recipe("")
    assert config == c.TrainConfig()
    assert (config.rollout.questions, config.rollout.samples) == (32, 8)
    assert (config.algorithm.clip_low, config.algorithm.clip_high) == (0.2, 0.3)
    assert config.optimizer.learning_rate == 5e-7
    assert config.data.levels == (3, 4, 5)


def test_values_of_every_type(recipe):
    config = recipe(
        """
        run_dir: runs/x
        steps: 12
        optimizer: {learning_rate: 1e-4, weight_decay: 1, grad_clip: null}
        data:
          levels: [3, 6]
          hole_probability: [.1, 2e-1]
          weights: [1, 2]
        rollout:
          train_end_token: no
        mesh:
        """
    )
    assert (config.run_dir, config.steps) == ("runs/x", 12)
    assert config.optimizer.learning_rate == 1e-4  # YAML 1.1 reads this one as text
    assert isinstance(config.optimizer.weight_decay, float)
    assert config.optimizer.grad_clip is None
    assert config.data.levels == (3, 6)
    assert config.data.hole_probability == (0.1, 0.2)
    assert config.data.weights == (1.0, 2.0)
    assert config.rollout.train_end_token is False
    assert config.mesh == c.MeshConfig()


def test_overrides_win_in_order(recipe):
    config = recipe(
        "seed: 1\nmesh: {data: 2}\n",
        "seed=2",
        "seed=3",
        "mesh.fsdp=4",
        "data.levels=[4,5]",
        "--env.question=[look",
        "run_dir=2026",
        "policy.path=",
        "policy.path=some/place",
        "modes={rtm: 1}",
    )
    assert config.seed == 3
    assert config.mesh == c.MeshConfig(data=2, fsdp=4)
    assert config.data.levels == (4, 5)
    assert config.env.question == "[look"
    assert config.run_dir == "2026"  # a command line has no quotes to say that this is a name
    assert config.policy.path == "some/place"
    assert config.modes == c.ModesConfig(rtm=1)


def test_a_section_keeps_the_defaults_of_the_recipe_it_belongs_to(recipe):
    config = recipe("", "optimizer.b1=0.8", cls=c.SftConfig)
    default = c.SftConfig().optimizer
    assert default != c.OptimizerConfig()
    assert config.optimizer == dataclasses.replace(default, b1=0.8)


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("a:\n", (), ["recipe.yaml:1", "'a'", "known here", "rollout"]),
        ("seed: 1\nrollout:\n  sample: 3\n", (), ["recipe.yaml:3", "'rollout.sample'", "samples'"]),
        ("learning_rate: 1\n", (), ["'learning_rate'", "'optimizer.learning_rate'"]),
        ("", ("rollout.learning_rate=1",), ["override", "'optimizer.learning_rate'"]),
        ("", ("mash.data=2",), ["'mash.data'", "'mesh.data'"]),
        ("", ("seed",), ["key=value"]),
        ("", ("seed.a=1",), ["'seed'", "integer"]),
        ("optimizer: 3\n", ("optimizer.b1=0.5",), ["recipe.yaml:1", "'optimizer'", "section"]),
        ("seed: 1\nseed: 2\n", (), ["recipe.yaml:2", "'seed'", "recipe.yaml:1"]),
        ("seed: [1\n", (), ["recipe.yaml", "not valid YAML"]),
        ("- 1\n", (), ["recipe.yaml:1", "key: value"]),
        ("[1]: 2\n", (), ["recipe.yaml:1", "key must be a name"]),
        ("seed: !!python/name:os.system x\n", (), ["recipe.yaml:1", "can't read"]),
    ],
)
def test_unreadable_recipes(refused, text, overrides, words):
    message = refused(text, *overrides)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("steps: 1.5", "'steps' expects an integer, got the number '1.5'"),
        ("steps: true", "'steps' expects an integer, got the boolean 'true'"),
        ("steps: null", "'steps' expects an integer, got nothing (null)"),
        ("run_dir: 3", "'run_dir' expects a text"),
        ("optimizer: {learning_rate: fast}", "'optimizer.learning_rate' expects a finite number"),
        ("optimizer: {learning_rate: .nan}", "'optimizer.learning_rate' expects a finite number"),
        ("optimizer: {b1: true}", "'optimizer.b1' expects a finite number"),
        ("policy: {value_head: 1}", "'policy.value_head' expects true or false"),
        ("data: {levels: 3}", "'data.levels' expects a list of integers"),
        ("data: {levels: [3, x]}", "'data.levels[1]' expects an integer"),
        ("data: {hole_probability: [.1]}", "expects a list of 2 numbers, got a list of 1"),
        ("mesh: [1, 2]", "'mesh' expects a section"),
        ("algorithm: {name: pop}", "must be one of grpo, ppo, got the text 'pop'; did you mean"),
    ],
)
def test_wrong_types_name_the_key_and_what_is_expected(refused, line, expected):
    message = refused(f"seed: 1\n{line}\n")
    assert "recipe.yaml:2: " in message
    assert expected in message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("algorithm: {clip_low: 1}", "algorithm.clip_low"),
        ("algorithm: {dual_clip: 0.5}", "algorithm.dual_clip"),
        ("algorithm: {name: ppo}", "policy.value_head must be true"),
        ("algorithm: {minibatches: 5}", "must divide rollout.questions"),
        ("rollout: {samples: 1}", "rollout.samples must be at least 2"),
        ("rollout: {temperature: 0}", "rollout.temperature must be greater than 0"),
        ("rollout: {top_p: 1.2}", "rollout.top_p"),
        ("env: {cell: 0}", "env.cell must be at least 4, got 0"),
        ("data: {levels: []}", "data.levels"),
        ("data: {levels: [1]}", "data.levels"),
        ("data: {hole_probability: [0.5, 0.1]}", "data.hole_probability"),
        ("data: {weights: [1]}", "data.weights"),
        ("modes: {normal: 0}", "modes.normal"),
        ("modes: {rtm: -1}", "modes.rtm"),
        ("modes: {rtm: 1}\nrtm: {k_min: 8}", "rtm.k_min must be under env.max_turns"),
        ("modes: {roll_in: 1}\nenv: {max_turns: 6}", "roll_in.max_prefix_turns"),
        ("roll_in: {capacity: 10}", "roll_in.min_size"),
        ("filter: {low: 1, high: 0}", "filter.low"),
        ("optimizer: {warmup_steps: -1}", "optimizer.warmup_steps"),
        ("steps: 0", "steps must be at least 1"),
        ("optimizer: {b2: 1}", "optimizer.b2"),
        ("reward: {graded: true}", "reward.outcome_weight"),
        ("reward: {reflect_lower_clip: -2}", "reward.reflect_lower_clip"),
        ("mesh: {data: 0}", "mesh.data"),
        ("mesh: {data: -1, tensor: -1}", "mesh.tensor is a second -1"),
        ("mesh: {data: 3}", "rollout.questions times rollout.samples must divide"),
        ("mesh: {fsdp: 8}\nupdate: {rows_per_microbatch: 4}", "update.rows_per_microbatch"),
        ("policy: {init: random, config: c.json}", "policy.init must be pretrained"),
        ("policy: {init: random}", "policy.config is needed"),
        ("eval: {temperatures: [-1]}", "eval.temperatures"),
        ("checkpoint: {every: 0}", "checkpoint.every"),
        ("guard: {max_bad_steps: 0}", "guard.max_bad_steps"),
    ],
)
def test_values_that_a_section_refuses(refused, line, words):
    message = refused(line + "\n")
    assert words in message
    assert "recipe.yaml" in message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ema_decay: 1", "ema_decay"),
        ("demonstrations: {max_turns: 9}", "demonstrations.max_turns exceeds env.max_turns, 8"),
        ("demonstrations: {wrong_first: 2}", "demonstrations.wrong_first"),
        ("batch: {fill: 0}", "batch.fill"),
        ("batch: {rows: 6}\nmesh: {data: 4}", "batch.rows"),
    ],
)
def test_values_that_supervised_runs_refuse(refused, line, words):
    assert words in refused(line + "\n", cls=c.SftConfig)


def test_a_refused_value_is_placed_where_it_was_written(refused):
    assert "recipe.yaml:4: mesh.fsdp" in refused("seed: 1\nmesh:\n  data: 1\n  fsdp: -2\n")
    assert "override 'mesh.fsdp=-2'" in refused("mesh:\n  fsdp: 1\n", "mesh.fsdp=-2")
    # Between sections: the place is that of the key that is to change.
    assert "recipe.yaml:2: policy.value_head" in refused(
        "policy:\n  value_head: false\nalgorithm:\n  name: ppo\n"
    )


def test_sections_refuse_outside_of_files_too():
    with pytest.raises(c.ConfigError, match="clip_low must lie in"):
        c.AlgorithmConfig(clip_low=2.0)


def test_a_missing_recipe(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml.*YAML recipe"):
        c.load(tmp_path / "nowhere.yaml", (), c.TrainConfig)


@pytest.mark.parametrize("cls", [c.TrainConfig, c.SftConfig])
def test_resolved_configurations_round_trip(recipe, cls):
    config = recipe(
        "",
        "optimizer.learning_rate=3e-5",
        "env.question=Which way?\nLook: 'there'.",
        "run_dir='1e3'",
        "data.path=null",
        "eval.levels=[3]",
        cls=cls,
    )
    text = c.to_yaml(config)
    assert recipe(text, cls=cls) == config
    assert "levels: [3]" in text
    assert set(yaml.safe_load(text)) == {f.name for f in dataclasses.fields(cls)}


@given(
    rate=st.floats(0, 1e300),
    text=st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"])),
)
def test_any_number_and_text_round_trips(tmp_path_factory, rate, text):
    optimizer = c.OptimizerConfig(learning_rate=rate)
    config = c.TrainConfig(optimizer=optimizer, env=c.NavigationEnv(question=text))
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(c.to_yaml(config), encoding="utf-8")
    assert c.load(path, (), c.TrainConfig) == config


@pytest.mark.parametrize("cls", [c.TrainConfig, c.SftConfig])
def test_every_key_can_be_overridden_with_its_default(recipe, cls):
    """No field has a type that the loader can't read."""
    default = cls()
    for key in c.dotted_keys(cls):
        value = default
        for part in key.split("."):
            value = getattr(value, part)
        if not dataclasses.is_dataclass(value):
            text = yaml.safe_dump(list(value) if isinstance(value, tuple) else value).split("\n...")
            assert recipe("", f"{key}={text[0].strip()}", cls=cls) == default, key
