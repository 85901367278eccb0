"""What forced rethinking is told: the published ways, and what makes no sense."""

import pytest

from vrrl_jax.data.question_demonstrations import TRIGGERS
from vrrl_jax.rollout.rethinking import KINDS, PRESETS, Rethinking


def test_the_presets_are_the_published_ones():
    paper, code = PRESETS["paper"], PRESETS["code"]
    assert 0 < paper.share < 1 and paper.accept == "any" and paper.temperature is None
    assert (paper.cut_back, paper.informed, paper.room, paper.least) == (0, 0, 0, 1)
    assert paper.spare_accuracy is paper.per_query is paper.most is None
    for kind in KINDS:
        assert getattr(paper, kind) == getattr(TRIGGERS, kind)
    assert (code.share, code.spare_accuracy, code.temperature) == (0.65, 0.7, 0.9)
    assert (code.cut_back, code.informed, code.accept) == (0.5, 0.5, "correct")
    assert (code.least, code.most, code.per_query, code.room) == (30, 1024, 2, 1024)
    assert not paper.train_trigger and not code.train_trigger


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"share": 1.5}, "share"),
        ({"spare_accuracy": -0.1}, "spare_accuracy"),
        ({"kinds": ("verify",)}, "kinds"),
        ({"kinds": ()}, "kinds"),
        ({"correction": ()}, "correction needs a text"),
        ({"informed": 0.5, "when_wrong": ("",)}, "when_wrong needs a text"),
        ({"accept": "all"}, "accept"),
        ({"least": 9, "most": 8}, "least"),
        ({"room": -1}, "room"),
        ({"per_query": 0}, "per_query"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(ValueError, match=words):
        Rethinking(**options)
