"""`ridgeline quantize`, on the tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ridgeline.weights.open import open_checkpoint
from tests.cli.conftest import Outcome

Call = Callable[..., Outcome]


@pytest.fixture
def text(tmp_path: Path) -> str:
    """A text that the tiny vocabulary cuts into about two hundred tokens."""
    path = tmp_path / "text.txt"
    path.write_text("hello world, the rain in the north is not in the hold of the others. " * 6)
    return str(path)


def test_a_smaller_file_and_its_report(call: Call, tiny: str, text: str, tmp_path: Path) -> None:
    output, kept = tmp_path / "small.gguf", tmp_path / "report.json"
    outcome = call("quantize", tiny, "-o", str(output), "--format", "q8", "--text", text, "--json", str(kept))
    assert outcome.status == 0, outcome.err
    for word in ("perplexity", "same likeliest token", "decode, measured", "prefill, predicted", "Q8_0"):
        assert word in outcome.out
    report = json.loads(kept.read_text())
    assert report["file_bytes"]["output"] == output.stat().st_size < report["file_bytes"]["source"]
    assert 0 < report["quality"]["mean_kl"] < 0.05
    assert report["output_facts"]["touched_bytes"] < report["source_facts"]["touched_bytes"]
    assert report["tensors"]["blk.0.attn_q.weight"] == ["F32", "Q8_0"]


def test_what_the_file_says_of_itself_is_kept(call: Call, tiny: str, text: str, tmp_path: Path) -> None:
    output = tmp_path / "small.gguf"
    assert call("quantize", tiny, "-o", str(output), "--format", "Q8_0", "--text", text).status == 0
    before, after = open_checkpoint(Path(tiny)), open_checkpoint(output)
    assert after.names == before.names
    for key, value in before.metadata.items():
        assert list(after.metadata[key]) == list(value) if hasattr(value, "__len__") else after.metadata[key] == value
    assert after.metadata["general.file_type"] == 7
    assert after.tensor("output_norm.weight").data.tolist() == before.tensor("output_norm.weight").data.tolist()


def test_what_does_not_fit_is_told(call: Call, tiny: str, text: str, tmp_path: Path) -> None:
    outcome = call("quantize", tiny, "-o", str(tmp_path / "small.gguf"), "--format", "Q6_K", "--text", text)
    assert outcome.status == 0, outcome.err
    assert "note: Q8_0 instead of Q6_K" in outcome.out
    assert "rows of 128 values" in outcome.out


def test_mistakes(call: Call, tiny: str, text: str, tmp_path: Path) -> None:
    output = str(tmp_path / "small.gguf")
    assert call("quantize", tiny, "-o", output, "--format", "q7").is_mistake("q7", "q4-high")
    assert call("quantize", tiny, "-o", str(tmp_path / "small.bin")).is_mistake(".gguf")
    assert call("quantize", tiny, "-o", str(tmp_path / "no" / "small.gguf")).is_mistake("no such folder")
    assert call("quantize", tiny, "-o", output, "--text", str(tmp_path / "none.txt")).is_mistake("cannot be read")
    short = tmp_path / "short.txt"
    short.write_text("hello")
    assert call("quantize", tiny, "-o", output, "--text", str(short)).is_mistake("short.txt has", "at least 64")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    assert call("quantize", tiny, "-o", output, "--text", str(binary)).is_mistake("not UTF-8")
    assert not Path(output).exists()


def test_an_output_that_exists_is_kept(call: Call, tiny: str, text: str, tmp_path: Path) -> None:
    output = tmp_path / "small.gguf"
    output.write_bytes(b"precious")
    refused = call("quantize", tiny, "-o", str(output), "--format", "q8", "--text", text)
    assert refused.is_mistake("exists already", "--force")
    assert output.read_bytes() == b"precious"
    assert call("quantize", tiny, "-o", str(output), "--format", "q8", "--text", text, "--force").status == 0
    assert call("quantize", str(output), "-o", str(output), "--format", "q4", "--force").is_mistake("the source itself")
    again = call("quantize", str(output), "-o", str(tmp_path / "again.gguf"), "--format", "q8")
    assert again.is_mistake("nothing would get smaller", "Q8_0")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_becomes_a_file(call: Call, models: Path, text: str, tmp_path: Path) -> None:
    output = tmp_path / "small.gguf"
    outcome = call("quantize", str(models / "tiny"), "-o", str(output), "--format", "q8", "--text", text)
    assert outcome.status == 0, outcome.err
    assert open_checkpoint(output).metadata["general.architecture"] == "llama"
    assert call("chat", str(output), "-p", "hello", "--max-tokens", "4", "--quiet").status == 0


def test_calibration_texts(call: Call, tiny: str, text: str, tmp_path: Path) -> None:
    output = tmp_path / "small.gguf"
    arguments = ["quantize", tiny, "-o", str(output), "--format", "q4", "--text", text]
    assert call(*arguments, "--calibration", text).is_mistake("is the text that quality is measured on")
    assert call(*arguments, "--calibration", str(tmp_path / "none.txt")).is_mistake("cannot be read")
    assert not output.exists()
    other = tmp_path / "other.txt"
    other.write_text("in the world there are others who hold that the rain is on the hill and in the well. " * 40)
    sizes, divergences = [], []
    for name in (str(other), "none"):
        kept = tmp_path / "report.json"
        outcome = call(*arguments, "--calibration", name, "--force", "--json", str(kept))
        assert outcome.status == 0, outcome.err
        sizes.append(output.stat().st_size)
        divergences.append(json.loads(kept.read_text())["quality"]["mean_kl"])
    assert sizes[0] == sizes[1]
    assert divergences[0] < divergences[1]


def test_an_interruption_leaves_nothing(call: Call, tiny: str, text: str, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    folder = tmp_path / "out"
    folder.mkdir()

    def interrupted(_: int) -> None:
        assert any(folder.iterdir())  # the half file, under its other name
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    outcome = call("quantize", tiny, "-o", str(folder / "small.gguf"), "--format", "q8", "--text", text)
    assert outcome.status == 130
    assert not any(folder.iterdir())
