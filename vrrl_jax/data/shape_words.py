"""How questions about shapes and numbers are worded, and the true steps that answer them.

`words_x(args, wording)` is the text of a question, `steps_x(scene, args, wording)` what leads to
its answer, sentence by sentence: what is seen, in reading order, counted as it goes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vrrl_jax.data.shape_scenes import Scene, matches, only, plural, region, with_shape

WORDINGS = ("short", "full")
Args = tuple[Any, ...]  # of a question: names, or numbers


def article(word: str) -> str:
    """A word behind "a" or "an"."""
    return ("an " if word[0] in "aeiou" else "a ") + word


def words(short: str, full: str) -> Callable[[Args, str], str]:
    """A question's text in both wordings; its arguments, if any, stand at `{}`."""
    return lambda args, wording: (short if wording == "short" else full).format(*args)


def words_count(args: Args, wording: str) -> str:
    by, name = args
    if wording == "short":
        return f"how many {plural(name) if by == 'shape' else name}?"
    return f"How many {plural(name) if by == 'shape' else name + ' shapes'} are in the picture?"


def words_yesno(args: Args, wording: str) -> str:
    name = article(f"{args[1]} {args[0]}")
    return f"is there {name}?" if wording == "short" else f"Is there {name} in the picture?"


def words_compare(args: Args, wording: str) -> str:
    a, b = map(plural, args)
    if wording == "short":
        return f"more {a} or {b}?"
    return f"Are there more {a} or more {b} in the picture?"


def words_sum(args: Args, wording: str) -> str:
    terms = " + ".join(map(str, args))
    return f"{terms} = ?" if wording == "short" else f"What is {terms}?"


def words_largest(args: Args, wording: str) -> str:
    numbers = ", ".join(map(str, args))
    if wording == "short":
        return f"largest of {numbers}?"
    return f"Which of these numbers is the largest: {numbers}?"


# --- steps -------------------------------------------------------------------------------------


def steps_title(scene: Scene, args: Args, wording: str) -> list[str]:
    item = scene.items[0]
    if wording == "short":
        return [f"colour: {item.colour}.", f"shape: {item.shape}."]
    return [f"Its colour is {item.colour}.", f"Its shape is {article(item.shape)}."]


def steps_count(scene: Scene, args: Args, wording: str) -> list[str]:
    steps, count = [], 0
    for row in range(scene.grid[0]):
        seen = []
        for item in (item for item in scene.items if item.row == row):
            short = item.shape if args[0] == "shape" else item.colour
            name = short if wording == "short" else item.name
            if matches(item, *args):
                count += 1
                name += f" {count}" if wording == "short" else f" ({count})"
            seen.append(name)
        listed = ", ".join(seen)
        if wording == "short":
            steps.append(f"row: {listed or 'none'}.")
        else:
            steps.append(f"Row {row + 1}: {listed or 'nothing'}.")
    return steps


def steps_colour(scene: Scene, args: Args, wording: str) -> list[str]:
    item = only(with_shape(scene, args[0]))
    if wording == "short":
        return [f"{item.shape} in row {item.row + 1}.", f"{item.colour}."]
    where = f"row {item.row + 1}, column {item.column + 1}"
    return [f"The {item.shape} is in {where}.", f"It is {item.colour}."]


def steps_shape(scene: Scene, args: Args, wording: str) -> list[str]:
    item = only([item for item in scene.items if item.colour == args[0]])
    if wording == "short":
        return [f"{item.colour} in row {item.row + 1}.", f"{item.shape}."]
    where = f"row {item.row + 1}, column {item.column + 1}"
    return [f"What is {item.colour} is in {where}.", f"It is {article(item.shape)}."]


def steps_yesno(scene: Scene, args: Args, wording: str) -> list[str]:
    shapes = plural(args[0])
    colours = ", ".join(item.colour for item in with_shape(scene, args[0]))
    if wording == "short":
        return [f"{shapes}: {colours or 'none'}."]
    if not colours:
        return [f"There are no {shapes}."]
    return [f"In reading order the {shapes} are: {colours}."]


def steps_compare(scene: Scene, args: Args, wording: str) -> list[str]:
    steps = []
    for shape in args:
        items = with_shape(scene, shape)
        mark = "{} {}" if wording == "short" else "{} ({})"
        listed = ", ".join(mark.format(item.colour, i) for i, item in enumerate(items, 1))
        name = plural(shape)
        steps.append(f"{name if wording == 'short' else name.capitalize()}: {listed or 'none'}.")
    return steps


def steps_position(scene: Scene, args: Args, wording: str) -> list[str]:
    item = only([item for item in scene.items if item.pair == args])
    where = f"row {item.row + 1}, column {item.column + 1}"
    name = region(scene.grid, item.row, item.column)
    if wording == "short":
        return [f"{item.name} in {where}.", f"{name}."]
    rows, columns = scene.grid
    return [
        f"The {item.name} is in {where} of {rows} rows and {columns} columns.",
        f"That is the {name}.",
    ]


def steps_sum(scene: None, args: Args, wording: str) -> list[str]:
    steps, total = [], args[0]
    for term in args[1:]:
        steps.append(f"{total} + {term} = {total + term}.")
        total += term
    return steps


def steps_largest(scene: None, args: Args, wording: str) -> list[str]:
    return [f"{max(args)} > {number}." for number in args if number != max(args)]


def conclude(answer: str, wording: str) -> str:
    """The last step."""
    return f"so {answer}." if wording == "short" else f"So the answer is {answer}."
