"""Every field of a config.json is used, ignored by an explicit list, or refused by its name."""

import copy
import json
import pathlib

import pytest

from vrrl_jax.models.config import IGNORED, from_hf

ROOT = pathlib.Path(__file__).parents[2]
PUBLISHED = sorted((ROOT / "configs" / "models").glob("*.json"))
GOLDENS = sorted((ROOT / "tests" / "models" / "goldens").glob("*/config.json"))
FILES = {p.stem: p for p in PUBLISHED} | {p.parent.name: p for p in GOLDENS}
FAMILIES = {"qwen2_5_vl": "qwen2_5_vl_tiny", "qwen3_vl": "qwen3_vl_tiny"}


def read(name):
    return json.loads(FILES[name].read_text(encoding="utf-8"))


def leaves(raw, path=()):
    """Paths of all fields but sections."""
    for field, value in raw.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, field))
        else:
            yield (*path, field)


def sections(raw, path=()):
    """Paths of all sections, the top level first."""
    yield path
    for field, value in raw.items():
        if isinstance(value, dict):
            yield from sections(value, (*path, field))


def with_field(raw, path, value):
    raw = copy.deepcopy(raw)
    node = raw
    for section in path[:-1]:
        node = node.setdefault(section, {})
    node[path[-1]] = value
    return raw


def other(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return [*value[:-1], "x"] if isinstance(value[0], str) else value[:-1]
    return 7 if value is None else 2 * value


@pytest.mark.parametrize("name", FILES)
def test_no_field_is_read_over(name):
    """A changed field changes the policy or is refused, unless the list names it."""
    raw = read(name)
    config, outcomes = from_hf(raw), {"used": 0, "refused": 0, "ignored": 0}
    for path in leaves(raw):
        value = raw
        for part in path:
            value = value[part]
        try:
            same = from_hf(with_field(raw, path, other(value))) == config
        except ValueError:
            outcomes["refused"] += 1
            continue
        # The top level decides about the head; transformers' Qwen3-VL doesn't ask the text section.
        decided = config.family == "qwen3_vl" and path == ("text_config", "tie_word_embeddings")
        assert same == (path[-1] in IGNORED or decided), ".".join(path)
        outcomes["ignored" if same else "used"] += 1
    print(name, outcomes)
    assert outcomes["used"] > 10 and outcomes["refused"] > 3 and outcomes["ignored"] > 5


@pytest.mark.parametrize("value", [1, 0, 0.5, "gelu", True, [], {}, [3]], ids=repr)
@pytest.mark.parametrize("name", FILES)
def test_unknown_fields_are_refused_by_name(name, value):
    raw = read(name)
    for path in sections(raw):
        where = ".".join((*path, "attention_sinks"))
        with pytest.raises(ValueError, match="unknown fields") as caught:
            from_hf(with_field(raw, (*path, "attention_sinks"), value))
        assert where in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_flags_that_are_off_pass(name):
    raw = read(name)
    for value in (None, False):
        for path in sections(raw):
            off = with_field(raw, (*path, "attention_sinks"), value)
            assert from_hf(off) == from_hf(raw)


def text_of(raw):
    return ("text_config",) if "text_config" in raw else ()


def rope_of(raw):
    section = raw.get("text_config", raw)
    return (*text_of(raw), "rope_parameters" if "rope_parameters" in section else "rope_scaling")


# Where the field stands, the field, a value, and what the message says beside the field's name.
REFUSED = [
    (text_of, "use_sliding_window", True, "True"),
    (text_of, "hidden_act", "gelu", "'gelu'; supported: 'silu'"),
    (text_of, "attention_bias", True, "True"),
    (text_of, "num_key_value_heads", 3, "no multiple"),
    (rope_of, "rope_type", "yarn", "'yarn'"),
    (rope_of, "rope_type", "linear", "'linear'"),
    (rope_of, "type", "dynamic", "'dynamic'"),
    (rope_of, "factor", 4.0, "unknown"),
    (rope_of, "mrope_section", [1, 1, 1], "sum"),
    (rope_of, "mrope_section", [4, 4], "mrope_section"),
    (lambda raw: ("vision_config",), "hidden_act", "relu", "'relu'"),
    (lambda raw: ("vision_config",), "out_hidden_size", 3, "must equal"),
    (lambda raw: ("vision_config",), "spatial_patch_size", 3, "3; supported"),
    (lambda raw: (), "model_type", "qwen2_vl", "supported: qwen2_5_vl, qwen3_vl"),
    (lambda raw: (), "quantization_config", {"quant_method": "awq", "bits": 4}, "quantised"),
]


@pytest.mark.parametrize("where, field, value, words", REFUSED)
@pytest.mark.parametrize("name", FILES)
def test_options_that_are_not_computed_are_refused(name, where, field, value, words):
    raw = read(name)
    with pytest.raises(ValueError, match=field) as caught:
        from_hf(with_field(raw, (*where(raw), field), value), "there/config.json")
    assert words in str(caught.value)
    assert str(caught.value).startswith("there/config.json: ")


@pytest.mark.parametrize("name", FILES)
def test_sliding_layers_are_refused(name):
    raw = read(name)
    kinds = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="layer_types: sliding_attention"):
        from_hf(with_field(raw, (*text_of(raw), "layer_types"), kinds))


@pytest.mark.parametrize(
    "field, value",
    [
        ("deepstack_visual_indexes", [2, 0]),
        ("deepstack_visual_indexes", [1, 1]),
        ("deepstack_visual_indexes", [0, 4]),
        ("num_position_embeddings", 24),
    ],
)
def test_impossible_qwen3_towers_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"vision_config\.{field}"):
        from_hf(with_field(read("qwen3_vl_tiny"), ("vision_config", field), value))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["nested4", "flat"])
def test_both_layouts_say_the_same(family, tied, kind):
    hf = pytest.importorskip("make_goldens", reason="needs torch and transformers")
    raw = read(FAMILIES[family])
    raw["tie_word_embeddings"] = raw["text_config"]["tie_word_embeddings"] = tied
    config = from_hf(raw)
    assert config.text.tied == tied
    assert from_hf(hf.config_layout(raw, kind)) == config


def saved(config, directory):
    """What transformers writes."""
    config.save_pretrained(directory)
    return json.loads((directory / "config.json").read_text())


def config_class(family):
    transformers = pytest.importorskip("transformers")
    names = {"qwen2_5_vl": "Qwen2_5_VLConfig", "qwen3_vl": "Qwen3VLConfig"}
    return getattr(transformers, names[family])


@pytest.mark.parametrize("name", FILES)
def test_transformers_round_trip(name, tmp_path):
    """Read and written by transformers, a file says what it said."""
    raw = read(name)
    again = saved(config_class(raw["model_type"]).from_dict(copy.deepcopy(raw)), tmp_path)
    assert from_hf(again) == from_hf(raw)


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_of_transformers(family, tmp_path):
    """With what it leaves out filled in; its default tower fits no default decoder."""
    make = config_class(family)
    with pytest.raises(ValueError, match=r"vision_config\.out_hidden_size 3584 must equal"):
        from_hf(saved(make(), tmp_path))
    theirs = make(vision_config={"out_hidden_size": make().text_config.hidden_size})
    raw = saved(theirs, tmp_path)
    ours, text, vision = from_hf(raw), theirs.text_config, theirs.vision_config
    # The sections that its rotary embedding falls back to.
    assert ours.text.mrope_section == ((16, 24, 24) if family == "qwen2_5_vl" else (24, 20, 20))
    assert ours.text.kv_heads == text.num_key_value_heads
    assert ours.text.rope_theta == text.rope_parameters["rope_theta"]
    assert (ours.vision.layers, ours.vision.width) == (vision.depth, vision.hidden_size)
    # A file may leave out what has a default.
    bare = {k: raw[k] for k in ("model_type", "tie_word_embeddings", "transformers_version")}
    bare["vision_config"] = {"out_hidden_size": text.hidden_size}
    needed = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    bare["text_config"] = {k: raw["text_config"][k] for k in (*needed, "intermediate_size")}
    assert from_hf(bare) == ours
    assert from_hf(saved(make.from_dict(bare), tmp_path)) == ours


@pytest.mark.parametrize("name", FAMILIES.values())
def test_null_key_value_heads_are_as_many_as_heads(name):
    raw = read(name)
    config = from_hf(with_field(raw, ("text_config", "num_key_value_heads"), None))
    assert config.text.kv_heads == config.text.heads == 4


@pytest.mark.parametrize(
    "field", ["vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"]
)
@pytest.mark.parametrize("name", FAMILIES.values())
def test_missing_fields_are_named(name, field):
    raw = read(name)
    del raw["text_config"][field]
    with pytest.raises(ValueError, match=rf"no field text_config\.{field}"):
        from_hf(raw)


# top level, text section -> what transformers takes, for (Qwen2.5-VL, Qwen3-VL).
TIES = [
    (True, False, (True, True)),
    (False, True, (True, False)),
    (None, True, (True, True)),  # as transformers 4.57 saved tied models
    (None, None, (False, False)),
    (False, None, (False, False)),
]


@pytest.mark.parametrize("top, inner, tied", TIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_who_says_that_the_head_is_tied(family, top, inner, tied):
    raw = read(FAMILIES[family])
    raw["tie_word_embeddings"], raw["text_config"]["tie_word_embeddings"] = top, inner
    raw = {k: v for k, v in raw.items() if v is not None}
    assert from_hf(raw).text.tied == tied[family == "qwen3_vl"]


@pytest.mark.skipif(not PUBLISHED, reason="no configs/models here")
def test_published_files_are_there_for_both_families():
    families = [from_hf(json.loads(p.read_text()), str(p)).family for p in PUBLISHED]
    assert set(families) == set(FAMILIES)
