"""Writes the tokenizer, chat template and image settings of the shipped nano policies.

    python scripts/make_nano_tokenizer.py [nano | nano-tables | nano-charts | ...] [directory]

Deterministic: nothing is trained. The vocabulary is Qwen's byte alphabet, the merges that make each
word of the task one token, Qwen's special tokens in Qwen's order, and the tags and numbers of a
reply. The directory loads as a Qwen2Tokenizer in transformers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from vrrl_jax.data import charts, table_topics
from vrrl_jax.data.grounding_demonstrations import WORDS
from vrrl_jax.data.question_demonstrations import TOKENS

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
TAGS = ["<ANSWER>", "</ANSWER>", "<FINAL>", "</FINAL>", "<THINK>", "</THINK>"]
# A role and its newline are one token: two tokens less a turn, of about forty.
HEADERS = ["user\n", "assistant\n"]
ROLES = ["user", "assistant", "system"]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What a task's chats are made of, one token each.

    Attributes:
      words: texts that Qwen's split leaves whole.
      whole: texts that it takes apart, such as numbers: added tokens.
    """

    words: list[str]
    whole: list[str]


NAVIGATION = Vocabulary(
    ["left", "right", "up", "down", " left", " right", " up", " down"]
    + [*ROLES, "Solve", "Verify"]
    + [" step", " hole", " off", " short", " over", " detour", " good"],
    # Steps of a path.
    [f" {number}" for number in range(1, 37)],
)


def grounding() -> Vocabulary:
    """Questions about small tables and charts, and places in them."""
    letters = table_topics.topic("letters")
    names = {*letters.rows, *(column.name for column in letters.columns), letters.stub}
    names |= {word for word in charts.NANO_WORDS if len(word) == 1}
    asked = ["ID", " of", "highest", "lowest", *(f" {name}" for name in sorted(names))]
    words = [*ROLES, "Verify", "Read", *asked, *(f" {word}" for word in WORDS)]
    return Vocabulary(words, [f" {number}" for number in range(0, 169)])


def questions() -> Vocabulary:
    """Questions about drawn shapes, steps towards their answers, second thoughts."""
    # Single signs are tokens anyway; added, they would cut words apart.
    longer = [token for token in TOKENS if len(token) > 1]
    plain = [token for token in longer if token.strip().isalpha()]
    return Vocabulary([*ROLES, *plain], [token for token in longer if token not in plain])


def tables() -> Vocabulary:
    """The same for tables whose names differ in length."""
    shared, lengths = grounding(), table_topics.topic("lengths")
    names = [*lengths.rows, *(column.name for column in lengths.columns)]
    longer = [form for name in names if len(name) > 1 for form in (name, f" {name}")]
    return Vocabulary(shared.words, [*shared.whole, *longer, "row", " column"])


VOCABULARIES = {
    "nano": lambda: NAVIGATION,
    "nano-tables": tables,
    "nano-charts": grounding,
    "nano-questions": questions,
}
# Qwen2's own; transformers puts it in place whatever tokenizer.json says.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}
{{- message['content'] }}
{%- else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part %}
{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif 'text' in part %}
{{- part['text'] }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
CELL = 28  # pixels a picture token, and a map's cell


def byte_symbols() -> list[str]:
    """The 256 symbols of byte-level BPE in byte order of GPT-2's table."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    return [chr(byte) for byte in kept] + [chr(256 + i) for i in range(len(moved))]


def build_merges(words: list[str]) -> list[tuple[str, str]]:
    """Merges that make every word one token.

    Each word is split by the merges so far, and its pieces are joined from the left. Later merges
    rank below earlier ones, and a finished word has nothing left to merge, so that no word undoes
    another.
    """
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = list(word.replace(" ", "\u0120"))
        for left, right in merges:  # by rank: each merge can only make way for later ones
            joined, i = [], 0
            while i < len(pieces):
                pair = i + 1 < len(pieces) and (pieces[i], pieces[i + 1]) == (left, right)
                joined.append(left + right if pair else pieces[i])
                i += 2 if pair else 1
            pieces = joined
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    return merges


def build(vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer: bytes, words, special tokens, tags, headers, numbers, in order of ids."""
    merges = build_merges(vocabulary.words)
    symbols = byte_symbols() + [left + right for left, right in merges]
    ids = {symbol: i for i, symbol in enumerate(symbols)}
    if len(ids) != len(symbols):
        raise AssertionError("a merge is listed twice")
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens(
        [
            AddedToken(t, special=False, normalized=False)
            for t in [*TAGS, *HEADERS, *vocabulary.whole]
        ]
    )
    return tokenizer


def write(directory: pathlib.Path, vocabulary: Vocabulary) -> Tokenizer:
    """Writes the directory's files; existing ones of the same names are replaced."""
    tokenizer = build(vocabulary)
    directory.mkdir(parents=True, exist_ok=True)
    end, pad = (tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>"))
    files = {
        "tokenizer.json": json.loads(tokenizer.to_str()),
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_prefix_space": False,
            "additional_special_tokens": SPECIAL[1:],
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "model_max_length": 32768,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "unk_token": None,
        },
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "patch_size": CELL // 2,
            "merge_size": 2,
            "temporal_patch_size": 2,
            "min_pixels": CELL * CELL,
            "max_pixels": CELL * CELL * 100,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        "generation_config.json": {
            "do_sample": True,
            "eos_token_id": [end, pad],
            "pad_token_id": pad,
            "temperature": 1.0,
        },
    }
    for name, content in files.items():
        indent = None if name == "tokenizer.json" else 2
        separators = (",", ":") if indent is None else None
        text = json.dumps(content, indent=indent, separators=separators, ensure_ascii=False)
        (directory / name).write_text(text + "\n", encoding="utf-8")
    (directory / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return tokenizer


def main() -> None:
    package = pathlib.Path(__file__).resolve().parent.parent / "vrrl_jax"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy", nargs="?", choices=sorted(VOCABULARIES), default="nano")
    parser.add_argument("directory", nargs="?", type=pathlib.Path, help="default: its assets")
    args = parser.parse_args()
    directory = args.directory or package / "assets" / args.policy
    vocabulary = VOCABULARIES[args.policy]()
    tokenizer = write(directory, vocabulary)
    print(f"{directory}: {tokenizer.get_vocab_size()} tokens")
    known = [*vocabulary.words, *SPECIAL, *TAGS, *HEADERS, *vocabulary.whole]
    for text in [*known, "\n", " ", *"0123456789"]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) != 1:
            raise AssertionError(f"{text!r} is {len(ids)} tokens")
        print(f"{ids[0]:5d}  {text!r}")


if __name__ == "__main__":
    main()
