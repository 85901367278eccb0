"""What generated tables speak of: names, columns, ranges, and how numbers are written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


def _accounting(value: float) -> str:
    return f"({-value:,.0f})" if value <= -0.5 else f"{abs(value):,.0f}"


def _money(value: float) -> str:
    return f"{'-' if value <= -0.5 else ''}${abs(value):,.0f}"


# Name -> how a value is written.
FORMATS: dict[str, Callable[[float], str]] = {
    "plain": lambda value: f"{value:.0f}",
    "commas": lambda value: f"{value:,.0f}",
    "spaces": lambda value: f"{value:,.0f}".replace(",", " "),
    "one": lambda value: f"{value:.1f}",
    "two": lambda value: f"{value:.2f}",
    "signed": lambda value: f"{value:+.1f}",
    "percent": lambda value: f"{value:.0f}%",
    "percent_one": lambda value: f"{value:.1f}%",
    "money": _money,
    "cents": lambda value: f"${value:,.2f}",
    "accounting": _accounting,
}
COUNTS = ("plain", "commas", "spaces")


@dataclasses.dataclass(frozen=True)
class Measure:
    """A column of numbers, uniform in low .. high, written in one of `formats` a table."""

    name: str
    low: float
    high: float
    formats: tuple[str, ...] = ("plain",)


@dataclasses.dataclass(frozen=True)
class Category:
    """A column of words."""

    name: str
    words: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Topic:
    """A kind of table: what its rows are, how they may be called, and its possible columns."""

    name: str
    stub: str
    rows: tuple[str, ...]
    columns: tuple[Measure | Category, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TOPICS: tuple[Topic, ...] = (
    Topic(
        "cities",
        "City",
        _words(
            "Aston Berwick Calder Dunmore Elmstead Farley Grenham Hartwell Ilford Kelby Langton "
            "Marlow Norwood Oakham Penrith Redhill Selby Thorpe Upton Wexford"
        ),
        (
            Measure("Population", 2_000, 900_000, ("commas", "spaces", "plain")),
            Measure("Area", 5, 400, ("one", "plain")),
            Measure("Rainfall", 300, 2400, COUNTS),
            Measure("Mean temp.", -4, 27, ("one", "signed")),
            Measure("Unemployment", 1, 18, ("percent_one", "percent")),
            Measure("Schools", 1, 120),
            Category("Region", ("North", "South", "East", "West", "Centre")),
            Category("River", ("Avon", "Tarn", "Isel", "none", "Dove")),
        ),
    ),
    Topic(
        "firms",
        "Company",
        _words(
            "Acorn Beacon Cobalt Delta Ember Fathom Granite Harbor Indigo Juniper Keystone Lumen "
            "Meridian Nimbus Orchard Pioneer Quarry Ridge Summit Tundra"
        ),
        (
            Measure("Revenue", 100, 90_000, ("money", "commas", "spaces")),
            Measure("Profit", -6_000, 9_000, ("accounting", "money")),
            Measure("Costs", 90, 70_000, ("money", "commas")),
            Measure("Growth", -20, 35, ("signed", "percent_one")),
            Measure("Margin", 1, 60, ("percent", "percent_one")),
            Measure("Staff", 5, 12_000, COUNTS),
            Category("Sector", ("Energy", "Food", "Retail", "Software", "Steel", "Travel")),
            Category("Listed", ("Yes", "No")),
        ),
    ),
    Topic(
        "athletes",
        "Athlete",
        _words(
            "Adams Baker Costa Diaz Evans Fischer Garcia Hansen Ito Jensen Kovac Lopez Meyer "
            "Novak Okafor Patel Quinn Rossi Sato Turner"
        ),
        (
            Measure("Points", 0, 980),
            Measure("Time", 9, 59, ("two", "one")),
            Measure("Weight", 48, 120, ("plain", "one")),
            Measure("Age", 17, 41),
            Measure("Wins", 0, 45),
            Measure("Success", 10, 99, ("percent", "percent_one")),
            Measure("Prize", 500, 250_000, ("money", "commas")),
            Category("Team", ("Reds", "Blues", "Greens", "Golds", "Whites")),
            Category("Country", ("Brazil", "Canada", "Japan", "Kenya", "Norway", "Spain")),
        ),
    ),
    Topic(
        "products",
        "Item",
        _words(
            "Lamp Chair Desk Kettle Mug Rug Clock Shelf Mirror Stool Vase Fan Heater Radio Basket "
            "Bench Cabinet Pillow Blanket Towel"
        ),
        (
            Measure("Price", 2, 900, ("cents", "money")),
            Measure("Stock", 0, 4_000, COUNTS),
            Measure("Sold", 0, 9_000, COUNTS),
            Measure("Rating", 1, 5, ("one", "two")),
            Measure("Discount", 5, 70, ("percent",)),
            Measure("Returns", 0, 15, ("percent_one", "percent")),
            Category("Color", ("red", "blue", "green", "black", "white", "brown")),
            Category("Size", ("S", "M", "L", "XL")),
        ),
    ),
    Topic(
        "letters",
        "ID",
        tuple("ABCDEFGH"),
        tuple(Measure(name, 10, 99) for name in "PQRSTU"),
    ),
    # Names that differ in length before they differ in shape: the first that a small policy reads.
    Topic(
        "lengths",
        "ID",
        ("A", "BB", "CCC", "DDDD"),
        tuple(Measure(name, 10, 99) for name in ("P", "QQ", "RRR")),
    ),
    Topic(
        "short",
        "Name",
        ("Ann", "Bob", "Cat", "Dan", "Eve", "Fay", "Gus", "Ida", "Jim", "Kim", "Leo", "May"),
        (
            Measure("Age", 10, 99),
            Measure("Won", 10, 99),
            Measure("Cost", 10, 99),
            Measure("Tax", 10, 99),
            Measure("Run", 10, 99),
            Measure("Day", 10, 99),
        ),
    ),
)

# Leaf headers below merged ones, which name a measure.
PERIODS: tuple[tuple[str, ...], ...] = (
    ("2019", "2020", "2021"),
    ("2023", "2024"),
    ("Q1", "Q2", "Q3"),
    ("Plan", "Actual"),
    ("Spring", "Autumn"),
    ("Men", "Women"),
)

# What stands in a cell without a value.
MISSING = ("", "-", "n/a")


def topic(name: str) -> Topic:
    """The topic of that name; KeyError where there is none."""
    return {topic.name: topic for topic in TOPICS}[name]
