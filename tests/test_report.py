"""The report: one file that shows what a run left behind, whatever is missing or hostile."""

import base64
import html.parser
import io
import json
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vrrl_jax import charts, gallery, log, report
from vrrl_jax import config as c
from vrrl_jax.types import Episode

HOSTILE = "<script>alert('x')</script> & \"quoted\" <b>"
VOID = {"meta", "img"}


class Page(html.parser.HTMLParser):
    """Collects tags, texts and attributes, and checks that tags nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def an_episode(texts, images, **changes):
    none = np.zeros(0, np.float32)
    fields = {
        "question": 5,
        "sample": 0,
        "group": 0,
        "tokens": none,
        "loss_mask": none,
        "turn_index": none,
        "logprobs": none,
        "pictures": (),
        "spans": (),
        "texts": tuple(texts),
        "images": tuple(images),
        "rewards": {"total": 0.75, "reflect": 0.125, "final_em": 1.0},
    }
    return Episode(**(fields | changes))


@pytest.fixture
def run_dir(tmp_path):
    """A run of 60 steps with every kind of file."""
    run_dir = tmp_path / "nano-1"
    log.open_run(
        c.TrainConfig(run_dir=str(run_dir), env=c.NavigationEnv(question=HOSTILE)),
        command="vrrl train configs/<nano>.yaml",
    )
    with log.Writer(run_dir, 60, c.LogConfig(tensorboard=False), stream=io.StringIO()) as w:
        for step in range(1, 61):
            metrics = {
                "reward": 0.5 + step / 200,
                "success": 0.25,
                "grad_norm": float("nan") if step == 30 else 1.0 + step % 3,
                "learning_rate": 1e-5 * step,
                "kl_reference": 0.01,
                "entropy": 0.5,
                "tokens_per_second": 1500.0,
                "decode_occupancy": 0.5,
                "count/rtm_groups": 2,
                "count/skipped_updates": int(step == 30),
                f"count/{HOSTILE}": 1,
            }
            w.step(step, metrics)
    pictures = [(np.full((4, 4, 3), 50 * u, np.uint8),) for u in range(3)]
    for step in (10, 20):
        log.save_episodes(
            run_dir,
            step,
            [
                an_episode(
                    ("<ANSWER>up</ANSWER>", HOSTILE, "<FINAL>up</FINAL>"),
                    pictures,
                    mode="roll_in",
                    prefix_turns=1,
                ),
                an_episode(("one",), ()),
            ],
        )
    rows = [
        {"name": "4x4", "maps": 250, "metrics": {"final_em": 0.875}, "interval": 0.04},
        {"name": HOSTILE, "maps": 0, "metrics": {"final_em": float("nan")}},
        {"name": "OOD", "final_em": {"value": 0.5, "low": 0.25, "high": 0.75}},
    ]
    tables = [{"name": "after RL, greedy", "rows": rows, "note": "by map"}]
    (run_dir / "evaluation.json").write_text(json.dumps(tables))
    return run_dir


def test_the_report_stands_alone(run_dir):
    path = report.write_report(run_dir)
    assert path == run_dir / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert sources
    assert all(value.startswith("data:image/png;base64,") for value in sources)
    assert "@import" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert ("name", "viewport") in page.attributes


def test_it_holds_every_part(run_dir):
    text = report.write_report(run_dir).read_text(encoding="utf-8")
    page = Page(text)
    for words in (
        "nano-1",
        "vrrl train configs/<nano>.yaml",
        "after RL, greedy",
        "0.875 ± 0.040",
        "0.500 0.250 – 0.750",
        "by map",
        "Gradient norm",
        "Learning rate",
        "KL to the reference",
        "Entropy",
        "Tokens per second",
        "decode_occupancy",  # no figure of its own, and not lost
        "learning_rate: 5.0e-07",
        "roll_in",
        "rolled in: 1 turn",
        "reflect 0.125",
    ):
        assert words in page.text, words
    # 0.505 .. 0.55 at first, 0.755 .. 0.8 at last
    assert "0.527 → 0.778" in page.text.replace("0.528", "0.527").replace("0.777", "0.778")


def test_final_tables_come_first_and_those_of_steps_are_folded(run_dir):
    (run_dir / "evaluation.json").unlink()
    for file in ("base", "final", "step000010", "step000020"):
        row = {"split": "OOD", "before": 60.0, "gain": 2.5, "+-95%": 1.25}
        path = run_dir / f"evaluation_{file}.json"
        path.write_text(json.dumps([{"name": f"table {file}", "rows": [row]}]))
    text = report.write_report(run_dir).read_text(encoding="utf-8")
    places = [text.index(f"table {f}") for f in ("final", "base", "step000010", "step000020")]
    assert places == sorted(places)
    assert places[1] < text.index("During the run (2)") < places[2]
    assert "2.5 ± 1.25" in Page(text).text
    assert "+-95%" not in text


def test_counters_are_summed(run_dir):
    text = report.write_report(run_dir).read_text(encoding="utf-8")
    cells = re.findall(r"<tr><td>([^<]*)</td><td>([^<]*)</td><td>([^<]*)</td>", text)
    assert ("rtm groups", "120", "60 of 60") in cells
    assert ("skipped updates", "1", "1 of 60") in cells


def test_texts_are_escaped(run_dir):
    text = report.write_report(run_dir).read_text(encoding="utf-8")
    assert "<script" not in text
    assert Page(text).text.count("alert('x')") >= 4  # counter, table, configuration, replies


def test_pictures_are_the_files(run_dir):
    text = report.write_report(run_dir).read_text(encoding="utf-8")
    found = re.findall(r'base64,([^"]+)"', text)
    assert len(found) == 6  # three turns of one episode in each of two steps
    for u, data in enumerate(found[:3]):
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        np.testing.assert_array_equal(picture, np.full((4, 4, 3), 50 * u, np.uint8))
    assert "no picture" in text


def test_a_picture_outside_the_run_is_not_shown(run_dir):
    secret = run_dir.parent / "secret.png"
    secret.write_bytes(b"secret")
    path = run_dir / "episodes" / "step_000010.json"
    record = json.loads(path.read_text())
    record["episodes"] = record["episodes"][:1]
    record["episodes"][0]["turns"][0]["pictures"] = ["../../secret.png"]
    record["episodes"][0]["turns"][1]["pictures"] = ["step_000010/gone.png"]
    path.write_text(json.dumps(record))
    text = report.write_report(run_dir).read_text(encoding="utf-8")
    assert base64.b64encode(b"secret").decode() not in text
    assert text.count("picture missing") == 2


def test_an_empty_and_a_broken_run_are_reported(tmp_path):
    text = report.write_report(tmp_path).read_text(encoding="utf-8")
    assert "No metrics were written" in Page(text).text
    (tmp_path / "metrics.jsonl").write_text("nonsense\n")
    (tmp_path / "evaluation.json").write_text("{")
    (tmp_path / "evaluation_b.json").write_text('{"tables": [{"rows": [1, {"a": 1}]}, 3]}')
    (tmp_path / "episodes").mkdir()
    (tmp_path / "episodes" / "step_000001.json").write_text('{"episodes": [3, {}]}')
    page = Page(report.write_report(tmp_path).read_text(encoding="utf-8"))
    assert "metrics.jsonl:1" in page.text
    assert "evaluation.json could not be read" in page.text
    with pytest.raises(FileNotFoundError, match="no run at"):
        report.write_report(tmp_path / "nowhere")


def test_the_gallery_spreads_over_the_run():
    episodes = [(step, i) for step in range(10, 110, 10) for i in range(4)]
    assert gallery.spread(episodes, 100) == episodes
    chosen = gallery.spread(episodes, 12)
    assert [step for step, _ in chosen] == [10] * 4 + [50] * 4 + [100] * 4
    assert len(gallery.spread(episodes, 3)) == 3
    assert gallery.spread([], 5) == []


# --- curves ---


def svg(figure):
    return ET.fromstring(re.search(r"<svg.*</svg>", figure, re.DOTALL).group(0))


def coordinates(path):
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path.get("d"))]


def test_a_curve_is_drawn_to_scale():
    figure = charts.line_chart("a title", {"loss": [(0, 0.0), (5, 1.0), (10, 2.0)]})
    (path,) = svg(figure).findall("path")
    points = coordinates(path)
    right, bottom = charts.WIDTH - charts.RIGHT, charts.HEIGHT - charts.BOTTOM
    assert points[0] == (charts.LEFT, bottom)
    assert points[-1] == (right, charts.TOP)
    assert points[1] == ((charts.LEFT + right) / 2, (charts.TOP + bottom) / 2)
    labels = [element.text for element in svg(figure).findall("text")]
    assert labels == ["0", "0.5", "1.0", "1.5", "2.0", "0", "10", "5"]


def test_gaps_break_a_curve():
    points = [(0, 1.0), (1, 2.0), (2, None), (3, 5.0), (4, None), (5, 3.0), (6, 2.0)]
    tree = svg(charts.line_chart("t", {"a": points}))
    (path,) = tree.findall("path")
    assert path.get("d").count("M") == 3
    assert len(tree.findall("circle")) == 1  # the point alone
    assert "not finite" in ET.tostring(tree, encoding="unicode")


def test_nothing_to_draw():
    assert charts.line_chart("t", {}) == ""
    assert charts.line_chart("t", {"a": [(1, None)]}) == ""
    assert charts.sparkline([(1, None)]) == ""
    assert charts.line_chart("t", {"a": [(3, 7.0)]}).count("<circle") == 1


def test_a_spike_gets_a_log_scale():
    figure = charts.line_chart("t", {"a": [(i, 1.0 if i != 5 else 5000.0) for i in range(20)]})
    assert "log scale" in figure
    labels = [element.text for element in svg(figure).findall("text")]
    assert labels[:4] == ["1", "10", "100", "1000"]
    assert "log scale" not in charts.line_chart("t", {"a": [(0, -1.0), (1, 1e6)]})


def test_long_curves_are_thinned_to_means():
    points = [(i, float(i)) for i in range(1000)]
    thinned = charts.thin(points, 10)
    assert thinned == [(100 * k + 99, np.mean(range(100 * k, 100 * k + 100))) for k in range(10)]
    assert charts.thin([(0, None), (1, 2.0)] * 10, 10)[0] == (1, 2.0)


def test_only_noise_is_averaged():
    ramp = [(i, float(i)) for i in range(100)]
    rng = np.random.default_rng(0)
    noisy = [(i, float(v)) for i, v in enumerate(rng.normal(size=100))]
    assert not charts.is_noisy(ramp)
    assert charts.is_noisy(noisy)
    assert len(svg(charts.line_chart("t", {"a": ramp})).findall("path")) == 1
    assert len(svg(charts.line_chart("t", {"a": noisy})).findall("path")) == 2
    middle = charts.smooth(noisy)[50][1]
    assert middle == pytest.approx(np.mean([v for _, v in noisy[46:55]]))


@given(low=st.floats(-1e12, 1e12), span=st.floats(1e-9, 1e12), count=st.integers(1, 8))
def test_ticks_are_few_and_enclose_the_values(low, span, count):
    high = low + span
    ticks = charts.nice_ticks(low, high, count)
    if high - low < 1e-9 * max(abs(low), abs(high)):
        return  # beyond what labels could tell apart
    slack = 1e-6 * (high - low)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert ticks == sorted(set(ticks))
    assert len(ticks) <= count + 3


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=50),
        max_size=3,
    ),
    st.text(max_size=8),
)
def test_any_curve_is_well_formed(series, title):
    figure = charts.line_chart(title, {n: list(enumerate(v)) for n, v in series.items()})
    assert not re.search(r"\b(nan|inf)\b", "".join(re.findall(r' d="[^"]*"', figure)))
    Page(figure)
    Page(charts.sparkline(list(enumerate(next(iter(series.values()), [])))))


def test_labels_tell_ticks_apart():
    ranges = ((0.9996, 1.0004), (0, 6e-5), (0, 12000), (0, 4e6), (-0.04, 0.04), (1, 1.001))
    for low, high in ranges:
        ticks = charts.nice_ticks(low, high)
        labels = charts.tick_labels(ticks)
        assert len(set(labels)) == len(labels), labels
        for tick, label in zip(ticks, labels, strict=True):
            assert math.isclose(float(label.replace(",", "")), tick, rel_tol=0.05, abs_tol=1e-9)


def test_labels_fit_beside_the_curve():
    ticks = charts.nice_ticks(1.0, 1.000015)
    assert charts.tick_labels(ticks) == ["1", "+5e-06", "+1e-05", "+1.5e-05"]
    assert charts.tick_labels([5e-5]) == ["5e-05"]


@pytest.mark.slow
def test_a_browser_shows_it_in_light_and_dark(run_dir, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium or google-chrome")
    path = report.write_report(run_dir)
    brightness = {}
    for theme, scheme in (("dark", 0), ("light", 1)):
        shot = tmp_path / f"{theme}.png"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={shot}"]
        command += [f"--blink-settings=preferredColorScheme={scheme}", "--window-size=800,1200"]
        subprocess.run([*command, path.as_uri()], check=True, capture_output=True, timeout=120)
        picture = np.asarray(Image.open(shot).convert("L"), np.float32)
        assert picture.std() > 5  # something is drawn
        brightness[theme] = picture.mean()
    assert brightness["dark"] < 80 < 180 < brightness["light"]
