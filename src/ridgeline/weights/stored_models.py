"""What has been pulled: a small record for each model of a hub, whose bytes lie in that hub's own cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from ridgeline.errors import ModelFileError, UserError
from ridgeline.weights.cache_folder import CACHE_HINT, default_cache_folder, made_folder
from ridgeline.weights.disk import disk_errors, replacing
from ridgeline.weights.facts import main_format
from ridgeline.weights.open import open_checkpoint
from ridgeline.weights.package_index import DEFAULT_MODEL, is_stored, stored_path

DEFAULT_ALIAS = "smollm2"
"""What a person types for the default model."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """That `argument` was pulled: which files it came to. Written when all of them are whole."""

    argument: str
    path: str
    """The file or folder to open."""
    files: tuple[str, ...]
    """Every file that belongs to it."""

    def is_whole(self) -> bool:
        """Whether all files are still there: other programs may tidy the hub's cache."""
        return all(Path(name).is_file() for name in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """One line of the list of models."""

    name: str
    """What to give as the model argument."""
    path: Path
    kind: str
    """"gguf", "safetensors", or "unreadable"."""
    format: str
    """The name of the format that holds most of its bytes; empty if it is unreadable."""
    size_bytes: int
    modified: datetime


def find_record(argument: str, cache: Path) -> Record | None:
    """The record of an argument, if its files are all still there."""
    record = _read_record(_record_path(argument, cache))
    return record if record is not None and record.argument == argument and record.is_whole() else None


def keep_record(record: Record, cache: Path) -> None:
    """Write a record."""
    path = _record_path(record.argument, cache)
    made_folder(path.parent)
    with disk_errors(path.parent, hint=CACHE_HINT), replacing(path) as file:
        file.write(msgspec.json.encode(record))


def list_models(cache_folder: Path | None = None) -> tuple[StoredModel, ...]:
    """The models that were pulled, in order of their names; `cache_folder` if they are not in the usual place."""
    cache = default_cache_folder() if cache_folder is None else cache_folder
    models = []
    if is_stored(DEFAULT_MODEL, cache):
        path = stored_path(DEFAULT_MODEL, cache)
        models.append(_described(DEFAULT_ALIAS, path, [path]))
    for record_path in sorted((cache / "models").glob("*/*.json")):
        record = _read_record(record_path)
        if record is not None and record.is_whole():
            models.append(_described(record.argument, Path(record.path), [Path(name) for name in record.files]))
    return tuple(sorted(models, key=lambda model: model.name))


def _described(name: str, path: Path, files: list[Path]) -> StoredModel:
    facts = [file.stat() for file in files]
    try:
        checkpoint = open_checkpoint(path)
        kind, format_name = checkpoint.kind, main_format(checkpoint)
        checkpoint.close()
    except ModelFileError:
        kind, format_name = "unreadable", ""
    return StoredModel(
        name=name,
        path=path,
        kind=kind,
        format=format_name,
        size_bytes=sum(fact.st_size for fact in facts),
        modified=datetime.fromtimestamp(max(fact.st_mtime for fact in facts), UTC),
    )


def _record_path(argument: str, cache: Path) -> Path:
    """Where the record of a hub argument lies; letters that a file name may not have are written as =hex."""
    scheme, _, rest = argument.partition(":")
    if not rest:
        raise UserError(f"{argument}: is no model of a hub")
    safe = re.sub(r"[^A-Za-z0-9._-]", lambda match: f"={ord(match[0]):x}=", rest)
    return cache / "models" / scheme / f"{safe}.json"


def _read_record(path: Path) -> Record | None:
    """The record in a file; nothing if there is none that can be read, for then it is made anew."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
        return None
