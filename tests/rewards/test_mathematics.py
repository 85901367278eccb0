"""Mathematical equality: the outcomes of the published rules, and texts made to hang them."""

import os
import subprocess
import sys
import threading
import time

import pytest

from vrrl_jax.rewards import equivalence
from vrrl_jax.rewards.equivalence import equivalent
from vrrl_jax.rewards.mathematics import emma, mathverse, mathvision, rethinker


@pytest.fixture(scope="module", autouse=True)
def no_worker_stays():
    yield
    workers = list(equivalence._idle)
    equivalence.close()
    assert all(worker.poll() is not None for worker in workers)


@pytest.mark.parametrize(
    "answer, gold, right",
    [
        (r"B. 5", "B", True),
        (r"\frac12", "0.5", True),
        (r"50\%", "0.5", True),
        (r"60^\circ", "60", True),
        ("3,4", "4,3", True),
        ("x=3", "3", True),
        ("1,000", "1000", True),
        ("5 cm", "5", True),
        ("Yes", "Yes", True),
        ("A,C", "AC", False),
        (r"\text{B}", "B", False),
        ("3.0", "3", True),
        ("3.1", "3", False),
    ],
)
def test_rethinkers_rule(answer, gold, right):
    assert rethinker(rf"\boxed{{{answer}}}", gold).correct is right
    assert rethinker(rf"so \boxed{{{answer}}}", rf"\boxed{{{gold}}}").correct is right


def test_rethinkers_rule_tries_tags_and_tail_after_the_box_but_strict_does_not():
    reply = r"\boxed{4} <answer>5</answer> Answer: 6"
    assert [rethinker(reply, gold).correct for gold in "4567"] == [True, True, True, False]
    strict = [rethinker(reply, gold, mode="strict").correct for gold in "4567"]
    assert strict == [False, True, False, False]
    assert rethinker(r"\boxed{ABOUT 5}", "A").correct
    assert not rethinker(r"\boxed{ABOUT 5}", "A", mode="strict").correct
    assert rethinker(r"\boxed{\text{B}}", "B", mode="strict").correct
    assert rethinker("no idea", "5").reason == "unreadable"


@pytest.mark.parametrize(
    "answer, gold, right",
    [
        ("0.5", r"\frac{1}{2}", True),
        ("3.14", r"\pi", True),
        ("3.46", r"2\sqrt{3}", True),
        ("0.333", "1/3", True),
        ("0.34", "1/3", False),
        ("(1.0,2.0)", "(1,2)", False),
        (r"5\text{ km}", "5", True),
    ],
)
def test_mathvisions_rule(answer, gold, right):
    assert mathvision(rf"so \boxed{{{answer}}}", gold).correct is right


@pytest.mark.parametrize(
    "reply, right",
    [("It must be (C).", True), ("C\nfor sure", True), ("The answer is 30. Really", True)]
    + [(r"\boxed{1} or \boxed{30}", True), ("(B)", False), (r"\boxed{c}", True)],
)
def test_mathvision_takes_the_letter_or_the_options_text(reply, right):
    assert mathvision(reply, "C", ["10", "20", "30"]).correct is right


@pytest.mark.parametrize(
    "reply, gold, right",
    [
        ("C", "C", True),
        ("C: since", "C", True),
        (r"\boxed{\text{C}}", "C", True),
        ("The correct answer is\n D.", "D", True),
        ("30", "B", True),  # the option's text
        (r"\boxed{\frac{1}{3}}", "0.333", True),
        (r"\boxed{x(x+1)}", "x^2+x", True),
        (r"\boxed{x(x+2)}", "x^2+x", False),
    ],
)
def test_emmas_rule(reply, gold, right):
    assert emma(reply, gold, ["20", "30"]).correct is right


def test_mathverse_scores_letters_and_values():
    assert mathverse("The answer is B", "B", "multi-choice").correct
    assert mathverse(r"\boxed{3}", "3", "free-form").correct


BOMBS = ["9^{9^{9^{9}}}", "2^{9999999}", "9**9**9**9", "1000000!", "{" * 50 + "x" + "}" * 50]
BOMBS += [r"\frac{" * 500 + "1" + "}{2}" * 500, "x" * 100_000, "(" * 900_000]


def test_benchmarks_name_the_limit_that_was_met():
    tower = r"\boxed{9^{9^{9^{9}}}}"
    assert mathvision(tower, "7").reason == emma(tower, "7").reason == "refused"


@pytest.mark.parametrize("bomb", BOMBS, ids=range(len(BOMBS)))
def test_known_bombs_are_refused_unread(bomb):
    start = time.process_time()
    assert equivalent(bomb, "7") == equivalent("7", bomb) == "refused"
    assert rethinker(rf"\boxed{{{bomb}}}", "7").reason == "refused"
    assert time.process_time() - start < 1


@pytest.mark.parametrize("bomb", [r"\sum_{n=1}^{99999}\frac{1}{n^2}"])
def test_other_bombs_meet_the_time_limit_in_a_thread_and_the_next_question_is_answered(bomb):
    outcomes = []
    thread = threading.Thread(
        target=lambda: outcomes.extend(
            [equivalent(bomb, r"\frac{\pi^2}{6}", seconds=0.3), equivalent(r"\frac12", "0.5")]
        )
    )
    thread.start()
    thread.join()
    assert outcomes == ["timeout", "equal"]


@pytest.mark.parametrize(
    "text", ["\ud800", "\x00", "\\", "}{", r"\frac{}{}", "\\end{a}", "$$", "=" * 50]
)
def test_broken_latex_is_an_outcome(text):
    assert equivalent(text, "7") in ("different", "unreadable")


def test_a_worker_ends_with_the_process_that_started_it():
    """Killed, not closed: no handler runs, its pipe just closes."""
    code = (
        "import os, sys\nsys.path.insert(0, sys.argv[1])\nimport equivalence\n"
        "print(equivalence._take().pid, flush=True)\nos._exit(1)"
    )
    command = [sys.executable, "-c", code, os.path.dirname(equivalence.__file__)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    worker = int(done.stdout)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{worker}/stat") as stat:
                if stat.read().rsplit(")", 1)[1].split()[0] == "Z":  # ended, not collected yet
                    return
        except FileNotFoundError:
            return
        time.sleep(0.1)
    os.kill(worker, 9)
    pytest.fail("the worker outlived its parent by a minute")
