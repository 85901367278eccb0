"""Visual grounding as a conversation: propose a place, see it drawn, revise or commit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from vrrl_jax.coordinates import SYSTEMS, Size, System, convert_box, convert_point, extent
from vrrl_jax.envs.scenes import Scene, scene
from vrrl_jax.processing.grounding import FORMS, Bare, Form, Reply, parse
from vrrl_jax.render.feedback import FEEDBACK, Feedback, draw
from vrrl_jax.types import Outcome, Prompt

QUESTION = (
    "{question} Give the {form} of the {noun} that is asked for as {numbers}, {space}. Write it "
    "inside tags, as in <ANSWER>{example}</ANSWER>."
)
VERIFY = (
    "The picture shows your {form} in red. Check it against the question. If it is right, repeat "
    "it inside <FINAL></FINAL>. If it is not, say inside <THINK></THINK> where the {noun} lies "
    "from it, then give a better {form} inside <ANSWER></ANSWER>, {space}."
)
THINK = "<THINK>"  # how a revision opens

_NUMBERS = {"point": "x, y", "box": "x1, y1, x2, y2"}
# Shares of the picture's sides for the example in the question.
_EXAMPLE = {"point": (0.25, 0.5), "box": (0.25, 0.5, 0.5, 0.75)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How episodes are asked and shown.

    Attributes:
      form: "point" or "box".
      coordinates: the system that replies speak, always of the whole picture of the first turn.
      feedback: "marked", "crop" or "overlay", see `render.feedback.draw`.
      crop_size: side of the crop, in pixels of the picture.
      max_turns: replies an episode.
      question, verify: texts of the opening turn and of every later one. {question}, {noun},
        {form}, {numbers}, {space} (the coordinate system in words) and {example} are filled in.
      bare: what a reply without tags is that holds JSON, see `processing.grounding.parse`.

    Raises:
      ValueError: a value out of its range, or a text with another name in braces.
    """

    form: Form = "point"
    coordinates: System = "pixel"
    feedback: Feedback = "marked"
    crop_size: int = 200
    max_turns: int = 8
    question: str = QUESTION
    verify: str = VERIFY
    bare: Bare = "invalid"

    def __post_init__(self):
        for name, known in (
            ("form", FORMS),
            ("coordinates", SYSTEMS),
            ("feedback", FEEDBACK),
            ("bare", ("invalid", "proposal", "commit")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {known}")
        for name in ("crop_size", "max_turns"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("question", "verify"):
            try:
                getattr(self, name).format(**dict.fromkeys(_NAMES, ""))
            except (KeyError, IndexError, ValueError) as error:
                known = ", ".join(f"{{{known}}}" for known in _NAMES)
                raise ValueError(f"{name}: {error!r} in braces; known are {known}") from None


_NAMES = ("question", "noun", "form", "numbers", "space", "example")
# For policies of a million parameters, whose pictures aren't resized.
NANO = Settings(max_turns=4, question="{question}", verify="Verify")

Resized = Callable[[Size], Size]


def reset(example: Any, settings: Settings = Settings(), resized: Resized | None = None) -> Prompt:
    """The opening turn: the bare picture.

    Args:
      example: what `scenes.scene` takes.
      settings: how it is asked.
      resized: (width, height) of a picture -> those of what the model sees of it; None where
        pictures aren't resized. Used for "pixel" coordinates.
    """
    about = scene(example)
    return Prompt(_text(settings.question, about, settings, resized), (about.picture,))


def step(
    example: Any,
    text: str,
    turn: int,
    settings: Settings = Settings(),
    resized: Resized | None = None,
) -> Outcome:
    """Answers reply `turn`, counted from 0, with its place drawn.

    A commit, an unreadable reply and the last turn of the budget end the episode. The outcome's
    reply is a `processing.grounding.Reply`.
    """
    reply = parse(text, settings.form, bare=settings.bare)
    if reply.kind != "proposal" or turn + 1 >= settings.max_turns:
        return Outcome(True, None, reply)
    about = scene(example)
    place = located(reply, about.size, settings.coordinates, resized)
    picture = draw(about.picture, place, settings.feedback, settings.crop_size)
    return Outcome(
        False, Prompt(_text(settings.verify, about, settings, resized), (picture,)), reply
    )


def located(
    reply: Reply, size: Size, coordinates: System, resized: Resized | None = None
) -> tuple[float, ...]:
    """A readable reply's place in pixels of the original picture, of `size` (width, height)."""
    convert = convert_point if len(reply.place) == 2 else convert_box
    seen = resized(size) if resized is not None else None
    return convert(reply.place, coordinates, "original", size, seen)


@dataclasses.dataclass(frozen=True)
class Environment:
    """`reset` and `step` with the settings bound: what a rollout plays against."""

    settings: Settings = Settings()
    resized: Resized | None = None

    def reset(self, example: Any) -> Prompt:
        return reset(example, self.settings, self.resized)

    def step(self, example: Any, text: str, turn: int) -> Outcome:
        return step(example, text, turn, self.settings, self.resized)


def _text(template: str, about: Scene, settings: Settings, resized: Resized | None) -> str:
    seen = resized(about.size) if resized is not None else None
    width, height = extent(settings.coordinates, about.size, seen)
    whole = settings.coordinates != "unit"
    shares = _EXAMPLE[settings.form]
    values = [share * (width, height)[i % 2] for i, share in enumerate(shares)]
    return template.format(
        question=about.question,
        noun=about.noun,
        form=settings.form,
        numbers=_NUMBERS[settings.form],
        space=(
            f"in {'pixels' if settings.coordinates in ('pixel', 'original') else 'shares'} of the "
            f"first picture, from 0, 0 at its top left to {width:g}, {height:g} at its bottom right"
        ),
        example=", ".join(f"{round(value):d}" if whole else f"{value:g}" for value in values),
    )
