"""Chat templates: found beside a tokenizer, and rendered to text.

A template is somebody else's program: it runs in jinja's immutable sandbox, with the flags and the
few globals that transformers gives it, so that the text is the same.
"""

from __future__ import annotations

import datetime
import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

JINJA = "chat_template.jinja"

# Letters only, so that no template strips, splits or escapes it.
_SENTINEL = "REPLYOFTHEASSISTANT"

_NAMED_TOKENS = tuple(
    f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)

# A message in hashable form: its role, and a text or a tuple of parts, None standing for a picture.
Message = tuple[str, str | tuple[str | None, ...]]


def find_template(directory: pathlib.Path) -> str:
    """The chat template of a Hugging Face directory.

    Looked for where transformers' processors look, in their order: `processor_config.json`, then
    `chat_template.json` (older processors), then `chat_template.jinja`, then the tokenizer's
    `tokenizer_config.json`. Of several named templates the one named "default" counts.

    Raises:
      FileNotFoundError: when none of the four holds one.
      ValueError: when a file is no valid JSON.
    """
    places = ("processor_config.json", "chat_template.json", JINJA, "tokenizer_config.json")
    for path in (directory / place for place in places):
        if path.name == JINJA:
            template = path.read_text(encoding="utf-8") if path.is_file() else None
        else:
            template = read_json(path).get("chat_template")
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}
        if isinstance(template, dict):
            template = template.get("default")
        if template:
            return template
    raise FileNotFoundError(
        f"no chat template in {directory}: expected chat_template.jinja, or a chat_template field "
        "in chat_template.json or tokenizer_config.json"
    )


def named_tokens(directory: pathlib.Path) -> tuple[tuple[str, str], ...]:
    """The tokens that a template may speak of by name, such as `eos_token`, sorted by name.

    Read from `tokenizer_config.json`; what it does not mention has the defaults of transformers'
    Qwen2 tokenizer, and a null means that there is no such token.

    Raises:
      ValueError: when the file is no valid JSON.
    """
    found: dict[str, Any] = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")
    config = read_json(directory / "tokenizer_config.json")
    found |= {name: config[name] for name in _NAMED_TOKENS if name in config}
    texts = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in found.items()
    }
    return tuple(sorted((name, text) for name, text in texts.items() if isinstance(text, str)))


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file, or {} when there is no such file.

    Raises:
      ValueError: naming the file, when it holds anything else.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


class _Generation(jinja2.ext.Extension):
    """The tag {% generation %}, which marks the assistant's text: here it shows what it holds."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_shown"), [], [], body).set_lineno(line)

    def _shown(self, caller: Callable[[], str]) -> str:
        return caller()


@functools.lru_cache(maxsize=16)
def compile_template(source: str) -> jinja2.Template:
    """Compiles a template as transformers does.

    Raises:
      ValueError: when the template has a syntax error.
    """

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **options})  # jinja's escapes HTML

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"chat template, line {error.lineno}: {error}") from error


def freeze(message: Mapping[str, Any], forbidden: Iterable[str]) -> Message:
    """Checks a message and brings it to a hashable form, pictures reduced to their places.

    Text that spells a special token would become that token: a question could close its own turn,
    or claim picture tokens that no picture fills. Such text is refused, also where it only arises
    by joining neighbouring parts.

    Args:
      message: {"role": ..., "content": text or list of parts}, a part being
        {"type": "text", "text": ...} or {"type": "image", ...}.
      forbidden: the special tokens.

    Raises:
      ValueError: for another form, a video, or a special token in the text (named).
    """
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise ValueError(f"a message needs a role, got keys {sorted(message)}")
    if isinstance(content, str):
        parts: tuple[str | None, ...] = (content,)
    elif isinstance(content, Sequence):
        parts = tuple(_part(part) for part in content)
    else:
        raise ValueError(f"a {role} message needs a text or a list of parts as its content")
    text = role + "\0" + "".join("\0" if part is None else part for part in parts)
    for token in forbidden:
        if token in text:
            raise ValueError(
                f"the text of a {role} message contains the special token {token!r}; "
                "remove or respell it"
            )
    return role, content if isinstance(content, str) else parts


def is_image(part: Any) -> bool:
    """Whether a part of a message stands for a picture."""
    if not isinstance(part, Mapping):
        return False
    return part.get("type") in ("image", "image_url") or "image" in part or "image_url" in part


def _part(part: Any) -> str | None:
    """A part's text, or None for a picture."""
    if not isinstance(part, Mapping):
        raise ValueError(f"a part of a message must be a mapping, got {type(part).__name__}")
    if is_image(part):
        return None
    if isinstance(part.get("text"), str):
        return part["text"]
    raise ValueError(f"a part of type {part.get('type')!r} is neither a text nor an image")


def _thaw(message: Message) -> dict[str, Any]:
    role, content = message
    if isinstance(content, str):
        return {"role": role, "content": content}
    parts = [
        {"type": "image"} if part is None else {"type": "text", "text": part} for part in content
    ]
    return {"role": role, "content": parts}


def pictures_in(messages: Iterable[Message]) -> int:
    """How many pictures the messages have places for."""
    return sum(
        sum(part is None for part in content)
        for _, content in messages
        if not isinstance(content, str)
    )


def render(
    template: str,
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
    tokens: Iterable[tuple[str, str]] = (),
) -> str:
    """The chat as text, one placeholder a picture.

    Args:
      template: the chat template.
      messages: frozen ones.
      add_generation_prompt: whether the assistant's turn is opened at the end.
      tokens: names and texts of tokens that the template may speak of, see `named_tokens`.

    Raises:
      ValueError: when the template refuses the messages.
    """
    try:
        return compile_template(template).render(
            messages=[_thaw(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            tools=None,  # given, as transformers gives them: "is defined" holds
            documents=None,
            **dict(tokens),
        )
    except (jinja2.TemplateError, TypeError) as error:
        raise ValueError(f"the chat template refuses these messages: {error}") from error


def render_after_reply(
    template: str, message: Message, end: str, tokens: Iterable[tuple[str, str]] = ()
) -> str:
    """What follows the `end` token of an assistant's reply when `message` comes next.

    Read off the template itself: a chat is rendered with a marker as the assistant's reply, and the
    text behind the marker and its end token is the answer.

    Args:
      template: the chat template.
      message: the next message.
      end: the token that closes a turn, "<|im_end|>".
      tokens: as in `render`.

    Raises:
      ValueError: when the template does not keep the reply, or does not close it with `end`.
    """
    chat = [("user", "question"), ("assistant", _SENTINEL), message]
    before, found, after = render(template, chat, True, tokens).partition(_SENTINEL)
    if not found or not after.startswith(end):
        raise ValueError(
            f"the chat template does not close an assistant's reply with {end!r}: a conversation "
            "of several turns cannot be continued with it"
        )
    return after[len(end) :]
