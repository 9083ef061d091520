"""Which files of a hub repository make up the model that was asked for. Pure: names in, names out."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ridgeline.errors import DownloadError
from ridgeline.weights.gguf import PART_NAME

PREFERRED = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q5_K_M", "Q8_0")
"""What is taken of a repository that holds only GGUF files when nothing was said: a good 4-bit one comes first."""

BESIDE_THE_WEIGHTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
)

_NO_MODELS = re.compile(r"(^|[-_.])(mmproj|imatrix|adapter|lora)", re.IGNORECASE)
_PICKLE = re.compile(r"\.(bin|pt|pth|ckpt)$")
_QUANT = re.compile(r"(?<![A-Z0-9])(I?Q\d\w*|MXFP4\w*|BF16|F16|F32|FP16|FP32)(?![A-Z0-9])", re.IGNORECASE)


def chosen_files(names: Sequence[str], selection: str | None, repository: str) -> list[str]:
    """The names to fetch; the first is the model's own file, or a file of the folder that is the model.

    Args:
        names: of all files in the repository.
        selection: a file's name, the name of a quantisation such as Q4_K_M, or nothing.
        repository: for messages.

    Raises DownloadError that says what there is to choose from.
    """
    safe = [name for name in names if _stays_inside(name)]
    models = _gguf_models(safe)
    if selection is not None:
        return _selected(safe, models, selection, repository)
    weights = _safetensors(safe)
    if weights and "config.json" in safe:
        return ["config.json", *weights, *(name for name in BESIDE_THE_WEIGHTS[1:] if name in safe)]
    if len(models) == 1:
        return next(iter(models.values()))
    for quant in PREFERRED:
        matching = [files for files in models.values() if _has_quant(files[0], quant)]
        if len(matching) == 1:
            return matching[0]
    if models:
        raise DownloadError(
            f"{repository}: holds {len(models)} GGUF models: {_listed(models)}",
            hint=f"say which, for example: {repository}:{next(iter(models))}",
        )
    if any(_PICKLE.search(name) for name in safe):
        raise DownloadError(
            f"{repository}: holds weights only as pickles, which can run code and are not opened",
            hint="look for a repository with safetensors or GGUF files of the same model",
        )
    raise DownloadError(f"{repository}: holds neither safetensors with a config.json nor GGUF files")


def _stays_inside(name: str) -> bool:
    parts = name.split("/")
    return bool(name) and not set(name) & set("\\:\0") and not any(part in ("", ".", "..") for part in parts)


def _selected(names: Sequence[str], models: dict[str, list[str]], selection: str, repository: str) -> list[str]:
    for files in models.values():
        if selection in files:
            return files
    matching = [files for files in models.values() if _has_quant(files[0], selection)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        found = ", ".join(files[0] for files in matching[:6])
        raise DownloadError(
            f"{repository}: {selection}: {len(matching)} files are of that quantisation: {found}",
            hint=f"give the file's name, for example: {repository}:{matching[0][0]}",
        )
    if not models:
        raise DownloadError(
            f"{repository}: {selection}: there are no GGUF files to choose from",
            hint=f"give the repository alone: {repository}" if _safetensors(names) else "",
        )
    quants = sorted({match[1].upper() for name in models if (match := _last_quant(name))})
    raise DownloadError(
        f"{repository}: {selection}: there is no such file or quantisation; "
        f"there are: {', '.join(quants) or _listed(models)}"
    )


def _listed(models: dict[str, list[str]]) -> str:
    return ", ".join(list(models)[:6]) + (", ..." if len(models) > 6 else "")


def _last_quant(name: str) -> re.Match[str] | None:
    found = None
    for match in _QUANT.finditer(name):
        found = match
    return found


def _has_quant(name: str, quant: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(quant)}(?![A-Za-z0-9_])", name, re.IGNORECASE) is not None


def _gguf_models(names: Sequence[str]) -> dict[str, list[str]]:
    """The GGUF models among the names, each by its first file, with all its parts in order."""
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        file_name = name.rpartition("/")[2]
        if not name.endswith(".gguf") or _NO_MODELS.search(file_name):
            continue
        match = PART_NAME.fullmatch(file_name)
        if match is None or int(match["number"]) == 1:
            models[name] = [name]
        else:
            first = f"{name.removesuffix(file_name)}{match['stem']}-00001-of-{match['count']}.gguf"
            models.setdefault(first, [first]).append(name)
    return models


def _safetensors(names: Sequence[str]) -> list[str]:
    """The safetensors files that are the model: the one, or the numbered shards and their index."""
    top = [name for name in sorted(names) if "/" not in name]
    if "model.safetensors.index.json" in top:
        shards = [name for name in top if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
        if shards:
            return ["model.safetensors.index.json", *shards]
    if "model.safetensors" in top:
        return ["model.safetensors"]
    weights = [name for name in top if name.endswith(".safetensors") and not _NO_MODELS.search(name)]
    return weights if len(weights) == 1 else []
