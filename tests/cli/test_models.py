"""Model arguments that name no model; `pull`, `list`, `doctor`, `chips`."""

from __future__ import annotations

from pathlib import Path

import pytest

from ridgeline.chips.cpu import _native, roofline
from ridgeline.weights.stored_models import Record, keep_record


def web_page(folder: Path, models: Path) -> Path:
    path = folder / "model.gguf"
    path.write_text("<!DOCTYPE html><html><body>Sign in</body></html>")
    return path


def lfs_pointer(folder: Path, models: Path) -> Path:
    path = folder / "model.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 1\n")
    return path


def empty(folder: Path, models: Path) -> Path:
    path = folder / "model.gguf"
    path.touch()
    return path


def head_alone(folder: Path, models: Path) -> Path:
    path = folder / "model.gguf"
    path.write_bytes((models / "tiny.gguf").read_bytes()[:100])
    return path


def truncated(folder: Path, models: Path) -> Path:
    path = folder / "model.gguf"
    path.write_bytes((models / "tiny.gguf").read_bytes()[:-1000])
    return path


def pickle(folder: Path, models: Path) -> Path:
    path = folder / "pytorch_model.bin"
    path.write_bytes(b"PK\x03\x04")
    return path


def without_config(folder: Path, models: Path) -> Path:
    (folder / "model.safetensors").write_bytes((models / "tiny" / "model.safetensors").read_bytes())
    return folder


def without_tokenizer(folder: Path, models: Path) -> Path:
    for name in ("model.safetensors", "config.json"):
        (folder / name).write_bytes((models / "tiny" / name).read_bytes())
    return folder


def truncated_safetensors(folder: Path, models: Path) -> Path:
    for path in (models / "tiny").iterdir():
        (folder / path.name).write_bytes(path.read_bytes()[: -100 if path.suffix == ".safetensors" else None])
    return folder


def empty_folder(folder: Path, models: Path) -> Path:
    return folder


def nothing(folder: Path, models: Path) -> Path:
    return folder / "none.gguf"


@pytest.mark.parametrize("verb", ["chat", "run", "doctor"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (web_page, "a web page"),
        (lfs_pointer, "git lfs pull"),
        (empty, "the file is empty"),
        (head_alone, "model.gguf"),
        (truncated, "truncated"),
        (pickle, "can run code"),
        (without_config, "config.json"),
        (without_tokenizer, "tokenizer.json"),
        (truncated_safetensors, "model.safetensors"),
        (empty_folder, "holds no weights"),
        (nothing, "no such file"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_no_model(call, models, tmp_path, make, words, verb) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    model = str(make(folder, models))
    if verb == "doctor":
        outcome = call("doctor", model)
        assert outcome.status == 1 and "FAIL" in outcome.out and words in outcome.out
        return
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    given = ("chat", model, "-p", "Hi")
    if verb == "run":
        given = ("run", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), "-m", model)
    outcome = call(*given)
    assert outcome.is_mistake(words, str(folder)) and outcome.out == ""
    assert make is head_alone or outcome.hint


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("", "is empty"),
        ("https://huggingface.co/Qwen/Qwen2.5-0.5B", "addresses are not fetched"),
        ("Qwen/Qwen2.5-0.5B", "hf:Qwen/Qwen2.5-0.5B"),
        ("hf:Qwen", "hf:org/name"),
        ("hf:../../etc", "hf:org/name"),
        ("pypi:numpy", "only the default model"),
    ],
)
def test_arguments_that_name_no_model(call, model, words) -> None:
    assert call("chat", model, "-p", "Hi").is_mistake(words)
    assert call("pull", model).is_mistake(words)


def test_a_near_name_is_offered(call, models) -> None:
    outcome = call("chat", str(models / "tniy.gguf"), "-p", "Hi")
    assert outcome.is_mistake("no such file") and f"did you mean {models / 'tiny.gguf'}?" in outcome.hint


def test_pull_says_where_a_model_is(call, tiny) -> None:
    assert call("pull", tiny).out == f"{tiny}\n"


def test_list(call, tiny, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RIDGELINE_CACHE", str(tmp_path))
    outcome = call("list")
    assert outcome.status == 0 and outcome.out == "" and "ridgeline pull" in outcome.err
    keep_record(Record(argument="hf:org/tiny:F32", path=tiny, files=(tiny,)), tmp_path)
    outcome = call("list")
    head, line = outcome.out.splitlines()
    assert head.split() == ["NAME", "FORMAT", "SIZE", "MODIFIED"]
    assert line.split()[:4] == ["hf:org/tiny:F32", "F32", "1.5", "MB"]


def test_doctor(call, tiny) -> None:
    outcome = call("doctor", tiny)
    assert outcome.status == 0 and outcome.err == ""
    assert "kernels: " in outcome.out and "cache folder" in outcome.out and "the weights fit" in outcome.out


def test_doctor_says_which_kernels_run_and_which_could(call, monkeypatch) -> None:
    monkeypatch.setenv("RIDGELINE_INSTRUCTION_SET", "portable")
    outcome = call("doctor")
    assert _native.set_instruction_set(_native.instruction_sets()[0])
    assert (
        outcome.status == 0 and "kernels: portable (of " in outcome.out and "RIDGELINE_INSTRUCTION_SET" in outcome.out
    )
    monkeypatch.setenv("RIDGELINE_INSTRUCTION_SET", "z80")
    outcome = call("doctor")
    assert outcome.status == 1 and "'z80'" in outcome.out and "allowed here are " in outcome.out


def test_doctor_in_a_place_where_nothing_can_be_kept(call, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RIDGELINE_CACHE", str(tmp_path / "file" / "cache"))
    outcome = call("doctor")
    assert outcome.status == 1 and "FAIL" in outcome.out and "RIDGELINE_CACHE" in outcome.out


def test_chips(call, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RIDGELINE_CACHE", str(tmp_path))
    monkeypatch.setattr(roofline, "SECONDS_EACH", 0.005)
    outcome = call("chips")
    assert outcome.status == 0 and "measured" in outcome.out and "h100" in outcome.out
    kept = (tmp_path / "roofline.json").read_text()
    assert call("chips").status == 0 and (tmp_path / "roofline.json").read_text() == kept
    assert call("chips", "--measure").status == 0 and (tmp_path / "roofline.json").read_text() != kept
