"""YAML into frozen dataclasses and back, strictly: every mistake names its place and a remedy.

Nothing here knows a particular configuration; `vrrl_jax.config` says which sections there are.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import pathlib
import re
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import yaml

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that can't be used.

    Attributes:
      key: the field of the section that is at fault, where the section itself found it; the loader
        adds file, line and the dotted name.
    """

    def __init__(self, message: str, key: str | None = None):
        super().__init__(message)
        self.key = key


class _Placed(NamedTuple):
    """A YAML value and where it was written.

    Attributes:
      value: a scalar, a list of _Placed, or a dict from key to _Placed.
      place: "file:line" or "override 'a.b=c'".
      raw: the scalar as typed, "" for lists and mappings.
      literal: whether a text may be taken as typed. A command line has no quotes to say that
        `run_dir=2026` is a name, a file does.
    """

    value: Any
    place: str
    raw: str = ""
    literal: bool = False


def load(path: str | pathlib.Path, overrides: Sequence[str], cls: type[T]) -> T:
    """Reads a YAML file into `cls`, then applies overrides.

    Args:
      path: the recipe.
      overrides: "dotted.key=value" each, value in YAML; a later one wins. A mapping replaces its
        whole section.
      cls: a dataclass whose fields are scalars, tuples, optionals, nested dataclasses and tuples of
        these, all of them with defaults. `list[2].key=value` overrides a key of a tuple's third
        section, counted from 0.

    Raises:
      FileNotFoundError: no such file.
      ConfigError: broken YAML, an unknown or repeated key, a value of the wrong type, or one that
        a section refuses. The message starts with the place and names the dotted key.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration at {path}: give the path of a YAML recipe")
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    tree = _placed(node, str(path)) if node is not None else _Placed({}, str(path))
    if not isinstance(tree.value, dict):
        raise ConfigError(f"{tree.place}: expected `key: value` lines, got {_shown(tree)}")
    tree = tree._replace(place=str(path))
    for override in overrides:
        _override(tree, override, cls)
    return _section(tree, cls, "", None, cls)


def top_keys(path: str | pathlib.Path) -> frozenset[str]:
    """The top-level keys of a YAML file.

    Raises:
      FileNotFoundError: no such file.
      ConfigError: it isn't YAML.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration at {path}: give the path of a YAML recipe")
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return frozenset(str(key.value) for key, _ in pairs)


def peek(path: str | pathlib.Path, overrides: Sequence[str], key: str) -> str | None:
    """The text that a file and overrides give a top-level key; None where it has none.

    For what decides which class `load` reads the file into; it says what is wrong with the rest.
    """
    found = None
    try:
        node = yaml.compose(pathlib.Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == key and isinstance(value, yaml.ScalarNode):
                found = value.value
    for override in overrides:
        name, equals, value = override.partition("=")
        if equals and name.strip().removeprefix("--") == key:
            found = value.strip()
    return found


def to_yaml(config: Any) -> str:
    """The whole configuration as YAML; `load` reads it back to an equal one."""
    return yaml.dump(_plain(config), Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)


def dotted_keys(cls: type, prefix: str = "") -> Iterator[str]:
    """Every key of a configuration class, sections before what they hold; `list[].key` in tuples
    of sections."""
    for name, hint in typing.get_type_hints(cls).items():
        yield prefix + name
        if dataclasses.is_dataclass(hint):
            yield from dotted_keys(hint, f"{prefix}{name}.")
        elif typing.get_origin(hint) is tuple and dataclasses.is_dataclass(hint.__args__[0]):
            yield from dotted_keys(hint.__args__[0], f"{prefix}{name}[].")


class _Dumper(yaml.SafeDumper):
    """Sections as blocks, lists of plain values on one line: as a person would write a recipe."""


def _represent_list(dumper: yaml.SafeDumper, data: list) -> yaml.Node:
    plain = not any(isinstance(item, dict) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, plain)


_Dumper.add_representer(list, _represent_list)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _placed(node: yaml.Node, source: str, literal: bool = False) -> _Placed:
    """A composed YAML node with its line; refuses repeated keys, which YAML readers swallow."""
    place = source if literal else f"{source}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, _Placed] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{place}: a key must be a name, not a list or a mapping")
            if key_node.value in mapping:
                line = f"{source}:{key_node.start_mark.line + 1}"
                first = mapping[key_node.value].place
                raise ConfigError(f"{line}: key '{key_node.value}' again, first given at {first}")
            mapping[key_node.value] = _placed(value_node, source, literal)
        return _Placed(mapping, place)
    if isinstance(node, yaml.SequenceNode):
        return _Placed([_placed(item, source, literal) for item in node.value], place)
    try:
        value = yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError) as error:
        problem = getattr(error, "problem", error)
        raise ConfigError(f"{place}: can't read '{node.value}': {problem}") from error
    return _Placed(value, place, node.value, literal)


def _override(tree: _Placed, text: str, cls: type) -> None:
    """Writes one "dotted.key=value" into the tree."""
    key, equals, raw = text.partition("=")
    key, place = key.strip().removeprefix("--"), f"override '{text}'"
    if not equals or not key:
        raise ConfigError(f"{place}: expected key=value, as in optimizer.learning_rate=1e-5")
    try:
        node = yaml.compose(raw, Loader=yaml.SafeLoader)
        value = _placed(node, place, literal=True) if node else _Placed(None, place)
    except yaml.YAMLError:
        value = _Placed(raw, place)  # e.g. a question that opens with a bracket
    level, parts = tree.value, key.split(".")
    for depth, part in enumerate(parts[:-1], 1):
        section = ".".join(parts[:depth])
        if _unnumbered(section).removesuffix("[]") not in dotted_keys(cls):
            raise ConfigError(f"{place}: unknown key '{key}'{_suggest(key, cls)}")
        below = _member(level, part, place) if part.endswith("]") else level.get(part)
        if below is None or below.value is None:
            below = level[part] = _Placed({}, place)
        if not isinstance(below.value, dict):
            raise _mismatch(below, section, "a section of its own keys")
        level = below.value
    level[parts[-1]] = value._replace(raw=raw.strip(), literal=True)


def _unnumbered(dotted: str) -> str:
    """`list[2].key` as `list[].key`, the name that `dotted_keys` gives it."""
    return re.sub(r"\[\d+\]", "[]", dotted)


def _member(level: dict[str, _Placed], part: str, place: str) -> _Placed:
    """The section that `list[2]` means.

    Raises:
      ConfigError: there is no such list, or it is shorter.
    """
    name, _, number = part.removesuffix("]").partition("[")
    members = level[name].value if name in level else []
    if not isinstance(members, list) or not number.isdecimal() or int(number) >= len(members):
        count = len(members) if isinstance(members, list) else 0
        raise ConfigError(f"{place}: there is no '{part}': '{name}' has {count}, counted from 0")
    return members[int(number)]


def _section(tree: _Placed, cls: type[T], prefix: str, default: T | None, root: type) -> T:
    """Builds one section from what the file gives, over `default` where its parent has one."""
    hints, given = typing.get_type_hints(cls), {}
    for name, value in tree.value.items():
        dotted = prefix + name
        if name not in hints:
            raise ConfigError(f"{value.place}: unknown key '{dotted}'{_suggest(dotted, root)}")
        inner = getattr(default, name) if default is not None else _default(cls, name)
        given[name] = _convert(value, hints[name], dotted, inner, root)
    try:
        return cls(**given) if default is None else dataclasses.replace(default, **given)
    except ConfigError as error:
        raise ConfigError(f"{_place_of(tree, error.key)}: {prefix}{error}", error.key) from error


def _place_of(tree: _Placed, key: str | None) -> str:
    """Where a section's key was written; the section's own place where it wasn't."""
    for part in key.split(".") if key else ():
        if not isinstance(tree.value, dict) or part not in tree.value:
            break
        tree = tree.value[part]
    return tree.place


def _default(cls: type, name: str) -> Any:
    field = {f.name: f for f in dataclasses.fields(cls)}[name]
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _convert(value: _Placed, hint: Any, dotted: str, default: Any, root: type) -> Any:
    """A YAML value as the type of its field.

    Raises:
      ConfigError: it isn't one; says what is expected and what was found.
    """
    if dataclasses.is_dataclass(hint):
        if value.value is None:  # "mesh:" with nothing below: the defaults
            return default
        if not isinstance(value.value, dict):
            raise _mismatch(value, dotted, "a section of its own keys")
        return _section(value, hint, f"{dotted}.", default, root)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        if not isinstance(value.value, dict):
            raise _mismatch(value, dotted, "a mapping")
        return {name: _free(item) for name, item in value.value.items()}
    if origin in (typing.Union, types.UnionType):
        if value.value is None and type(None) in arguments:
            return None
        (inner,) = [a for a in arguments if a is not type(None)]
        return _convert(value, inner, dotted, default, root)
    if origin is typing.Literal:
        if value.value in arguments:
            return value.value
        choices = ", ".join(str(a) for a in arguments)
        near = difflib.get_close_matches(str(value.value), [str(a) for a in arguments], 1)
        hint_text = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(
            f"{value.place}: '{dotted}' must be one of {choices}, got {_shown(value)}{hint_text}"
        )
    if origin is tuple:
        return _convert_tuple(value, arguments, dotted, root)
    return _convert_scalar(value, hint, dotted)


def _free(value: _Placed) -> Any:
    """A value as YAML read it, for what nobody here knows the type of."""
    if isinstance(value.value, dict):
        return {name: _free(item) for name, item in value.value.items()}
    if isinstance(value.value, list):
        return [_free(item) for item in value.value]
    return value.value


def _convert_tuple(
    value: _Placed, arguments: tuple[Any, ...], dotted: str, root: type
) -> tuple[Any, ...]:
    inner = arguments[0]
    name = {int: "integers", float: "numbers", str: "texts"}.get(inner, "values")
    name = "sections" if dataclasses.is_dataclass(inner) else name
    expected = f"a list of {'' if arguments[-1] is ... else f'{len(arguments)} '}{name}"
    if not isinstance(value.value, list):
        raise _mismatch(value, dotted, expected)
    if arguments[-1] is not ... and len(value.value) != len(arguments):
        raise _mismatch(value, dotted, expected)
    return tuple(
        _convert(v, inner, f"{dotted}[{i}]", None, root) for i, v in enumerate(value.value)
    )


def _convert_scalar(value: _Placed, hint: type, dotted: str) -> Any:
    found = value.value
    if hint is str:
        if isinstance(found, str):
            return found
        if value.literal and value.raw:
            return value.raw
        raise _mismatch(value, dotted, "a text (in quotes where it looks like something else)")
    if hint is bool:
        if isinstance(found, bool):
            return found
        raise _mismatch(value, dotted, "true or false")
    if hint is int:
        if isinstance(found, int) and not isinstance(found, bool):
            return found
        raise _mismatch(value, dotted, "an integer")
    if hint is float:
        number = _number(found)
        if number is not None and math.isfinite(number):
            return number
        raise _mismatch(value, dotted, "a finite number")
    raise TypeError(f"'{dotted}' has a type that configurations don't support: {hint}")


def _number(found: Any) -> float | None:
    """A number, or the text of one: YAML 1.1 reads 1e-4, which has no dot, as text."""
    if isinstance(found, bool) or not isinstance(found, int | float | str):
        return None
    try:
        return float(found)
    except ValueError:
        return None


def _mismatch(value: _Placed, dotted: str, expected: str) -> ConfigError:
    return ConfigError(f"{value.place}: '{dotted}' expects {expected}, got {_shown(value)}")


def _shown(value: _Placed) -> str:
    found = value.value
    if found is None:
        return "nothing (null)"
    if isinstance(found, dict):
        return f"a mapping with {', '.join(map(str, found)) or 'no keys'}"
    if isinstance(found, list):
        return f"a list of {len(found)}"
    kind = {bool: "boolean", int: "integer", float: "number", str: "text"}
    return f"the {kind.get(type(found), type(found).__name__)} '{value.raw or found}'"


def _suggest(dotted: str, root: type) -> str:
    """ "; did you mean 'x'?", from the same section first, then from all keys of the recipe."""
    known, dotted = list(dotted_keys(root)), _unnumbered(dotted)
    section, _, name = dotted.rpartition(".")
    siblings = [k for k in known if k.rpartition(".")[0] == section]
    names = [k.rpartition(".")[2] for k in siblings]
    same_name = [k for k in known if k.rpartition(".")[2] == name]
    if near := difflib.get_close_matches(name, names, 1, 0.7):
        return f"; did you mean '{siblings[names.index(near[0])]}'?"
    near = difflib.get_close_matches(dotted, same_name, 1, 0.0)
    if near := near or difflib.get_close_matches(dotted, known, 1, 0.6):
        return f"; did you mean '{near[0]}'?"
    return f"; known here: {', '.join(names or [k for k in known if '.' not in k])}"
