"""Opening whatever is at a path: the right reader, or an error that says what was found."""

import os

import pytest

from ridgeline.errors import ModelFileError
from ridgeline.weights.open import open_checkpoint
from ridgeline.weights.write import write_gguf, write_safetensors
from tests.pure.weights.test_gguf import tensor_of

METADATA = {"general.architecture": "llama"}
TENSORS = [tensor_of("a", (2, 32), "F32")]


def test_a_folder_with_one_gguf_is_that_model(tmp_path):
    write_gguf(tmp_path / "m.gguf", METADATA, TENSORS)
    (tmp_path / "README.md").write_text("read me")
    assert open_checkpoint(tmp_path).names == ("a",)


def test_a_folder_with_several_ggufs_lists_them(tmp_path):
    for name in ("one.gguf", "two.gguf"):
        write_gguf(tmp_path / name, METADATA, TENSORS)
    with pytest.raises(ModelFileError, match=r"2 GGUF models:\n.*one\.gguf\n.*two\.gguf"):
        open_checkpoint(tmp_path)


FOREIGN = {
    "empty": (b"", "the file is empty"),
    "page": (b"\n<!DOCTYPE html><html>404</html>", "web page"),
    "error page": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "web page"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "pointer of Git LFS"),
    "zip": (b"PK\x03\x04rest", "pickle or an archive"),
    "pickle": (b"\x80\x02}q\x00.", "pickle or an archive"),
    "gzip": (b"\x1f\x8b\x08rest", "compressed"),
    "text": (b"hello, world", "magic: is b'hell'"),
    "old llama.cpp": (b"tjgg\x03\x00\x00\x00", "format from before GGUF"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_named(tmp_path, name):
    content, message = FOREIGN[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=message) as caught:
        open_checkpoint(path)
    assert str(path) in caught.value.message and caught.value.hint
    with pytest.raises(ModelFileError, match=message):
        open_checkpoint(tmp_path)


def test_foreign_files_among_safetensors_are_named(tmp_path):
    write_safetensors(tmp_path, {}, [TENSORS])
    (tmp_path / "model.safetensors").write_bytes(FOREIGN["LFS pointer"][0])
    with pytest.raises(ModelFileError, match=r"model\.safetensors: the file is a pointer of Git LFS"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(ModelFileError, match=f"only as pickles .{name}") as caught:
        open_checkpoint(tmp_path)
    assert "safetensors" in caught.value.hint
    with pytest.raises(ModelFileError, match="pickle or an archive"):
        open_checkpoint(tmp_path / name)


def test_a_folder_without_weights_says_what_it_holds(tmp_path):
    with pytest.raises(ModelFileError, match=r"holds no weights .found no files"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelFileError, match=r"holds no weights .found config\.json"):
        open_checkpoint(tmp_path)


def test_safetensors_without_configuration(tmp_path):
    write_safetensors(tmp_path, {}, [TENSORS])
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelFileError, match=r"holds safetensors but no config\.json"):
        open_checkpoint(tmp_path)
    with pytest.raises(ModelFileError, match=r"model\.safetensors: there is no config\.json beside it"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(ModelFileError, match=r"m\.gguf: is neither a file nor a folder"):
        open_checkpoint(tmp_path / "m.gguf")
    with pytest.raises(ModelFileError, match="holds no weights"):
        open_checkpoint(tmp_path)


def test_what_does_not_exist_or_may_not_be_read(tmp_path):
    with pytest.raises(ModelFileError, match="no such file or folder"):
        open_checkpoint(tmp_path / "nothing.gguf")
    path = tmp_path / "m.gguf"
    write_gguf(path, METADATA, TENSORS)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    with pytest.raises(ModelFileError, match="cannot be read"):
        open_checkpoint(path)
