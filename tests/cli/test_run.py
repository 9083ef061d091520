"""`ridgeline run`: every line of the input has its answer or its error, in order, whatever is in the file."""

from __future__ import annotations

import json
import os

import pytest

from ridgeline.cli.main import main
from tests.tiny_models import write_tiny_gguf

GOOD = b'{"prompt": "the", "max_tokens": 2, "temperature": 0}'


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf"))


@pytest.fixture
def answered(model, tmp_path, monkeypatch, capfd):
    """Runs the lines; gives exit status, answers, what was said."""
    monkeypatch.setenv("RIDGELINE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()

    def run(content: bytes, output=tmp_path / "out.jsonl") -> tuple[int, list[dict], str]:
        (tmp_path / "in.jsonl").write_bytes(content)
        chip = ["--chip", "reference", "--kv", "f32", "--context", "64"]
        status = main(["run", str(tmp_path / "in.jsonl"), str(output), "-m", model, *chip])
        answers = [json.loads(line) for line in output.read_bytes().split(b"\n")[:-1]] if output.is_file() else []
        assert [answer["index"] for answer in answers] == list(range(len(answers)))
        return status, answers, capfd.readouterr().err

    return run


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "not valid JSON"),
        (b'{"prompt": "\xff"}', "not valid JSON"),
        (b"5", "not a JSON object"),
        (b'{"prompt": "a", "temprature": 1}', "temprature"),
        (b'{"prompt": "a", "stop": 5}', "stop"),
        (b'{"prompt": "a", "ignore_eos": "no"}', "ignore_eos"),
        (b'{"prompt": "a", "logit_bias": {"' + b"9" * 5000 + b'": 1}}', "logit_bias"),
        (b'{"prompt": "a", "temperature": NaN}', "NaN"),
        (b'{"messages": "a"}', "messages"),
        (b'{"messages": [5]}', "messages"),
        (b'{"messages": []}', "empty"),
        (b'{"prompt": ""}', "empty"),
        (b'{"prompt": {"a": 1}}', "dict"),
        (b'{"prompt": [1' + b"0" * 30 + b"]}", "ids go from"),
        (b'{"prompt": "' + b"a b " * 200 + b'"}', "fit into the context"),
        (b'{"prompt": "a", "allowed_token_ids": [38], "bad_words": ["&"]}', "leave no token"),
    ],
)
def test_a_bad_line_is_reported_and_skipped(answered, line, words) -> None:
    status, answers, said = answered(b"\n" + GOOD + b"\n\n" + line + b"\n" + GOOD + b"\n")
    assert status == 3
    assert [("error" in answer) for answer in answers] == [False, True, False]
    assert words in answers[1]["error"] and f"line 4: {answers[1]['error']}" in said
    assert answers[0]["text"] == answers[2]["text"]


def test_only_a_line_feed_ends_a_line(answered) -> None:
    inside = "a\u2028b\u0085c\u2029d".encode()
    status, answers, _ = answered(b'\xef\xbb\xbf{"prompt": "' + inside + b'", "max_tokens": 1}\r\n' + GOOD)
    assert (status, len(answers)) == (0, 2)


def test_null_is_not_given(answered) -> None:
    status, (answer,), _ = answered(b'{"prompt": "the", "max_tokens": 2, "stop": null, "seed": null, "n": null}')
    assert (status, answer["usage"]["completion_tokens"]) == (0, 2)


def test_an_identity_that_utf8_cannot_say_comes_back(answered) -> None:
    status, (answer,), _ = answered(b'{"id": "\\ud800", "prompt": "the", "max_tokens": 1}')
    assert (status, answer["id"]) == (0, "\ud800")


def test_goes_on_after_the_last_whole_answer(answered, tmp_path) -> None:
    output = tmp_path / "out.jsonl"
    _, whole, _ = answered(GOOD + b"\n" + GOOD + b"\n" + GOOD)
    lines = output.read_bytes().split(b"\n")
    output.write_bytes(lines[0] + b"\n" + lines[1][:10])
    status, answers, said = answered(GOOD + b"\n" + GOOD + b"\n" + GOOD)
    assert status == 0 and "1 of 3 lines are answered already" in said
    assert [answer["text"] for answer in answers] == [answer["text"] for answer in whole]


def test_an_output_that_is_not_ours_is_left_alone(answered, tmp_path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_bytes(b"precious\n")
    with pytest.raises(ValueError, match="Expecting"):
        answered(GOOD)
    assert output.read_bytes() == b"precious\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a disk that is always full is a file of Linux")
def test_a_full_disk_is_told(answered, tmp_path) -> None:
    output = tmp_path / "out.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ridgeline.cli.run._num_done", lambda path: 0)
        output.symlink_to("/dev/full")
        status, _, said = answered(GOOD)
    assert status == 2 and "No space left" in said and "Traceback" not in said
