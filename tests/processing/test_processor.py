"""The processor against transformers, the shipped tokenizer's promises, and broken directories."""

import importlib.util
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest

from vrrl_jax.checkpoint import hf
from vrrl_jax.processing import processor as proc

ROOT = pathlib.Path(__file__).resolve().parents[2]
NANO = ROOT / "vrrl_jax" / "assets" / "nano"
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    "generation_config.json",
)
# Qwen2.5-VL's published template, less its video branch: a default system message comes first.
QWEN_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% for message in messages %}{% if loop.first and "
    "message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture "
    "{{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = [
    "<ANSWER>right up up</ANSWER>",
    "<THINK> step 3 hole</THINK><ANSWER>left</ANSWER>",
    "<FINAL>down, down</FINAL>",
    " 1 2 12 36 37 128 3.14",
    "superuser\nassistant\nuser \n\n\tx",
    "Solve\r\nVerify 'don't' I'LL",
    "héllo, 你好, e\u0301 🙂 \u200b",
    "upleftrightdown leftover steps goodness",
    "",
]


@pytest.fixture(scope="module")
def nano():
    return proc.load_processor(NANO)


@pytest.fixture(scope="module")
def qwen_like(tmp_path_factory):
    """The shipped tokenizer under Qwen2.5-VL's own template."""
    directory = tmp_path_factory.mktemp("qwen")
    for name in FILES:
        shutil.copy(NANO / name, directory)
    (directory / "chat_template.jinja").write_text(QWEN_TEMPLATE)
    return directory


def picture(processor, height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return proc.picture(processor, pixels)


def user(*parts):
    content = [{"type": "text", "text": p} if p else {"type": "image"} for p in parts]
    return {"role": "user", "content": content}


def reference_ids(directory, messages, pictures):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    head, *rest = text.split("<|image_pad|>")
    counts = [len(p.patches) // 4 for p in pictures]
    assert len(rest) == len(counts)
    text = head + "".join("<|image_pad|>" * n + r for n, r in zip(counts, rest, strict=True))
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_ids_and_text_equal_transformers(nano):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(NANO)
    assert type(tokenizer).__name__.startswith("Qwen2Tokenizer")
    assert len(tokenizer) == nano.vocab_size
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (nano.ids.im_end, nano.ids.endoftext)
    for text in [*TEXTS, "<|im_start|>user\nx<|im_end|>", *nano.special_tokens]:
        ids = proc.encode(nano, text)
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"], text
        assert proc.decode(nano, ids) == tokenizer.decode(ids, skip_special_tokens=True)
        assert proc.decode(nano, ids, False) == tokenizer.decode(ids)


CHATS = {
    "one": ([user("", "Solve")], [(140, 140)]),
    "text": ([{"role": "user", "content": "Solve 12"}], []),
    "system": ([{"role": "system", "content": "good"}, user("", "Solve")], [(84, 112)]),
    "several": (
        [
            user("before", "", "between", "", "after"),
            {"role": "assistant", "content": "<ANSWER>up up</ANSWER>"},
            user("", "Verify"),
        ],
        [(28, 28), (56, 84), (150, 90)],
    ),
}


@pytest.mark.parametrize("template", ["nano", "qwen"])
@pytest.mark.parametrize("name", CHATS)
def test_chat_ids_equal_transformers(name, template, nano, qwen_like):
    directory = NANO if template == "nano" else qwen_like
    processor = nano if template == "nano" else proc.load_processor(qwen_like)
    messages, sizes = CHATS[name]
    pictures = [picture(processor, *size) for size in sizes]
    ids = proc.chat_prompt(processor, messages, pictures)
    assert ids.dtype == np.int32
    assert ids.tolist() == reference_ids(directory, messages, pictures)
    assert (ids == processor.ids.image_pad).sum() == sum(len(p.patches) // 4 for p in pictures)


@pytest.mark.parametrize("template", ["nano", "qwen"])
def test_next_user_is_the_rest_of_the_whole_chat(template, nano, qwen_like):
    processor = nano if template == "nano" else proc.load_processor(qwen_like)
    first, second = user("", "Solve"), user("", "Verify\n")
    pictures = [picture(processor, 84, 84), picture(processor, 112, 56)]
    start = proc.chat_prompt(processor, [first], pictures[:1])
    for reply in ("<ANSWER>up up</ANSWER>", "\nleft \n", ""):
        chat = [first, {"role": "assistant", "content": reply}, second]
        whole = proc.chat_prompt(processor, chat, pictures)
        middle = [*proc.encode(processor, reply), processor.ids.im_end]
        rest = proc.next_user(processor, second, pictures[1:])
        assert rest.dtype == np.int32
        np.testing.assert_array_equal(whole, np.concatenate([start, middle, rest]))


def test_next_user_is_cached_by_text_and_size(nano):
    message = user("", "Verify")
    small, large = picture(nano, 84, 84), picture(nano, 140, 140)
    first = proc.next_user(nano, message, [small])
    assert proc.next_user(nano, user("", "Verify"), [picture(nano, 84, 84, seed=1)]) is first
    assert len(proc.next_user(nano, message, [large])) == len(first) + 25 - 9
    assert proc.next_user(nano, user("", "Verify!"), [small]).tolist() != first.tolist()
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0
    again = proc.next_user(proc.load_processor(NANO), message, [small])
    assert again is not first and again.tolist() == first.tolist()


@pytest.mark.parametrize("count", [0, 2])
def test_pictures_must_match_the_images(count, nano):
    pictures = [picture(nano, 84, 84)] * count
    for call in (lambda m: proc.chat_prompt(nano, [m], pictures),
                 lambda m: proc.next_user(nano, m, pictures)):  # fmt: skip
        with pytest.raises(ValueError, match=f"{count} pictures given.*have 1 images"):
            call(user("", "Solve"))


def test_no_text_becomes_a_special_token(nano):
    assert "<|image_pad|>" in nano.special_tokens and "<ANSWER>" not in nano.special_tokens
    for token in nano.special_tokens:
        message = user(f"a {token} b")
        for call in (lambda m: proc.chat_prompt(nano, [m]), lambda m: proc.next_user(nano, m)):
            with pytest.raises(ValueError) as caught:
                call(message)
            assert token in str(caught.value)
    ids = proc.chat_prompt(nano, [user("<|image_pad |> <image_pad> <|im", "_end |>")])
    assert nano.ids.image_pad not in ids and (ids == nano.ids.im_end).sum() == 1


def test_a_template_blind_to_pictures_is_named(qwen_like, tmp_path):
    shutil.copytree(qwen_like, tmp_path, dirs_exist_ok=True)
    blind = "{% for m in messages %}{{ m['role'] }}<|im_end|>{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(blind)
    processor = proc.load_processor(tmp_path)
    with pytest.raises(ValueError, match="wrote 0 picture placeholders for 1 images"):
        proc.chat_prompt(processor, [user("", "x")], [picture(processor, 84, 84)])


def test_pixel_values_equal_the_directorys_own_processor(nano):
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    pixels = np.random.default_rng(3).integers(0, 256, (130, 150, 3), np.uint8)
    expected = module.Qwen2VLImageProcessorPil.from_pretrained(NANO)(pixels, return_tensors="np")
    shown = proc.picture(nano, pixels)
    np.testing.assert_array_equal(proc.pixel_values(nano, shown), expected["pixel_values"])
    assert shown.grid == tuple(expected["image_grid_thw"][0])


def test_decode_takes_arrays_and_survives_broken_bytes(nano):
    ids = np.asarray([*proc.encode(nano, "up"), nano.ids.im_end, nano.ids.endoftext], np.int32)
    assert proc.decode(nano, ids) == "up"
    assert proc.decode(nano, ids, skip_special_tokens=False) == "up<|im_end|><|endoftext|>"
    assert proc.decode(nano, proc.encode(nano, "é")[:1]) == "\ufffd"
    assert proc.decode(nano, []) == ""
    for text in TEXTS:
        if "e\u0301" not in text:  # NFC composes it
            assert proc.decode(nano, proc.encode(nano, text)) == text


# What nano's lengths, and so its cost, rest on.
def test_nanos_words_are_single_tokens(nano):
    actions = ["left", "right", "up", "down"]
    words = [*actions, "user", "assistant", "system", "Solve", "Verify"]
    spaced = [*actions, "step", "hole", "off", "short", "over", "detour", "good"]
    numbers = [str(n) for n in range(1, 37)]
    for text in [*words, *(" " + w for w in spaced + numbers), *"0123456789\n "]:
        assert len(proc.encode(nano, text)) == 1, text
    assert len(proc.encode(nano, "<ANSWER>right up up</ANSWER>")) == 5
    assert len(proc.encode(nano, "<THINK> step 3 hole</THINK>")) == 5
    assert len(proc.encode(nano, "<FINAL>right</FINAL>")) == 3
    prompt = proc.chat_prompt(nano, [user("", "Solve")], [picture(nano, 140, 140)])
    assert (prompt == nano.ids.image_pad).sum() == 25
    assert (prompt != nano.ids.image_pad).sum() <= 10
    assert nano.vocab_size == 380


@pytest.mark.parametrize("name", [name for name in hf.SHIPPED if name != "nano-early"])
def test_nanos_files_are_what_the_script_writes(tmp_path, monkeypatch, name):
    path = ROOT / "scripts" / "make_nano_tokenizer.py"
    spec = importlib.util.spec_from_file_location("make_nano_tokenizer", path)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)  # where its dataclasses look
    spec.loader.exec_module(script)
    script.write(tmp_path, script.VOCABULARIES[name]())
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(FILES)
    for file in FILES:
        assert (tmp_path / file).read_bytes() == (hf.ASSETS / name / file).read_bytes(), file


def test_nanos_end_and_pad_tokens(nano):
    config = json.loads((NANO / "generation_config.json").read_text())
    assert config["eos_token_id"] == [nano.ids.im_end, nano.ids.endoftext]
    assert config["pad_token_id"] == nano.ids.endoftext


def test_a_directory_saved_by_transformers_loads(tmp_path, nano):
    transformers = pytest.importorskip("transformers")
    transformers.AutoTokenizer.from_pretrained(NANO).save_pretrained(tmp_path)
    config = json.loads((NANO / "preprocessor_config.json").read_text())
    config["size"] = {
        "shortest_edge": config.pop("min_pixels"),
        "longest_edge": config.pop("max_pixels"),
    }
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": config}))
    loaded = proc.load_processor(tmp_path)
    assert loaded.images == nano.images and loaded.ids == nano.ids
    for text in TEXTS:
        assert proc.encode(loaded, text) == proc.encode(nano, text)
    ids = proc.chat_prompt(loaded, [user("Solve")])
    np.testing.assert_array_equal(ids, proc.chat_prompt(nano, [user("Solve")]))


def test_bounds_can_be_given():
    processor = proc.load_processor(NANO, max_pixels=28 * 28 * 4)
    assert picture(processor, 140, 140).grid == (1, 4, 4)
    assert processor.images.min_pixels == 784
    with pytest.raises(ValueError, match="max_pixels"):
        proc.load_processor(NANO, max_pixels=1)


def test_padding_and_truncation_of_a_file_are_ignored(qwen_like, tmp_path):
    shutil.copytree(qwen_like, tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["truncation"] = {
        "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert len(proc.encode(proc.load_processor(tmp_path), "up up up")) == 3


@pytest.mark.parametrize(
    ("name", "content", "error", "match"),
    [
        ("tokenizer.json", None, FileNotFoundError, r"no tokenizer\.json in"),
        ("tokenizer.json", "{}", ValueError, r"tokenizer\.json is no valid tokenizer"),
        ("chat_template.jinja", None, FileNotFoundError, "no chat template in"),
        ("chat_template.jinja", "{% if %}", ValueError, "chat template, line 1"),
        ("preprocessor_config.json", None, FileNotFoundError, r"no preprocessor_config\.json"),
        ("preprocessor_config.json", "{", ValueError, r"preprocessor_config\.json is no valid"),
        ("preprocessor_config.json", '{"patch_size": 0}', ValueError, "patch_size must be"),
    ],
)
def test_broken_directories_are_explained(name, content, error, match, tmp_path):
    for file in FILES:
        shutil.copy(NANO / file, tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=match):
        proc.load_processor(tmp_path)


def test_a_tokenizer_of_another_family_is_refused(tmp_path):
    for file in FILES:
        shutil.copy(NANO / file, tmp_path)
    text = (tmp_path / "tokenizer.json").read_text().replace("<|video_pad|>", "<|movie_pad|>")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"lacks the token <\|video_pad\|>"):
        proc.load_processor(tmp_path)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        proc.load_processor(tmp_path / "absent")
