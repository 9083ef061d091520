"""Opening a model file or folder, whatever kind it turns out to be, and saying what was found where none fits."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from ridgeline.errors import ModelFileError
from ridgeline.weights.checkpoint import Checkpoint
from ridgeline.weights.gguf import PART_NAME, GgufCheckpoint
from ridgeline.weights.safetensors import CONFIG_NAME, INDEX_NAME, SafetensorsCheckpoint

_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
_FETCH_WEIGHTS = "pull a GGUF file or a folder with safetensors, for example: ridgeline pull"


def open_checkpoint(path: Path) -> Checkpoint:
    """The model at `path`, a GGUF file, a safetensors file beside its `config.json`, or a folder with either.

    What a file is, its content decides and not its name. Raises ModelFileError that says what was found instead, or
    what is wrong inside the files.
    """
    if not path.exists():
        raise ModelFileError(f"{path}: no such file or folder")
    return _open_folder(path) if path.is_dir() else _open_file(path)


def _open_folder(folder: Path) -> Checkpoint:
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise ModelFileError(f"{folder}: cannot be read: {error.strerror}") from None
    has_safetensors = (folder / INDEX_NAME).is_file() or any(path.suffix == ".safetensors" for path in files)
    if has_safetensors:
        if not (folder / CONFIG_NAME).is_file():
            raise ModelFileError(
                f"{folder}: holds safetensors but no {CONFIG_NAME}, which says what model they are",
                hint=f"fetch {CONFIG_NAME} (and tokenizer.json) of the model into the same folder",
            )
        for path in files:
            if path.suffix == ".safetensors":
                _refuse_foreign(path)
        return SafetensorsCheckpoint(folder)
    models = _gguf_models(files)
    if len(models) == 1:
        return _open_file(models[0])
    if models:
        listed = "".join(f"\n  {path}" for path in models)
        raise ModelFileError(f"{folder}: holds {len(models)} GGUF models:{listed}", hint="give one of these files")
    pickles = [path.name for path in files if path.suffix in _PICKLES]
    if pickles:
        raise ModelFileError(
            f"{folder}: holds weights only as pickles ({', '.join(pickles[:3])}); they can run code and are not opened",
            hint="fetch the model's safetensors or a GGUF file",
        )
    found = ", ".join(path.name for path in files[:5]) or "no files"
    raise ModelFileError(f"{folder}: holds no weights (found {found})", hint=_FETCH_WEIGHTS)


def _gguf_models(files: list[Path]) -> list[Path]:
    """The GGUF files of a folder; of a model in parts, the first."""
    models: list[Path] = []
    for path in files:
        match = PART_NAME.fullmatch(path.name)
        if path.suffix == ".gguf" and (match is None or int(match["number"]) == 1 or not _has_first_part(path, files)):
            models.append(path)
    return models


def _has_first_part(path: Path, files: list[Path]) -> bool:
    match = PART_NAME.fullmatch(path.name)
    assert match is not None
    return path.with_name(f"{match['stem']}-00001-of-{match['count']}.gguf") in files


def _open_file(path: Path) -> Checkpoint:
    if not path.is_file():
        # Opening a pipe would wait for ever.
        raise ModelFileError(f"{path}: is neither a file nor a folder")
    head = _refuse_foreign(path)
    if head.startswith(b"GGUF"):
        return _open_gguf(path)
    if path.suffix == ".safetensors" or (head[8:9] == b"{" and path.suffix != ".gguf"):
        if not (path.parent / CONFIG_NAME).is_file():
            raise ModelFileError(
                f"{path}: there is no {CONFIG_NAME} beside it, which says what model it is",
                hint=f"fetch {CONFIG_NAME} (and tokenizer.json) of the model into the same folder",
            )
        return SafetensorsCheckpoint(path.parent)
    if path.name in (CONFIG_NAME, INDEX_NAME):
        return _open_folder(path.parent)
    # The reader knows more kinds of magic than this function, and names what it found.
    return _open_gguf(path)


def _open_gguf(path: Path) -> GgufCheckpoint:
    checkpoint = GgufCheckpoint(path)
    kind = checkpoint.metadata.get("general.type", "model")
    architecture = checkpoint.metadata.get("general.architecture")
    if kind != "model" or architecture in ("clip", "imatrix"):
        what = {"adapter": "a LoRA adapter", "mmproj": "an image projector", "clip": "an image projector"}
        label = what.get(str(kind)) or what.get(str(architecture)) or f"of type {str(kind)[:40]!r}"
        raise ModelFileError(f"{path}: general.type: the file is {label}, not a model", hint=_FETCH_WEIGHTS)
    if not isinstance(architecture, str) or not architecture:
        raise ModelFileError(f"{path}: general.architecture: is {architecture!r}, not the name of a model family")
    if not checkpoint.names:
        raise ModelFileError(f"{path}: number of tensors: is 0, the file holds a vocabulary and no weights")
    return checkpoint


def _refuse_foreign(path: Path) -> bytes:
    """The first bytes of a file, unless they are those of something that is well known and no model."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from None
    if not head:
        raise ModelFileError(f"{path}: the file is empty", hint="fetch it again")
    if head.startswith(b"version https://git-lfs"):
        _refuse(path, "a pointer of Git LFS, not the file that it stands for", "run: git lfs pull")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        _refuse(path, "a web page, not a model", "a download went wrong: fetch the file itself, not the page about it")
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")) or path.suffix in _PICKLES:
        _refuse(path, "a pickle or an archive; these can run code and are not opened", "fetch safetensors or GGUF")
    if head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")):
        _refuse(path, "compressed", "unpack it first")
    return head


def _refuse(path: Path, what: str, hint: str) -> NoReturn:
    raise ModelFileError(f"{path}: the file is {what}", hint=hint)
