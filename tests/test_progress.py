"""The bar over bytes: nothing for what is quick, megabytes for what is not."""

import io

from vrrl_jax.progress import bytes_bar


def test_what_is_quick_stays_silent():
    now, stream = [0.0], io.StringIO()
    with bytes_bar("read", stream=stream, clock=lambda: now[0]) as progress:
        for done in range(0, 101, 10):
            now[0] += 0.09
            progress(done, 100)
    assert stream.getvalue() == ""


def test_what_takes_longer_is_shown_in_megabytes():
    now, stream = [0.0], io.StringIO()
    with bytes_bar("written", stream=stream, clock=lambda: now[0]) as progress:
        for done in range(0, 5001, 100):
            now[0] += 1.0
            progress(done * 10**6, 5000 * 10**6)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("MB written 100/5000")
    assert lines[-1].startswith("MB written 5000/5000")
    assert 4 < len(lines) < 10
    assert "left" in lines[2]
