"""Where a reply is cut so that another thought may follow."""

import numpy as np
import pytest

from vrrl_jax.processing import processor as processing
from vrrl_jax.rollout import cuts


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("It is 3. Wait, no. wait, 4. \\boxed{4}", "It is 3. Wait, no. "),
        ("WAIT: \\boxed{4}", ""),
        ("I await \\boxed{3} or \\boxed{4}", "I await \\boxed{3} or "),
        ("<think>a, b</think><answer>\\boxed{4}</answer>", "<think>a, b"),
        ("<think>a, wait, b</think><answer>wait</answer>", "<think>a, "),
        ("so <answer>\\boxed{4}</answer>", "so "),
        ("<REASONING>c</REASONING><CONCLUSION>\\boxed{4}</CONCLUSION>", "<REASONING>c</REASONING>"),
        ("no answer", "no answer"),
    ],
)
def test_a_cut_is_before_the_last_wait_or_the_answer(text, kept):
    assert text[: cuts.cut_place(text, True)] == kept
    whole = text.partition("</think>")[0]
    assert text[: cuts.cut_place(text, False)] == whole


def test_a_cut_lies_between_two_tokens(tiny_processor):
    """Against trying every prefix; random tokens are full of characters cut in two."""
    rng = np.random.default_rng(0)
    decode = lambda tokens: processing.decode(tiny_processor, tokens)
    mixed = np.array(processing.encode(tiny_processor, "a 😀 é wait, über 漢字 right"))
    for tokens in (mixed, *rng.integers(0, 320, (20, 30))):
        text = decode(tokens)
        prefixes = [decode(tokens[:n]) for n in range(len(tokens) + 1)]
        for place in range(len(text) + 1):
            wanted = max(n for n, p in enumerate(prefixes) if text[:place].startswith(p))
            assert cuts.tokens_before(tiny_processor, tokens, place) == wanted


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("left wait right", "left"),
        ("left.\n\nWait, \\boxed{3}", "left."),
        ("wait, right", "wait, right"),
        ("  \\boxed{3}", "  \\boxed{3}"),
    ],
)
def test_a_cut_leaves_something_and_no_space_behind_it(tiny_processor, text, rest):
    tokens = np.array(processing.encode(tiny_processor, text))
    kept = cuts.kept_tokens(tiny_processor, tokens, True)
    assert processing.decode(tiny_processor, tokens[:kept]) == rest
    assert cuts.kept_tokens(tiny_processor, tokens, False) == tokens.size
