"""Suites end to end: asked, kept, gone on with, scored; no model but where one is named."""

import json
import pathlib

import pytest

from vrrl_jax import answer_file
from vrrl_jax.benchmarks import registry, run, suite
from vrrl_jax.benchmarks.config import SuiteConfig, load
from vrrl_jax.benchmarks.model import Reply
from vrrl_jax.inference import Options

EVERY = [name for name in registry.BENCHMARKS if name not in ("refcoco_plus", "refcocog")]


@pytest.fixture
def recipe(tmp_path, published):
    """Writes a suite's configuration; gives its path and its output folder."""

    def write(*entries: str, **more) -> tuple[pathlib.Path, pathlib.Path]:
        path, output = tmp_path / "suite.yaml", tmp_path / "out"
        lines = [f"data: {published}", f"output: {output}", "benchmarks:"]
        lines += [f"  - {{{entry}}}" for entry in entries]
        lines += [f"{key}: {value}" for key, value in more.items()]
        path.write_text("\n".join(lines) + "\n")
        return path, output

    return write


def texts_of(question) -> str:
    """All that a chat says, `<image>` for a picture."""
    said = []
    for message in question.messages:
        parts = message["content"]
        parts = [{"text": parts}] if isinstance(parts, str) else parts
        said += [part.get("text", "<image>") for part in parts]
    return "".join(said)


def saying(*texts):
    """An answer that says these in turn, one a call; the calls are kept in `.calls`."""

    def answer(calls):
        out = [
            Reply(texts[(len(answer.calls) + i) % len(texts)], shown=((56, 28),) * 1)
            for i in range(len(calls))
        ]
        answer.calls += calls
        return out

    answer.calls = []
    return answer


def rows_of(path) -> list[dict]:
    return json.loads(path.read_text())["rows"]


def predictions(output, name="chartqa.direct") -> list[dict]:
    lines = (output / "predictions" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_every_benchmark_in_every_mode(recipe):
    modes = "[direct, cot, chain, reflect, boxed]"
    entries = [f"name: {name}, modes: {modes}" for name in EVERY]
    entries = [f"{entry}, limit: 1" if "generated" in entry else entry for entry in entries]
    path, output = recipe(*entries, batch_size=3, resamples=50)
    answer = saying("The answer is \\boxed{B}.")
    rows = rows_of(suite.main(path, answer=answer))
    assert len(rows) == 5 * len(EVERY)
    assert {row["failed"] + row["missing"] for row in rows} == {0}
    # Every chat shows its pictures where the prompt marks them, and none went without.
    for call in answer.calls:
        assert texts_of(call.question).count("<image>") == len(call.question.images)
    told = (output / "results.md").read_text()
    assert "MEGA-Bench, rule-scored part (not comparable with MEGA core)" in told
    assert "ChartMuseum (rule, not comparable)" in told
    assert "not covered: gpt_4o_as_judge 1" in told
    for row in rows:
        assert (row["official"] is None) == (registry.get(row["benchmark"]).official is None)


def test_the_table_of_a_known_run(recipe):
    path, output = recipe("name: chartqa", batch_size=3)
    # Right; right within 5%; wrong (not a word); a year that official lets be off.
    rows = rows_of(
        suite.main(path, answer=saying("3", "104", "Blue", "Wait. <answer>2018</answer>"))
    )
    (row,) = rows
    assert (row["official"], row["strict"], row["n"]) == (75.0, 50.0, 4)
    assert row["categories"] == {
        "augmented": {"n": 2, "official": 50.0, "strict": 0.0},
        "human": {"n": 2, "official": 100.0, "strict": 100.0},
    }
    assert row["rethinking"] == 25.0 and row["strict with rethinking"] == 0.0
    assert row["strict without"] == pytest.approx(66.67)
    low, high = row["strict interval"]
    assert low < 50.0 < high
    first = predictions(output)[0]
    assert first["id"] == "chartqa/0" and first["prompt"] == "lmms-eval"
    assert first["reply"] == "3" and first["finish"] == "stop" and first["model"] == "nano"
    assert first["sampling"]["temperature"] == 0.0
    table = (output / "results.md").read_text().splitlines()[2:5]
    assert table[0].startswith("| model | benchmark | split | mode | prompt | n | official |")
    assert table[2].startswith("| nano | ChartQA | test | direct | lmms-eval | 4 | 75.0 | 50.0 |")
    verdicts = next((output / "verdicts").iterdir()).read_text().splitlines()
    assert [json.loads(v)["strict"]["correct"] for v in verdicts] == [True, True, False, False]


def test_macro_means_and_parts(recipe):
    path, _ = recipe("name: tablevqa", "name: mmmu_pro", "name: mega_bench", "name: mathverse")
    replies = ["1||2", "no", "7", "True", "True", "3"]  # vwtq 1/2, syn 1, fact 1/2, fin 1
    replies += ["Answer: J", "Answer: B", "Answer: J"]  # standard 1/2, vision 1
    replies += ['{"n": "2"}', "{'n': '4'}", "Answer: a disc"]  # tasks 1/2 and 1
    replies += ["B"] * 5 + ["\\boxed{5}"] * 4 + ["\\boxed{6}"]
    rows = {row["benchmark"]: row for row in rows_of(suite.main(path, answer=saying(*replies)))}
    assert rows["tablevqa"]["official"] == 75.0 and rows["tablevqa"]["strict"] == 75.0
    assert rows["mmmu_pro"]["official"] == 75.0
    assert rows["mmmu_pro"]["categories"]["standard"]["strict"] == 50.0
    mega = rows["mega_bench"]
    assert (mega["strict"], mega["n"], mega["not covered"]) == (75.0, 3, {"gpt_4o_as_judge": 1})
    assert rows["mathverse"]["official"] is None and rows["mathverse"]["strict"] == 90.0
    assert rows["mathverse"]["categories"]["Vision Only"]["strict"] == 50.0


def test_a_chain_sees_what_was_said_and_its_conclusion_counts(recipe):
    path, output = recipe("name: chartqa, modes: [chain], limit: 1")
    steps = ["<SUMMARY> I count. </SUMMARY>", "two bars", "hm", "<CONCLUSION> 3 </CONCLUSION>"]
    answer = saying(*steps)
    (row,) = rows_of(suite.main(path, answer=answer))
    assert row["strict"] == 100.0 and len(answer.calls) == 4
    said = [texts_of(call.question) for call in answer.calls]
    assert "Step 1" in said[0] and "<SUMMARY>" in said[0] and "CAPTION" not in said[0]
    assert "I count." in said[1] and "Write only <CAPTION>" in said[1]
    assert all(text in said[3] for text in steps[:3])
    roles = [message["role"] for message in answer.calls[3].question.messages]
    assert roles == ["user", "assistant"] * 3 + ["user"]
    assert predictions(output, "chartqa.chain")[0]["turns"] == steps


def test_reflection_is_scored_before_and_after(recipe):
    path, output = recipe("name: chartqa, modes: [reflect], limit: 3", batch_size=3)
    answer = saying("3", "5", "Blue", "4", "100", "Blue")
    (row,) = rows_of(suite.main(path, answer=answer))
    assert (row["first"], row["final"]) == (33.33, 33.33)
    assert (row["right to wrong"], row["wrong to right"]) == (33.33, 33.33)
    assert row["strict"] == 33.33
    assert "check your answer" in texts_of(answer.calls[3].question)
    assert "## Reflection" in (output / "results.md").read_text()


def test_several_samples_of_a_question(recipe):
    sampling = "{temperature: 1.0, samples: 2}"
    path, output = recipe("name: chartqa, limit: 2", sampling=sampling, batch_size=3)
    answer = saying("3", "4", "100", "100")
    (row,) = rows_of(suite.main(path, answer=answer))
    assert (row["n"], row["replies"], row["strict"]) == (2, 4, 75.0)
    assert [(p["id"], p["sample"]) for p in predictions(output)] == [
        ("chartqa/0", 0),
        ("chartqa/0", 1),
        ("chartqa/1", 0),
        ("chartqa/1", 1),
    ]
    assert len({call.number for call in answer.calls}) == 4


# --- boxes ----------------------------------------------------------------------------------------


def test_boxes_by_shares_and_by_pixels_of_the_resized_picture(recipe):
    path, output = recipe("name: refcoco, split: val, prompt: json", "name: refcoco, split: testA")
    # The disc lies at 4 .. 20 of 56 x 28; the model sees the picture at twice the size.
    pixels = '```json\n[{"bbox_2d": [8, 8, 40, 40], "label": "disc"}]\n```'
    shares = "[0.071, 0.143, 0.357, 0.714]"

    def answer(calls):
        native = "JSON" in texts_of(calls[0].question)
        return [Reply(pixels if native else shares, shown=((112, 56),)) for _ in calls]

    rows = {row["split"]: row for row in rows_of(suite.main(path, answer=answer))}
    assert rows["val"]["official"] is None and rows["val"]["strict"] == 100.0
    assert rows["val"]["mean IoU"] == 100.0 and rows["val"]["ACC@0.9"] == 100.0
    assert rows["testA"]["official"] == rows["testA"]["strict"] == 100.0
    assert predictions(output, "refcoco-val.direct")[0]["coordinates"] == "pixel"
    assert predictions(output, "refcoco-testA.direct")[0]["coordinates"] == "unit"


# --- going on -------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_and_a_torn_line_is_written_again(recipe):
    path, output = recipe("name: chartqa", batch_size=2)

    def dying(calls):
        if calls[0].number >= 2:
            raise Killed
        return [Reply("3")] * len(calls)

    with pytest.raises(Killed):
        suite.main(path, answer=dying)
    file = output / "predictions/chartqa.direct.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])  # a kill in the middle of the second line
    with pytest.raises(FileExistsError, match="--resume"):
        suite.main(path, answer=saying("3"))
    answer = saying("3")
    suite.main(path, resume=True, answer=answer)
    # The batch that was torn is asked again as it was; what stands of it isn't written twice.
    assert [call.number for call in answer.calls] == [0, 1, 2, 3]
    assert file.read_bytes().startswith(whole) and len(predictions(output)) == 4
    answer = saying("3")
    suite.main(path, resume=True, answer=answer)
    assert answer.calls == []


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("sampling.seed=1", "sampling"),
        ("model=other", "model"),
        ("benchmarks[0].prompt=qwen", "prompt"),
    ],
)
def test_a_run_goes_on_with_its_own_settings_alone(recipe, override, field):
    path, _ = recipe("name: chartqa, limit: 1")
    suite.main(path, answer=saying("3"))
    with pytest.raises(ValueError, match=f"{field} was .* and is .* now"):
        suite.main(path, [override], resume=True, answer=saying("3"))


# --- failures -------------------------------------------------------------------------------------


def test_what_fails_is_told_and_wrong(recipe):
    path, output = recipe("name: chartqa", batch_size=4)

    def answer(calls):
        return [Reply("3"), Reply("", "", "too long a prompt"), Reply("Red"), Reply("x", "length")]

    (row,) = rows_of(suite.main(path, answer=answer))
    assert (row["failed"], row["cut"], row["strict"]) == (1, 33.33, 50.0)
    assert predictions(output)[1]["error"] == "chartqa/1, turn 1: too long a prompt"


def test_a_suite_in_which_everything_fails(recipe):
    path, _ = recipe("name: chartqa")
    with pytest.raises(ValueError, match=r"chartqa: all 4 failed, the first: .*no"):
        suite.main(path, answer=lambda calls: [Reply("", "", "no")] * len(calls))


def test_missing_data_is_named(recipe):
    path, _ = recipe("name: refcocog")
    with pytest.raises(FileNotFoundError, match="RefCOCOg"):
        suite.main(path, answer=saying("3"))
    path, _ = recipe("name: chartqa, split: val")
    with pytest.raises(FileNotFoundError, match="val"):
        suite.main(path, answer=saying("3"))


# --- other models' predictions --------------------------------------------------------------------


def test_other_models_stand_beside(recipe, tmp_path):
    path, output = recipe("name: chartqa", "name: vsr")
    theirs = tmp_path / "blip2.jsonl"
    lines = [{"id": "chartqa/0", "reply": "3"}, {"id": "vsr/1", "reply": "Yes"}]
    lines += [{"benchmark": "chartqa", "id": "chartqa/2", "reply": "red", "model": "ignored"}]
    text = "\n".join(map(json.dumps, lines)) + "\n"
    # Broken: no JSON, no id, no reply, an unknown question, another benchmark's, a second reply.
    text += 'oops\n{"reply": "3"}\n{"id": "chartqa/1"}\n{"id": "chartqa/9", "reply": "3"}\n'
    text += '{"benchmark": "vsr", "id": "chartqa/1", "reply": "3"}\n'
    text += '{"id": "chartqa/0", "reply": "4"}\n[]\n'
    theirs.write_text(text)
    rows = rows_of(suite.main(path, predictions=[f"BLIP-2={theirs}"]))
    found = {(row["model"], row["benchmark"]): row for row in rows}
    assert set(found) == {("BLIP-2", "chartqa"), ("BLIP-2", "vsr")}
    chart = found["BLIP-2", "chartqa"]
    assert (chart["strict"], chart["missing"], chart["prompt"]) == (50.0, 2, "theirs")
    assert found["BLIP-2", "vsr"]["strict"] == 50.0
    told = json.loads((output / "results.json").read_text())["broken predictions"]
    assert told["count"] == 7 and "line 4" in told["first"][0]
    assert any("a second reply to chartqa/0" in line for line in told["first"])
    assert "7 lines of predictions were not used" in (output / "results.md").read_text()
    # Our own replies, once they are there, are in the same table.
    suite.main(path, answer=saying("3"))
    rows = rows_of(suite.main(path, predictions=[str(theirs)]))
    assert sorted({row["model"] for row in rows}) == ["blip2", "ignored", "nano"]


def test_a_file_without_any_prediction(recipe, tmp_path):
    path, _ = recipe("name: chartqa")
    (tmp_path / "bad.jsonl").write_text('{"id": "other/1", "reply": "3"}\n')
    with pytest.raises(ValueError, match=r"bad.jsonl holds no prediction .*no question 'other/1'"):
        suite.main(path, predictions=[str(tmp_path / "bad.jsonl")])
    with pytest.raises(FileNotFoundError, match=r"no predictions at none.jsonl"):
        suite.main(path, predictions=["none.jsonl"])


def test_questions_for_other_models(recipe):
    path, _ = recipe("name: chartqa, modes: [boxed], limit: 1", "name: vsr, limit: 1")
    asked = list(suite.questions(path))
    assert [(label, name) for label, name, _ in asked] == [
        ("chartqa", "chartqa/0"),
        ("vsr", "vsr/0"),
    ]
    assert texts_of(asked[0][2]).endswith("put your final answer within \\boxed{}.")
    assert asked[0][2].images[0].shape == (28, 56, 3)


# --- a real policy --------------------------------------------------------------------------------


def test_a_tiny_policy_really_answers(recipe, tiny_checkpoint, tmp_path, monkeypatch):
    """It can't read: its replies are noise, and those that `vrrl generate` gets, too."""
    monkeypatch.setattr(run.prompting, "opening", lambda *_: "<image>Solve")
    more = {"model": tiny_checkpoint, "batch_size": 2, "sampling": "{max_new_tokens: 4}"}
    path, output = recipe("name: chartqa, limit: 3", **more)
    (row,) = rows_of(suite.main(path))
    found = predictions(output)
    assert (row["n"], row["failed"], row["missing"]) == (3, 0, 0)
    (tmp_path / "a.png").write_bytes(next(iter(asked_pictures(path))))
    line = json.dumps({"prompt": "Solve", "image": "a.png"})
    (tmp_path / "q.jsonl").write_text(f"{line}\n" * 2)
    source, target = tmp_path / "q.jsonl", tmp_path / "a.jsonl"
    options = Options(max_new_tokens=4, temperature=0.0)
    answer_file.main(str(tiny_checkpoint), source, target, options, batch_size=2)
    expected = json.loads(target.read_text().splitlines()[0])
    assert [(p["reply"], p["finish"]) for p in found] == [
        (expected["reply"], expected["finish"])
    ] * 3


def asked_pictures(path):
    """The pictures of a suite's first benchmark, as they are stored."""
    config = load(path, [], SuiteConfig)
    asked = suite.load_questions(config)[0]
    return (asked[i].pictures[0] for i in range(len(asked)))
