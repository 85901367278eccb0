"""Directories of both families, and whole chats, against the processors of transformers."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from vrrl_jax.processing import images
from vrrl_jax.processing import processor as proc

NANO = pathlib.Path(__file__).resolve().parents[2] / "vrrl_jax" / "assets" / "nano"
CLIP = {"image_mean": list(images.CLIP_MEAN), "image_std": list(images.CLIP_STD)}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
# As published, so without a smaller max_pixels that a training would set.
PUBLISHED = {
    "qwen2.5": {
        "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2,
        "merge_size": 2, "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor", **CLIP,
    },
    "qwen3": {
        "size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16,
        "temporal_patch_size": 2, "merge_size": 2, "processor_class": "Qwen3VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessorFast", **HALF,
    },
}  # fmt: skip
# In Qwen2.5-VL's manner: one line, a system message of its own, pictures counted on demand.
COUNTING = (
    "{% set seen = namespace(pictures=0, films=0) %}{% for m in messages %}"
    "{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}{% if part['type'] == 'image' or 'image' in part %}"
    "{% set seen.pictures = seen.pictures + 1 %}{% if add_vision_id %}No. {{ seen.pictures }}: "
    "{% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif 'video' in part %}"
    "{% set seen.films = seen.films + 1 %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# In Qwen3-VL's manner: attributes, trimmed blocks on lines of their own, tools, replies to them.
TOOLS = """{%- macro shown(content) %}
    {%- if content is string %}
        {{- content }}
    {%- else %}
        {%- for part in content %}
            {%- if part.type == 'image' or 'image' in part or 'image_url' in part %}
                {%- set count.value = count.value + 1 %}
                {%- if add_vision_id %}Picture {{ count.value }}: {% endif -%}
                <|vision_start|><|image_pad|><|vision_end|>
            {%- elif 'text' in part %}
                {{- part.text }}
            {%- else %}
                {{- raise_exception('What is this?') }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- set count = namespace(value=0) %}
{%- if tools %}
    {{- '<|im_start|>system\\nUse:' }}
    {%- for tool in tools %}
        {{- '\\n' + tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + shown(messages[0].content) + '<|im_end|>\\n' }}
{%- endif %}
{%- set last = namespace(question=messages|length - 1, open=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if last.open and message.role == 'user' and not (message.content is string
           and message.content.startswith('<tool_response>')) %}
        {%- set last.open = false %}
        {%- set last.question = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'system' and loop.first %}{% continue %}{% endif %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > last.question %}
            {{- '(' + message.reasoning_content | default('') + ')' }}
        {%- endif %}
        {%- generation %}
        {{- shown(message.content) }}
        {%- if message.tool_calls %}
            {%- for call in message.tool_calls %}
                {{- call.function | tojson }}
            {%- endfor %}
        {%- endif %}
        {%- endgeneration %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + shown(message.content) + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think></think>' }}
    {%- endif %}
{%- endif %}
"""
# What only the names that transformers hands to every template can tell.
NAMES = (
    "{{ tools is none }}{{ documents is defined }}{{ bos_token is defined }}{{ pad_token }}"
    "{% for m in messages %}{% if m.role not in ['user', 'assistant', 'system'] %}{% break %}"
    "{% endif %}{{ m.role }}:{% for part in m.content %}{% if m.content is string %}{{ part }}"
    "{% elif part.type == 'image' %}<|image_pad|>{% else %}{{ part.text | trim }}{% endif %}"
    "{% endfor %}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
TEMPLATES = {"counting": COUNTING, "tools": TOOLS, "names": NAMES}


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write(directory, config, template=COUNTING):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(NANO / name, directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(config))
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return directory


def image_processor(directory):
    transformers = pytest.importorskip("transformers", minversion="5.23")
    module = transformers.models.qwen2_vl.image_processing_pil_qwen2_vl
    return module.Qwen2VLImageProcessorPil.from_pretrained(directory)


def whole_processor(family, directory):
    """transformers' processor of a family, less its films, which need torchvision."""
    transformers = pytest.importorskip("transformers", minversion="5.23")
    name = {"qwen2.5": "Qwen2_5_VLProcessor", "qwen3": "Qwen3VLProcessor"}[family]

    def start(self, image_processor=None, tokenizer=None, chat_template=None):
        base.__init__(self, image_processor, tokenizer, None, chat_template=chat_template)

    base = getattr(transformers, name)
    still = type(
        "Still",
        (base,),
        {
            "__init__": start,
            "get_attributes": classmethod(lambda cls: ["image_processor", "tokenizer"]),
        },
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    return still(image_processor(directory), tokenizer, chat_template=tokenizer.chat_template)


def user(*parts):
    """Texts, and pictures as sizes."""
    return {
        "role": "user",
        "content": [
            {"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p}
            for p in parts
        ],
    }


def said(text):
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


CHATS = {
    "one picture": [user((70, 91), "Solve")],
    "words alone": [{"role": "user", "content": "Solve 12"}],
    "a system message": [{"role": "system", "content": "good"}, user((33, 200), "Solve")],
    "parts of a system message": [
        {"role": "system", "content": [{"type": "text", "text": "be good"}]},
        user("Solve", (64, 64), "\n\n"),
    ],
    "many pictures": [user(*[(28 + 9 * i, 90 - 7 * i) for i in range(7)], "which?", (56, 56))],
    "many turns": [
        user("before ", (84, 84), " between ", (28, 140), " after\n"),
        said("<ANSWER>up up</ANSWER>"),
        user((96, 128), "Verify"),
        {"role": "assistant", "content": "\n<FINAL>left</FINAL> "},
        user("  é 你好 ", (32, 32), (300, 40)),
        said(""),
        user("Go on"),
    ],
}


@pytest.fixture(scope="module")
def small():
    """Settings of both families with bounds that tests can afford."""
    bounds = {"min_pixels": 1024, "max_pixels": 20000}
    return {
        "qwen2.5": {**PUBLISHED["qwen2.5"], **bounds},
        "qwen3": {**PUBLISHED["qwen3"], "size": {"shortest_edge": 2048, "longest_edge": 40000}},
    }


@pytest.mark.parametrize("family", PUBLISHED)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", CHATS)
def test_chats_equal_transformers_processor(name, template, family, small, tmp_path):
    directory = write(tmp_path, small[family], TEMPLATES[template])
    processor = proc.load_processor(directory)
    sizes = [
        part["image"]
        for message in CHATS[name]
        if not isinstance(message["content"], str)
        for part in message["content"]
        if "image" in part
    ]
    shown = iter([noise(*size, seed=i) for i, size in enumerate(sizes)])
    messages = [
        message
        if isinstance(message["content"], str)
        else {
            **message,
            "content": [
                {**part, "image": Image.fromarray(next(shown))} if "image" in part else part
                for part in message["content"]
            ],
        }
        for message in CHATS[name]
    ]
    expected = whole_processor(family, directory).apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="np"
    )
    pictures = [proc.picture(processor, noise(*size, seed=i)) for i, size in enumerate(sizes)]
    ids = proc.chat_prompt(processor, messages, pictures)
    assert ids.tolist() == expected["input_ids"][0].tolist()
    np.testing.assert_array_equal(ids == processor.ids.image_pad, expected["mm_token_type_ids"][0])
    if pictures:
        grids = [list(picture.grid) for picture in pictures]
        assert grids == expected["image_grid_thw"].tolist()
        values = np.concatenate([proc.pixel_values(processor, picture) for picture in pictures])
        np.testing.assert_array_equal(values, expected["pixel_values"])


@pytest.mark.parametrize("family", PUBLISHED)
@pytest.mark.parametrize("template", ["counting", "tools"])
def test_a_chat_in_pieces_equals_the_whole(template, family, small, tmp_path):
    processor = proc.load_processor(write(tmp_path, small[family], TEMPLATES[template]))
    turns = CHATS["many turns"][::2]
    pieces, pictures, messages = [], [], []
    for number, turn in enumerate(turns):
        sizes = [part["image"] for part in turn["content"] if "image" in part]
        new = [proc.picture(processor, noise(*size)) for size in sizes]
        pictures, messages = pictures + new, [*messages, turn]
        first = number == 0
        pieces.append(
            proc.chat_prompt(processor, [turn], new)
            if first
            else proc.next_user(processor, turn, new)
        )
        whole = proc.chat_prompt(processor, messages, pictures)
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
        reply = f"left {number}"
        messages.append({"role": "assistant", "content": reply})
        pieces.append([*proc.encode(processor, reply), processor.ids.im_end])


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_settings_equal_transformers(family, tmp_path):
    directory = write(tmp_path, PUBLISHED[family])
    settings = proc.load_processor(directory).images
    theirs = image_processor(directory)
    assert (settings.min_pixels, settings.max_pixels) == (
        theirs.size["shortest_edge"],
        theirs.size["longest_edge"],
    )
    assert settings.patch_size == theirs.patch_size == {"qwen2.5": 14, "qwen3": 16}[family]
    for size in ((30, 40), (199, 1), (411, 297), (840, 1260)):
        expected = theirs(images=[Image.fromarray(noise(*size))], return_tensors="np")
        picture = images.patchify(noise(*size), settings)
        assert picture.grid == tuple(expected["image_grid_thw"][0])
        np.testing.assert_array_equal(
            images.pixel_values(picture, settings), expected["pixel_values"]
        )


@pytest.mark.parametrize("family", PUBLISHED)
def test_sizes_equal_transformers_over_many(family, tmp_path):
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    settings = proc.load_processor(write(tmp_path, PUBLISHED[family])).images
    bounds = (settings.factor, settings.min_pixels, settings.max_pixels)
    chance = np.random.default_rng(0)
    for height, width in np.exp(chance.uniform(0, np.log(20_000), (1500, 2))).astype(int).tolist():
        if max(height, width) <= 200 * min(height, width):
            size = images.smart_resize(height, width, *bounds)
            assert size == module.smart_resize(height, width, *bounds), (height, width)


@pytest.mark.parametrize("family", PUBLISHED)
def test_what_transformers_saves_is_read(family, small, tmp_path):
    """One processor_config.json, no preprocessor_config.json, the template in a file."""
    source, saved = tmp_path / "source", tmp_path / "saved"
    source.mkdir()
    whole_processor(family, write(source, small[family], TOOLS)).save_pretrained(saved)
    assert not (saved / "preprocessor_config.json").exists()
    before, after = proc.load_processor(source), proc.load_processor(saved)
    assert after.images == before.images != images.ImageSettings()
    assert after.template == before.template
    assert after.named_tokens == before.named_tokens
    assert after.special_tokens == before.special_tokens
    messages = [{"role": "user", "content": "Solve 12 é"}]
    np.testing.assert_array_equal(
        proc.chat_prompt(after, messages), proc.chat_prompt(before, messages)
    )


def test_the_nested_settings_win_as_in_transformers(small, tmp_path):
    directory = write(tmp_path, small["qwen2.5"])
    nested = {**small["qwen3"], "image_processor_type": "Qwen2VLImageProcessor"}
    (directory / "processor_config.json").write_text(json.dumps({"image_processor": nested}))
    settings = proc.load_processor(directory).images
    theirs = image_processor(directory)
    assert settings.patch_size == theirs.patch_size == 16
    assert settings.image_mean == tuple(theirs.image_mean) == (0.5, 0.5, 0.5)
    assert settings.max_pixels == theirs.size["longest_edge"] == 40000
    # A file of that name without one, as older versions wrote it, says nothing.
    (directory / "processor_config.json").write_text('{"processor_class": "Qwen2_5_VLProcessor"}')
    assert proc.load_processor(directory).images.patch_size == 14
    (directory / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no preprocessor_config\.json"):
        proc.load_processor(directory)


def test_templates_are_chosen_as_transformers_chooses(small, tmp_path):
    directory = write(tmp_path, small["qwen3"], "jinja")
    for name, text in (("chat_template.json", "older"), ("processor_config.json", "within")):
        (directory / name).write_text(json.dumps({"chat_template": text}))
        still = type(whole_processor("qwen3", directory))
        assert proc.load_processor(directory).template == text
        assert still.from_pretrained(directory).chat_template == text
