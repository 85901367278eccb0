"""Reading replies: the rules one by one, and ten thousand texts that follow none of them."""

import random
import re
import time

import pytest

from vrrl_jax.processing.parsing import ACTIONS, Reply, parse_actions, parse_reply

# --- the rules ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "actions"),
    [
        ("right up up", ("right", "up", "up")),
        ("right,up,up", ("right", "up", "up")),
        ("right, up , up", ("right", "up", "up")),
        ("  right\n\tup\r\n, ,up,, ", ("right", "up", "up")),
        ("RIGHT Up uP", ("right", "up", "up")),
        ("left down right up", ("left", "down", "right", "up")),
        ("", ()),
        (" , \n,, ", ()),
        ("right north", None),
        ("right; up", None),
        ("right.", None),
        ("rightup", None),
        ("right-up", None),
        ("r u", None),
        ("1. right", None),
        ("[right]", None),
        ("right\x00up", None),
        ("r\u0131ght", None),  # a dotless i is no i
        ("right\u00a0up\u3000down", ("right", "up", "down")),  # white space of any script
    ],
)
def test_actions(text, actions):
    assert parse_actions(text) == actions


def test_the_names_are_those_of_the_maps():
    from vrrl_jax.data.frozenlake import ACTIONS as ordered

    assert frozenset(ordered) == ACTIONS


@pytest.mark.parametrize(
    ("text", "kind", "actions", "has_think"),
    [
        ("<ANSWER>right up</ANSWER>", "proposal", ("right", "up"), False),
        ("<FINAL>right up</FINAL>", "commit", ("right", "up"), False),
        ("<THINK>hm</THINK><ANSWER>up</ANSWER>", "proposal", ("up",), True),
        ("<THINK>hm</THINK><FINAL>up</FINAL>", "commit", ("up",), True),
        # Any case, also mixed, also in the closing tag.
        ("<answer>UP</Answer>", "proposal", ("up",), False),
        ("<tHiNk></THINK><final>up</FINAL>", "commit", ("up",), True),
        # Bodies run over lines, text around them doesn't matter.
        ("Well.\n<ANSWER>\nup,\ndown\n</ANSWER>\nDone.", "proposal", ("up", "down"), False),
        ("<THINK>a\nb</THINK>\n<ANSWER>up</ANSWER>", "proposal", ("up",), True),
        # Bodies are the shortest there are: the first pair counts.
        ("<ANSWER>up</ANSWER><ANSWER>down</ANSWER>", "proposal", ("up",), False),
        ("<ANSWER>up</ANSWER> left </ANSWER>", "proposal", ("up",), False),
        ("</ANSWER><ANSWER>up</ANSWER>", "proposal", ("up",), False),
        # FINAL wins over ANSWER, wherever it stands.
        ("<ANSWER>up</ANSWER><FINAL>down</FINAL>", "commit", ("down",), False),
        ("<FINAL>down</FINAL><ANSWER>up</ANSWER>", "commit", ("down",), False),
        ("<THINK><FINAL>down</FINAL></THINK><ANSWER>up</ANSWER>", "commit", ("down",), True),
        # A FINAL that never closes, or never opens, is none.
        ("<FINAL>down<ANSWER>up</ANSWER>", "proposal", ("up",), False),
        ("down</FINAL><ANSWER>up</ANSWER>", "proposal", ("up",), False),
        # THINK needs both its tags.
        ("<THINK>hm<ANSWER>up</ANSWER>", "proposal", ("up",), False),
        ("hm</THINK><ANSWER>up</ANSWER>", "proposal", ("up",), False),
        # No action at all is readable: only the reward forbids it.
        ("<ANSWER></ANSWER>", "proposal", (), False),
        ("<FINAL> , </FINAL>", "commit", (), False),
    ],
)
def test_readable_replies(text, kind, actions, has_think):
    assert parse_reply(text) == Reply(kind, actions, has_think, "")


@pytest.mark.parametrize(
    ("text", "has_think", "reason"),
    [
        ("", False, "neither ANSWER nor FINAL"),
        ("right up", False, "neither ANSWER nor FINAL"),
        ("<THINK>hm</THINK>", True, "neither ANSWER nor FINAL"),
        ("<ANSWER>up", False, "neither ANSWER nor FINAL"),
        ("up</ANSWER>", False, "neither ANSWER nor FINAL"),
        ("</ANSWER>up<ANSWER>", False, "neither ANSWER nor FINAL"),
        ("<ANSWERS>up</ANSWERS>", False, "neither ANSWER nor FINAL"),
        ("< ANSWER>up</ANSWER>", False, "neither ANSWER nor FINAL"),
        ("<ANSWER>north</ANSWER>", False, "an unknown action in ANSWER"),
        ("<ANSWER><ANSWER>up</ANSWER></ANSWER>", False, "an unknown action in ANSWER"),
        ("<THINK></THINK><FINAL>up and away</FINAL>", True, "an unknown action in FINAL"),
        # FINAL wins over ANSWER even where only the latter could be read.
        ("<ANSWER>up</ANSWER><FINAL>north</FINAL>", False, "an unknown action in FINAL"),
        # Letters that only Unicode's case folding makes equal are other letters.
        ("<\uff21NSWER>up</ANSWER>", False, "neither ANSWER nor FINAL"),
        ("<AN\u017fWER>up</AN\u017fWER>", False, "neither ANSWER nor FINAL"),
        ("<THIN\u212a>hm</THINK>", False, "neither ANSWER nor FINAL"),
        ("<THINK>hm</THIN\u212a>", False, "neither ANSWER nor FINAL"),
    ],
)
def test_unreadable_replies(text, has_think, reason):
    assert parse_reply(text) == Reply("invalid", (), has_think, reason)


# --- any text ----------------------------------------------------------------------------------

PIECES = (
    "<ANSWER>up", "<FINAL>down", "left</ANSWER>", "right</FINAL>", "<ANSWER>up</ANSWER>",
    "<FINAL>up</FINAL>",
    *(f"<{slash}{tag}>" for tag in ("ANSWER", "FINAL", "THINK", "answer", "Final", "tHink")
      for slash in ("", "/")),
    *ACTIONS, "UP", "Left", "north", " ", ",", "\n", "\t", "\x00", "<", ">", "</", "<ANSWER",
    "</FINAL", "ANSWER>", "<|im_end|>", "<|image_pad|>", "\u212a", "\u0130", "\u017f", "\ud800",
    "\u200b", "\u2028", "\U0001f9dd", "e\u0301", "\\", "(.*)", "%s", "{}", "'", '"', "\r\n",
)  # fmt: skip


def random_texts(count, seed=0):
    """Tags, actions and rubbish in random order; some texts of random code points."""
    rng = random.Random(seed)
    for i in range(count):
        if i % 10 == 9:
            yield "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(40)))
        else:
            yield "".join(rng.choices(PIECES, k=rng.randrange(14)))


def naive_reply(text):
    """The rules as lazy patterns: short, and quadratic on the texts further below."""
    flags = re.IGNORECASE | re.DOTALL | re.ASCII
    think = re.search("<think>.*?</think>", text, flags) is not None
    for tag, kind in (("final", "commit"), ("answer", "proposal")):
        found = re.search(f"<{tag}>(.*?)</{tag}>", text, flags)
        if found:
            words = found.group(1).replace(",", " ").split()
            words = tuple(word.lower() for word in words)
            known = all(word in ("left", "down", "right", "up") for word in words)
            return (kind, words, think) if known else ("invalid", (), think)
    return "invalid", (), think


def test_ten_thousand_texts_are_read_as_the_rules_say():
    seen = {"proposal": 0, "commit": 0, "invalid": 0}
    for text in random_texts(10_000):
        reply = parse_reply(text)
        assert (reply.kind, reply.actions, reply.has_think) == naive_reply(text), repr(text)
        assert bool(reply.reason) == (reply.kind == "invalid")
        assert set(reply.actions) <= ACTIONS
        seen[reply.kind] += 1
    assert min(seen.values()) > 200  # the generator reaches every branch


def test_what_is_written_is_what_is_read():
    """A reply made of any actions in any spelling comes back."""
    rng = random.Random(1)
    for _ in range(500):
        actions = tuple(rng.choices(sorted(ACTIONS), k=rng.randrange(8)))
        joined = "".join(
            rng.choice((str.upper, str.lower, str.title))(action)
            + rng.choice((" ", ",", ", ", "\n", " ,\t"))
            for action in actions
        )
        tag = rng.choice(("ANSWER", "FINAL"))
        think = rng.random() < 0.5
        text = "<THINK>Let me see.</THINK>" * think + f"<{tag}>{joined}</{tag}>"
        kind = {"ANSWER": "proposal", "FINAL": "commit"}[tag]
        assert parse_reply(text) == Reply(kind, actions, think)


@pytest.mark.parametrize(
    "piece",
    ["<ANSWER>", "<FINAL>", "<THINK>", "</ANSWER>", "<ANSWER", "<", "<THINK><FINAL><ANSWER>",
     "up ", ",", " ", "\x00", "<ANSWER>up ", "</", "\u0130", "<ANSWER></FINAL>"],
)  # fmt: skip
def test_long_texts_take_linear_time(piece):
    """Two megabytes in under two seconds: quadratic code would take hours."""
    text = piece * (2_000_000 // len(piece))
    for whole in (text, f"<ANSWER>{text}</ANSWER>", f"<FINAL>{text}", f"{text}</THINK>"):
        started = time.process_time()
        parse_reply(whole)
        assert time.process_time() - started < 2


def test_a_huge_reply_keeps_every_action():
    reply = parse_reply("<ANSWER>" + "up, " * 200_000 + "</ANSWER>")
    assert reply.kind == "proposal" and reply.actions == ("up",) * 200_000
