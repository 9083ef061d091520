"""The two model hubs, each through its own client library, behind one face.

Each client keeps its own cache (shared with every other program that uses it), goes on with interrupted downloads,
and reads its own settings for mirrors, proxies and tokens. They are optional: `pip install 'ridgeline[hf]'`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from ridgeline.errors import CapacityError, DownloadError, UserError
from ridgeline.weights.disk import free_text


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file of a repository, as the hub lists it."""

    name: str
    size_bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a repository holds at one revision."""

    revision: str | None
    """The exact revision, where the hub says it, so that all files come from the same one."""
    files: tuple[HubFile, ...]


class Hub(Protocol):
    """A place that repositories of models can be fetched from."""

    scheme: str
    """What an argument begins with."""

    def listing(self, repository: str, revision: str | None) -> Listing:
        """What the repository holds; DownloadError if it cannot be asked."""

    def fetch(
        self, repository: str, revision: str | None, names: Sequence[str], *, may_show_progress: bool, force: bool
    ) -> Path:
        """The local folder that holds these files, fetched where they are missing, or all of them with `force`."""

    def local_folder(self, repository: str, revision: str | None) -> Path | None:
        """The folder with what was fetched before, without asking the hub."""

    def cache(self) -> Path:
        """Where the client keeps files, for messages and for the room on that disk."""


def hub_of(scheme: str) -> Hub:
    """The hub that arguments of this scheme name; UserError with the command that installs its client if need be."""
    return HuggingFaceHub() if scheme == HuggingFaceHub.scheme else ModelScopeHub()


def _client(name: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"{extra}: models are fetched with the package {name.split('.')[0]}, which is not installed",
            hint=f"pip install 'ridgeline[{extra}]'",
        ) from None


@contextmanager
def _translated(what: str, cache: Path, *, hint: str) -> Iterator[None]:
    """Turn a client's exceptions into ours; `hint` says how to move its cache.

    They differ between versions of the clients, so all are caught. Network errors are OSErrors as well; those of the
    disk are about a file, or say that it is full.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            raise CapacityError(f"{cache}: the disk is full ({free_text(cache)})", hint=hint) from error
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise UserError(f"{cache}: cannot be written: {error.strerror}", hint=hint) from error
        raise DownloadError(f"{what}: {_reason(error)}", hint=_network_hint(error)) from error


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[0][:300] if lines else 'no reason given'} ({type(error).__name__})"


def _network_hint(error: BaseException) -> str:
    kind = type(error).__name__
    if "Gated" in kind:
        return "accept the model's conditions on its page, then set HF_TOKEN to your token"
    if "NotFound" in kind:
        return "check the spelling; a private repository needs a token"
    return "check the network, proxies and the hub's own settings, or give a local file or folder"


class HuggingFaceHub:
    """huggingface.co, or what HF_ENDPOINT names, through huggingface_hub."""

    scheme = "hf"

    def __init__(self) -> None:
        self._library: Any = _client("huggingface_hub", "hf")
        self._constants: Any = _client("huggingface_hub.constants", "hf")
        self._bars: Any = _client("huggingface_hub.utils", "hf")

    def cache(self) -> Path:
        """HF_HUB_CACHE, as the client reads it."""
        return Path(self._constants.HF_HUB_CACHE)

    def listing(self, repository: str, revision: str | None) -> Listing:
        """The files with their sizes, and checksums of the large ones."""
        with _translated(f"hf:{repository}", self.cache(), hint="set HF_HOME to a folder that may be written"):
            found = self._library.HfApi().model_info(repository, revision=revision, files_metadata=True)
        files = [
            HubFile(name=entry.rfilename, size_bytes=entry.size, sha256=_lfs_sha256(entry.lfs))
            for entry in found.siblings or ()
        ]
        return Listing(revision=found.sha, files=tuple(files))

    def fetch(
        self, repository: str, revision: str | None, names: Sequence[str], *, may_show_progress: bool, force: bool
    ) -> Path:
        """The snapshot's folder."""
        hint = "set HF_HOME to a folder that may be written and has room"
        with _translated(f"hf:{repository}", self.cache(), hint=hint), self._progress(is_shown=may_show_progress):
            return Path(
                self._library.snapshot_download(
                    repository, revision=revision, allow_patterns=_exact(names), force_download=force
                )
            )

    def local_folder(self, repository: str, revision: str | None) -> Path | None:
        """The snapshot's folder, if a snapshot is there."""
        try:
            return Path(self._library.snapshot_download(repository, revision=revision, local_files_only=True))
        except Exception:  # each version of the client has its own exception for "not there"
            return None

    @contextmanager
    def _progress(self, *, is_shown: bool) -> Iterator[None]:
        bars = self._bars
        was_disabled = bars.are_progress_bars_disabled()
        if not is_shown:
            bars.disable_progress_bars()
        try:
            yield
        finally:
            if not is_shown and not was_disabled:
                bars.enable_progress_bars()


def _lfs_sha256(lfs: Any) -> str | None:
    """The checksum in a listing's entry: an object in newer versions of the client, a dict in older ones."""
    if lfs is None:
        return None
    found = lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)
    return str(found) if found else None


def _exact(names: Sequence[str]) -> list[str]:
    """Patterns that match just these names: the clients take shell patterns, in which [ * ? mean more."""
    return ["".join(f"[{letter}]" if letter in "[*?" else letter for letter in name) for name in names]


class ModelScopeHub:
    """modelscope.cn, through modelscope."""

    scheme = "modelscope"

    def __init__(self) -> None:
        self._api: Any = _client("modelscope.hub.api", "modelscope")
        self._snapshot: Any = _client("modelscope.hub.snapshot_download", "modelscope")

    def cache(self) -> Path:
        """MODELSCOPE_CACHE, as the client reads it."""
        return Path(os.environ.get("MODELSCOPE_CACHE", "~/.cache/modelscope")).expanduser()

    def listing(self, repository: str, revision: str | None) -> Listing:
        """The files with their sizes and, where the hub gives them, checksums."""
        with _translated(f"modelscope:{repository}", self.cache(), hint="set MODELSCOPE_CACHE"):
            found = self._api.HubApi().get_model_files(repository, revision=revision, recursive=True)
        files = [
            HubFile(name=entry["Path"], size_bytes=entry.get("Size"), sha256=entry.get("Sha256") or None)
            for entry in found
            if entry.get("Type") != "tree"
        ]
        return Listing(revision=revision, files=tuple(files))

    def fetch(
        self, repository: str, revision: str | None, names: Sequence[str], *, may_show_progress: bool, force: bool
    ) -> Path:
        """The model's folder. The client draws its own bars and has no switch for them."""
        del may_show_progress
        # Nor has it a switch to fetch again; but what is not there is fetched.
        if force and (folder := self.local_folder(repository, revision)):
            for name in names:
                (folder / name).unlink(missing_ok=True)
        hint = "set MODELSCOPE_CACHE to a folder that may be written and has room"
        with _translated(f"modelscope:{repository}", self.cache(), hint=hint):
            return Path(self._snapshot.snapshot_download(repository, revision=revision, allow_patterns=_exact(names)))

    def local_folder(self, repository: str, revision: str | None) -> Path | None:
        """The model's folder, if it is there."""
        try:
            return Path(self._snapshot.snapshot_download(repository, revision=revision, local_files_only=True))
        except Exception:  # each version of the client has its own exception for "not there"
            return None
