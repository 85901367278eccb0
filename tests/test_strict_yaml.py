"""Tuples of sections: read, placed in errors, overridden one by one, and written back."""

import dataclasses

import pytest

from vrrl_jax import strict_yaml
from vrrl_jax.sections import at_least, section


@section
class Entry:
    name: str = "a"
    limit: int | None = None
    sizes: tuple[int, ...] = (1, 2)

    def __post_init__(self):
        at_least(self, 1, "limit")


@section
class Suite:
    title: str = "t"
    entries: tuple[Entry, ...] = ()
    more: Entry = dataclasses.field(default_factory=Entry)


TEXT = """\
title: mine
entries:
  - {name: x, limit: 3}
  - name: y
    sizes: [5]
"""


@pytest.fixture
def load(tmp_path):
    def read(text=TEXT, *overrides):
        path = tmp_path / "suite.yaml"
        path.write_text(text)
        return strict_yaml.load(path, overrides, Suite)

    return read


def test_sections_in_a_list(load):
    assert load().entries == (Entry(name="x", limit=3), Entry(name="y", sizes=(5,)))


def test_one_of_them_is_overridden(load):
    changed = load(TEXT, "entries[1].limit=7", "entries[0].sizes=[9]").entries
    assert changed == (Entry(name="x", limit=3, sizes=(9,)), Entry(name="y", limit=7, sizes=(5,)))
    whole = load(TEXT, "entries=[{name: z}]").entries
    assert whole == (Entry(name="z"),)


def test_it_is_written_back(load, tmp_path):
    path = tmp_path / "back.yaml"
    path.write_text(strict_yaml.to_yaml(load()))
    assert strict_yaml.load(path, [], Suite) == load()
    assert "- name: x" in path.read_text() and "sizes: [5]" in path.read_text()


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("entries:\n  - {nam: x}\n", (), r"yaml:2: unknown key 'entries\[0\].nam'; did you mean "),
        ("entries:\n  - x\n", (), r"yaml:2: 'entries\[0\]' expects a section of its own keys"),
        ("entries: x\n", (), "'entries' expects a list of sections"),
        (
            "entries:\n  - {}\n  - {limit: 0}\n",
            (),
            r"yaml:3: entries\[1\].limit must be at least 1",
        ),
        (TEXT, ("entries[2].limit=1",), r"there is no 'entries\[2\]': 'entries' has 2"),
        (TEXT, ("more[0].limit=1",), "unknown key|there is no"),
        (TEXT, ("other[0].limit=1",), "unknown key 'other"),
    ],
)
def test_mistakes_are_placed(load, text, overrides, message):
    with pytest.raises(strict_yaml.ConfigError, match=message):
        load(text, *overrides)


def test_keys_of_sections_in_a_list():
    keys = list(strict_yaml.dotted_keys(Suite))
    assert "entries[].limit" in keys and "more.limit" in keys
