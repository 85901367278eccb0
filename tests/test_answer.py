"""Replies as text: streamed to a terminal, and a file of them batch by batch."""

import io
import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

import vrrl_jax as vr
from vrrl_jax import answer, answer_file, cli, compiles, testing
from vrrl_jax.envs.frozenlake import render
from vrrl_jax.inference import Options
from vrrl_jax.processing import processor as processing
from vrrl_jax.rollout import engine

LONG = 3 * answer.CHUNK + 1
GREEDY = {"temperature": 0}
SAMPLED = {"temperature": 1.5, "top_k": 200, "top_p": 0.95}


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    """The policy as the command loads it: what one test compiles, the next one finds."""
    return vr.load_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def view(loaded):
    return engine.make_view(*loaded)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> pathlib.Path:
    """A folder of pictures: 3x3 maps, the last one of half the size."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, (map, cell) in enumerate(zip(testing.tiny_maps(3), (28, 28, 14), strict=True)):
        Image.fromarray(render(map, cell=cell)).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def generated(loaded, sequence, options, key):
    """The same question through `vr.generate`: tokens of each reply."""
    arrays = {}
    if sequence.pictures:
        arrays["pixel_values"] = np.concatenate([p.patches for p in sequence.pictures])
        arrays["image_grid_thw"] = np.array([p.grid for p in sequence.pictures])
    out = vr.generate(*loaded, sequence.tokens[None], **arrays, key=key, **options)
    return [row[:n].tolist() for row, n in zip(*jax.device_get(out)[::2], strict=True)]


def streamed(policy, view, sequence, options, key):
    replies = [[] for _ in range(options.get("n", 1))]
    for piece in answer.stream(policy, view, sequence, Options(**options), key):
        for reply, tokens in zip(replies, piece.tokens, strict=True):
            assert len(tokens) <= answer.CHUNK
            reply += tokens.tolist()
    return replies


# --- streaming -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sequence(tiny_processor, pictures):
    """A question about two pictures of different sizes."""
    question = answer.ask("Solve", [pictures / "0.png", pictures / "2.png"])
    return answer.tokenise(tiny_processor, question, normalised=True)


@pytest.mark.parametrize("draw", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_streamed_tokens_are_those_of_generate(loaded, view, sequence, draw):
    key = jax.random.key(3)
    options = {"max_new_tokens": LONG, "n": 3, "stop_ids": ()} | draw
    whole = generated(loaded, sequence, options, key)
    assert [len(reply) for reply in whole] == [LONG] * 3
    assert streamed(loaded[0], view, sequence, options, key) == whole
    # Replies that end early, in different chunks, at a chunk's edge among them.
    options["stop_ids"] = (whole[0][answer.CHUNK - 1], whole[1][answer.CHUNK + 2])
    wanted = generated(loaded, sequence, options, key)
    assert min(map(len, wanted)) <= answer.CHUNK
    assert streamed(loaded[0], view, sequence, options, key) == wanted


def test_a_stream_compiles_as_much_as_its_first_chunks(loaded, view, sequence):
    key = jax.random.key(0)
    options = {"temperature": 1.0, "n": 3, "stop_ids": ()}
    short = streamed(loaded[0], view, sequence, options | {"max_new_tokens": LONG}, key)
    counter = compiles.Counter()
    # Their cache has the same size.
    long = streamed(loaded[0], view, sequence, options | {"max_new_tokens": LONG + 8}, key)
    assert counter.count == 0
    assert [reply[:LONG] for reply in long] == short


def test_replies_are_printed_one_after_the_other(tiny_processor):
    """Three replies that end in different chunks; the second is nothing but its end token."""
    said = [["left up", " right"], [""], ["é", " up", "down"]]
    end, pieces = tiny_processor.ids.im_end, []
    for k in range(3):
        tokens = [processing.encode(tiny_processor, r[k]) if k < len(r) else [] for r in said]
        going = np.array([k + 1 < len(reply) for reply in said])
        closed = [t + [end] * (k + 1 == len(r)) for t, r in zip(tokens, said, strict=True)]
        pieces.append(answer.Piece([np.int32(t) for t in closed], going))
    out = list(answer.texts(tiny_processor, iter(pieces), 3))
    assert out == [(0, "left up"), (0, " right"), (2, "é up"), (2, "down")]


def test_speaking_ends_every_reply_with_a_line_end(
    tiny_checkpoint, loaded, tiny_processor, pictures, sequence
):
    options = {"max_new_tokens": LONG, "n": 3} | SAMPLED
    out = io.StringIO()
    question = answer.ask("Solve", [pictures / "0.png", pictures / "2.png"])
    answer.speak(str(tiny_checkpoint), question, Options(**options), 5, out)
    replies = generated(loaded, sequence, options, jax.random.key(5))
    wanted = [processing.decode(tiny_processor, reply) for reply in replies]
    assert out.getvalue() == "".join(f"{text}\n" for text in wanted)


# --- text of incomplete tokens -------------------------------------------------------------------


def test_incomplete_characters_are_held_back(tiny_processor):
    text = "é😀 up 漢字\n<ANSWER>right</ANSWER>ü"
    ids = processing.encode(tiny_processor, text)
    assert len(ids) > len(text) - 20  # bytes are tokens here
    for step in (1, 2, 3):
        partial, shown = answer.Partial(), ""
        for at in range(0, len(ids), step):
            last = at + step >= len(ids)
            partial, new = answer.advance(tiny_processor, partial, ids[at : at + step], last)
            shown += new
            assert text.startswith(shown) and "\ufffd" not in shown
        assert shown == text


def test_what_never_gets_complete_is_shown_as_decode_shows_it(tiny_processor):
    start = processing.encode(tiny_processor, "😀")[:2]
    up = processing.encode(tiny_processor, "up")
    partial, new = answer.advance(tiny_processor, answer.Partial(), start, False)
    assert new == ""
    assert answer.advance(tiny_processor, partial, [], True)[1] == "\ufffd"
    assert answer.advance(tiny_processor, partial, up, False)[1] == "\ufffdup"


def test_special_tokens_are_not_shown(tiny_processor):
    ids = processing.encode(tiny_processor, "up<|im_end|>")
    assert answer.advance(tiny_processor, answer.Partial(), ids, True)[1] == "up"


# --- chats ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_chat_file_names_its_pictures(tiny_processor, pictures, wrapped):
    parts = [
        {"type": "image", "image": "0.png"},
        {"type": "image", "path": str(pictures / "1.png")},
        {"type": "text", "text": "Solve"},
        {"type": "image_url", "image_url": {"url": "2.png"}},
        {"type": "image_url", "image_url": f"file://{pictures}/0.png"},
    ]
    messages = [
        {"role": "user", "content": "Verify"},
        {"role": "assistant", "content": "up"},
        {"role": "user", "content": parts},
    ]
    path = pictures / "chat.json"
    path.write_text(json.dumps({"messages": messages} if wrapped else messages))
    question = answer.read_chat(path, "Look")
    images = [np.asarray(Image.open(pictures / f"{i}.png")) for i in (0, 1, 2, 0)]
    assert all((a == b).all() for a, b in zip(question.images, images, strict=True))
    assert question.messages == [{"role": "system", "content": "Look"}, *messages]
    sequence = answer.tokenise(tiny_processor, question)
    text = processing.decode(tiny_processor, sequence.tokens, skip_special_tokens=False)
    assert text.startswith("<|im_start|>system\nLook<|im_end|>\n<|im_start|>user\nVerify<|im_end|>")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n") and len(sequence.pictures) == 4
    # A chat's own system message stays the only one.
    path.write_text(json.dumps([{"role": "system", "content": "Own"}, *messages]))
    assert [m["role"] for m in answer.read_chat(path, "Look").messages].count("system") == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "chat.json"),
        ("[]", "messages"),
        ('{"prompt": "Solve"}', "messages"),
        ('["Solve"]', "str"),
        ('[{"role": "user", "content": [{"type": "image"}]}]', "name its file"),
        ('[{"role": "user", "content": [{"type": "image", "url": "http://a/b.png"}]}]', "http"),
        ('[{"role": "user", "content": [{"type": "image", "path": "broken.png"}]}]', "broken.png"),
        ('[{"role": "user", "content": [{"type": "image", "path": "no.png"}]}]', "no.png"),
    ],
)
def test_a_chat_that_cannot_be_read_is_named(pictures, content, words):
    path = pictures / "bad_chat.json"
    path.write_text(content)
    with pytest.raises((ValueError, OSError), match=words):
        answer.read_chat(path)


def test_the_command_answers_a_chat(tiny_checkpoint, pictures, capsys):
    parts = [{"type": "image", "image": f"{i}.png"} for i in (0, 2)]
    path = pictures / "command.json"
    content = [*parts, {"type": "text", "text": "Solve"}]
    path.write_text(json.dumps([{"role": "user", "content": content}]))
    base = ["generate", str(tiny_checkpoint), "--max-new-tokens", str(LONG), "--n", "3"]
    assert cli.main([*base, "--chat", str(path)]) == 0
    reply = capsys.readouterr().out
    images = [word for i in (0, 2) for word in ("--image", str(pictures / f"{i}.png"))]
    assert cli.main([*base, "--prompt", "Solve", *images]) == 0
    assert capsys.readouterr().out == reply
    assert reply.strip() and reply == reply[: len(reply) // 3] * 3  # greedy


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "one of"),
        (["--prompt", "a", "--chat", "b"], "--prompt and --chat"),
        (["--prompt", "a", "--input", "b", "--output", "c"], "--prompt and --input"),
        (["--chat", "a", "--image", "b"], "--image"),
        (["--input", "a"], "--output"),
        (["--prompt", "a", "--output", "b"], "--input"),
        (["--prompt", "a", "--resume"], "--input"),
        (["--input", "a", "--output", "b", "--batch-size", "0"], "--batch-size"),
    ],
)
def test_options_that_do_not_go_together_are_a_usage_error(argv, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["generate", "nano", *argv])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "usage: vrrl generate" in error and words in error.splitlines()[-1]


# --- files ---------------------------------------------------------------------------------------


def chat_of(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}]}


RECORDS = [
    {"id": "a", "prompt": "Solve", "images": ["0.png", "2.png"]},
    {"id": "b", "prompt": "up " * 8},
    {"id": "c", "prompt": "Verify", "images": ["1.png", "2.png"], "note": {"é": [1, None]}},
    "{broken",
    {"id": "e", "prompt": "Solve", "image": "missing.png"},
    {"id": "f", **chat_of({"type": "image", "path": "2.png"}, {"type": "text", "text": "Solve"})},
    {"id": "g", "prompt": "Solve", "image": "broken.png"},
    {"id": "h", "prompt": "Solve", "images": ["0.png", "2.png"], "image": None},
    {"id": "i", "prompt": "<|im_end|>"},
    {"id": "j", "reply": "old", "prompt": "left", "images": ["0.png", "1.png"]},
]
FAILED = {3: "record", 4: "missing.png", 6: "broken.png", 8: "im_end"}


@pytest.fixture(scope="module")
def source(pictures) -> pathlib.Path:
    lines = [line if isinstance(line, str) else json.dumps(line) for line in RECORDS]
    path = pictures / "input.jsonl"
    path.write_text("\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:]))  # line 3 is blank
    return path


def run(checkpoint, source, target, *, batch_size=4, resume=False, **options):
    options = Options(**{"max_new_tokens": 6} | options)
    answer_file.main(
        str(checkpoint), source, target, options, seed=1, batch_size=batch_size, resume=resume
    )
    return [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def results(tiny_checkpoint, source, tmp_path_factory):
    """{sampled or not: (output path, records)} of whole runs in batches of 4."""
    folder = tmp_path_factory.mktemp("outputs")
    found = {}
    for name, options in (("greedy", GREEDY), ("sampled", SAMPLED)):
        target = folder / f"{name}.jsonl"
        found[name] = target, run(tiny_checkpoint, source, target, **options)
    return found


def test_outputs_stand_in_order_and_carry_fields(results):
    _, out = results["greedy"]
    assert [r.get("id") for r in out] == ["a", "b", "c", None, "e", "f", "g", "h", "i", "j"]
    assert out[2]["note"] == {"é": [1, None]}
    for i, record in enumerate(out):
        if i in FAILED:
            line = i + 1 + (i >= 2)
            assert record["error"].startswith(f"line {line}: ") and FAILED[i] in record["error"]
            assert "reply" not in record and "finish" not in record
        else:
            assert record.keys() - {"note"} == {"id", "reply", "finish"}
            assert record["finish"] in ("stop", "length") and record["reply"] != "old"
    assert out[0]["reply"] == out[7]["reply"]  # the same question


@pytest.mark.parametrize("name", ["greedy", "sampled"])
def test_a_reply_is_that_of_generate(loaded, tiny_processor, sequence, results, name):
    """The first record draws as the first row of a call does."""
    options = {"max_new_tokens": LONG, "n": 3} | (SAMPLED if name == "sampled" else GREEDY)
    tokens = generated(loaded, sequence, options, jax.random.key(1))[0][:6]
    record = results[name][1][0]
    assert record["reply"] == processing.decode(tiny_processor, tokens)
    assert record["finish"] == ("stop" if tokens[-1] in loaded[0].stop_ids else "length")


@pytest.mark.parametrize("name", ["greedy", "sampled"])
def test_replies_depend_on_neither_the_batch_nor_their_number(
    tiny_checkpoint, source, results, tmp_path, name
):
    options = {"batch_size": 12, "n": 2} | (SAMPLED if name == "sampled" else GREEDY)
    out = run(tiny_checkpoint, source, tmp_path / "several.jsonl", **options)
    for two, one in zip(out, results[name][1], strict=True):
        if "error" in one:
            assert two == one
            continue
        assert len(two["replies"]) == len(two["finish"]) == 2 and "reply" not in two
        assert (two["replies"][0], two["finish"][0]) == (one["reply"], one["finish"])
    # Neither samples nor the same question elsewhere draw alike.
    several = {reply for i in (0, 7) for reply in out[i]["replies"]}
    assert len(several) == (4 if name == "sampled" else 1)


@pytest.mark.parametrize("whole", [0, 3, 4, 9, 10])
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    tiny_checkpoint, source, results, tmp_path, whole
):
    path, _ = results["sampled"]
    lines = path.read_bytes().splitlines(keepends=True)
    target = tmp_path / "torn.jsonl"
    target.write_bytes(b"".join(lines[:whole]) + b"".join(lines[whole : whole + 1])[:-1])
    run(tiny_checkpoint, source, target, resume=True, **SAMPLED)
    assert target.read_bytes() == path.read_bytes()


def test_finished_batches_are_written_at_once(tiny_checkpoint, source, tmp_path, monkeypatch):
    target, sizes, real = tmp_path / "out.jsonl", [], answer_file.decode_batch

    def interrupted(*args):
        sizes.append(len(target.read_bytes().splitlines()))
        if len(sizes) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(answer_file, "decode_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_checkpoint, source, target, temperature=0)
    assert sizes == [0, 4, 8]


def test_the_command_refuses_an_output_that_is_there(
    tiny_checkpoint, source, results, tmp_path, capsys
):
    base = ["generate", str(tiny_checkpoint), "--input", str(source), "--max-new-tokens", "6"]
    base += ["--batch-size", "4"]
    target = tmp_path / "new" / "out.jsonl"
    assert cli.main([*base, "--output", str(target)]) == 0
    assert target.read_bytes() == results["greedy"][0].read_bytes()
    told = capsys.readouterr()
    assert "6 answered, 4 failed, the first: line 5" in told.out
    assert "tokens/s" in told.err
    assert cli.main([*base, "--output", str(target)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert target.read_bytes() == results["greedy"][0].read_bytes()
    assert cli.main([*base, "--output", str(source), "--resume"]) == 2
    assert "is the input" in capsys.readouterr().err
    target.write_text('{"id": "z", "reply": "up"}\n')
    assert cli.main([*base, "--output", str(target), "--resume"]) == 2
    assert "is no reply to line 1" in capsys.readouterr().err
    assert cli.main(["generate", "nowhere", *base[2:], "--output", str(tmp_path / "no")]) == 2
    assert not (tmp_path / "no").exists()


BAD = [
    "[]",
    '{"id": 1}',
    '{"prompt": 1}',
    '{"prompt": "\\ud800", "id": "\\ud800"}',
    '{"prompt": "a", "image": ["0.png"]}',
    '{"prompt": "a", "image": "\\u0000"}',
    '{"prompt": "a", "image": "."}',
    '{"prompt": "a", "image": "http://a/b.png"}',
    '{"prompt": "a", "messages": []}',
    '{"messages": [{"role": "user", "content": [{"type": "video", "video": "a"}]}]}',
    '{"messages": [{"role": "user", "content": null}]}',
    '{"messages": [{"content": "a"}]}',
    "[" * 100_000,
]


def test_only_a_run_without_any_reply_fails(tiny_checkpoint, pictures, tmp_path, capsys):
    source, target = pictures / "bad.jsonl", tmp_path / "bad.jsonl"
    source.write_bytes("\n".join(BAD).encode() + b"\n\xff\n")
    argv = ["generate", str(tiny_checkpoint), "--input", str(source), "--output", str(target)]
    assert cli.main(argv) == 2
    assert f"all {len(BAD) + 1} records failed, the first: line 1: " in capsys.readouterr().err
    out = [json.loads(line) for line in target.read_text().splitlines()]
    assert [r["error"].partition(":")[0] for r in out] == [
        f"line {i}" for i in range(1, len(BAD) + 2)
    ]
    assert out[3]["id"] == "\ud800"
    assert cli.main([*argv, "--resume"]) == 2  # nothing is left to do, and all failed still
    source.write_bytes(b"\n")
    target.unlink()
    assert cli.main(argv) == 0 and target.read_bytes() == b""
