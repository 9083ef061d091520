"""How far a chip's answers are from exact ones: the next-token distributions of a real model over varied text.

    python bench/quality.py MODEL.gguf [--chip cpu] [--kv bf16] [--llama-cpp] [--json bench/results/quality-NAME.json]
    python bench/quality.py MODEL.gguf --tokens IDS.npz --against LOGITS.npy

The exact answers are those of the same dequantised weights in float32: the reference chip's, or `--against` a file that
another program made (logits or log-probabilities, [windows, tokens, vocabulary], for the tokens in `--tokens`). So the
figures say what a chip's arithmetic costs, not what the file's weights lost.

bench/data/varied.txt is cut by section into windows; each is fed as a fresh context, and every position counts:
  top-1        share of positions where the likeliest token is the same
  KL           divergence from the exact distribution, nats a token: mean, 99th percentile, largest
  perplexity   of the text itself, exact and measured
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ridgeline.chips.cpu.machine import cpu_model
from ridgeline.chips.registry import open_chip
from ridgeline.model.load import load_model
from ridgeline.model.trial import Trial
from ridgeline.text.open import open_text
from ridgeline.version import VERSION
from ridgeline.weights.checkpoint import Checkpoint
from ridgeline.weights.open import open_checkpoint

BENCH = Path(__file__).parent
ROWS_AT_ONCE = 64
"""Rows of logits that are compared in float64 at a time."""

Logits = npt.NDArray[np.floating[Any]]
Answer = Callable[[list[int]], Logits]
"""Tokens of a fresh context in, logits of every one of them out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Tokens that are fed as one context."""

    section: str
    token_ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distances:
    """What was found at each position of one or more windows."""

    is_same_top: npt.NDArray[np.bool_]
    divergence: npt.NDArray[np.float64]
    """KL(exact || measured), nats."""
    exact_loss: npt.NDArray[np.float64]
    """Of the token that follows in the text, nats; a position fewer in each window."""
    measured_loss: npt.NDArray[np.float64]

    def summary(self) -> dict[str, float]:
        """The figures of a table row."""
        share = float(self.is_same_top.mean())
        return {
            "positions": len(self.divergence),
            "top1_percent": 100 * share,
            "top1_standard_error_percent": 100 * math.sqrt(share * (1 - share) / len(self.divergence)),
            "mean_kl": float(self.divergence.mean()),
            "median_kl": float(np.median(self.divergence)),
            "p99_kl": float(np.quantile(self.divergence, 0.99)),
            "max_kl": float(self.divergence.max()),
            "perplexity_exact": float(np.exp(self.exact_loss.mean())),
            "perplexity": float(np.exp(self.measured_loss.mean())),
        }


def joined(parts: list[Distances]) -> Distances:
    fields = ("is_same_top", "divergence", "exact_loss", "measured_loss")
    return Distances(**{field: np.concatenate([getattr(part, field) for part in parts]) for field in fields})


def log_probabilities(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def distances(exact_TV: Logits, measured_TV: Logits, token_ids: list[int]) -> Distances:
    """Compare two answers for one window. A vocabulary that one of them pads is cut to the other's."""
    assert len(exact_TV) == len(measured_TV) == len(token_ids), (exact_TV.shape, measured_TV.shape, len(token_ids))
    num_words = min(exact_TV.shape[1], measured_TV.shape[1])
    found: dict[str, list[npt.NDArray[Any]]] = defaultdict(list)
    for start in range(0, len(token_ids), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        exact = log_probabilities(np.asarray(exact_TV[rows, :num_words]))
        measured = log_probabilities(np.asarray(measured_TV[rows, :num_words]))
        found["divergence"].append((np.exp(exact) * (exact - measured)).sum(-1))
        found["is_same_top"].append(exact.argmax(-1) == measured.argmax(-1))
        following = np.array(token_ids[start + 1 : start + 1 + len(exact)], dtype=np.intp)
        found["exact_loss"].append(-exact[np.arange(len(following)), following])
        found["measured_loss"].append(-measured[np.arange(len(following)), following])
    return Distances(**{field: np.concatenate(parts) for field, parts in found.items()})


def sections(text: str) -> Iterator[tuple[str, str]]:
    """(name, text) of each part that a line `=== name ===` opens."""
    name, lines = "", list[str]()
    for line in [*text.splitlines(), "=== end ==="]:
        if line.startswith("=== ") and line.endswith(" ==="):
            if lines:
                yield name, "\n".join(lines).strip()
            name, lines = line.strip("= "), []
        else:
            lines.append(line)


def text_windows(checkpoint: Checkpoint, file: Path, num_tokens: int, num_each: int) -> list[Window]:
    """The first windows of each section, as the model's own tokenizer cuts them."""
    tokenizer, _ = open_text(checkpoint)
    windows = []
    for section, text in sections(file.read_text(encoding="utf-8")):
        token_ids = tokenizer.encode(text)
        for start in range(0, len(token_ids), num_tokens)[:num_each]:
            windows.append(Window(section=section, token_ids=token_ids[start : start + num_tokens]))
    return windows


def file_windows(file: Path) -> list[Window]:
    """Windows from a file of token ids: [windows, tokens], alone or with `labels` beside `token_ids`."""
    with_labels = np.load(file)
    if isinstance(with_labels, np.ndarray):
        return [Window(section=str(row), token_ids=ids.tolist()) for row, ids in enumerate(with_labels)]
    token_ids = with_labels["token_ids"]
    labels = with_labels["labels"] if "labels" in with_labels else range(len(token_ids))
    return [Window(section=str(label), token_ids=ids.tolist()) for label, ids in zip(labels, token_ids, strict=True)]


def chip_answer(checkpoint: Checkpoint, name: str, kv_format: Any, options: argparse.Namespace) -> Answer:
    """A chip's, whole windows in one step."""
    chip = open_chip(name, cache_folder=options.cache, num_threads=options.threads)
    trial = Trial(chip, load_model(checkpoint, chip), max_tokens=options.window, kv_format=kv_format)

    def answer(token_ids: list[int]) -> Logits:
        trial.forget(0)
        return trial.feed({0: token_ids})[0]

    return answer


def llama_cpp_answer(options: argparse.Namespace) -> Answer:
    """llama.cpp's, through llama-cpp-python where it is installed; with flash attention, its default elsewhere."""
    if importlib.util.find_spec("llama_cpp") is None:
        sys.exit("--llama-cpp needs llama-cpp-python: pip install llama-cpp-python")
    import llama_cpp

    model = llama_cpp.Llama(
        model_path=str(options.model),
        n_ctx=options.window,
        n_batch=options.window,
        n_threads=options.threads,
        n_threads_batch=options.threads,
        logits_all=True,
        flash_attn=True,
        verbose=False,
    )

    def answer(token_ids: list[int]) -> Logits:
        model.reset()
        model.eval(token_ids)
        return np.array(model.scores[: len(token_ids)], dtype=np.float32)

    return answer


def compare(windows: list[Window], exact: Answer, answers: dict[str, Answer]) -> dict[str, dict[str, Any]]:
    """Each program's distances from the exact answers: all windows together, and by section."""
    found: dict[str, dict[str, list[Distances]]] = {name: defaultdict(list) for name in answers}
    for number, window in enumerate(windows, start=1):
        before = time.perf_counter()
        exact_TV = exact(window.token_ids)
        for name, answer in answers.items():
            measured_TV = answer(window.token_ids)
            if not np.isfinite(measured_TV).all():
                sys.exit(f"{name}: logits of window {number} ({window.section}) are not all finite numbers")
            found[name][window.section].append(distances(exact_TV, measured_TV, window.token_ids))
        seconds = time.perf_counter() - before
        print(f"{number}/{len(windows)} {window.section}, {len(window.token_ids)} tokens, {seconds:.1f} s", flush=True)
    return {
        name: {
            "all": joined([part for parts in by_section.values() for part in parts]).summary(),
            "sections": {section: joined(parts).summary() for section, parts in by_section.items()},
        }
        for name, by_section in found.items()
    }


def table(results: dict[str, dict[str, Any]]) -> None:
    for name, result in results.items():
        print(f"\n{name:16} positions   top-1 %   mean KL    p99 KL    max KL  perplexity (exact)")
        for section, row in [*result["sections"].items(), ("all", result["all"])]:
            figures = f"{row['positions']:9} {row['top1_percent']:9.2f} {row['mean_kl']:9.6f} {row['p99_kl']:9.5f}"
            perplexity = f"{row['perplexity']:11.4f} ({row['perplexity_exact']:.4f})"
            print(f"{section:16} {figures} {row['max_kl']:9.4f} {perplexity}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--chip", default="cpu")
    parser.add_argument("--kv", default="bf16", choices=("f32", "bf16", "int8"))
    parser.add_argument("--threads", type=int, help="of the chip and of llama.cpp")
    parser.add_argument("--cache", type=Path, help="use weights packed earlier, kept in this folder, and keep them")
    parser.add_argument("--text", type=Path, default=BENCH / "data" / "varied.txt")
    parser.add_argument("--window", type=int, default=320, help="tokens of a window")
    parser.add_argument("--windows-per-section", type=int, default=1)
    parser.add_argument("--tokens", type=Path, help="take windows from this file of token ids instead")
    parser.add_argument("--against", type=Path, help="exact logits for --tokens, instead of the reference chip's")
    parser.add_argument("--llama-cpp", action="store_true", help="measure llama-cpp-python on the same windows")
    parser.add_argument("--json", type=Path, help="where the figures are kept as JSON")
    options = parser.parse_args()
    if options.against and not options.tokens:
        parser.error("--against needs --tokens, the token ids that its logits belong to")
    return options


def main() -> None:
    options = parsed()
    checkpoint = open_checkpoint(options.model)
    if options.tokens:
        windows = file_windows(options.tokens)
        options.window = max(len(window.token_ids) for window in windows)
    else:
        windows = text_windows(checkpoint, options.text, options.window, options.windows_per_section)
    if options.against:
        kept = iter(np.load(options.against, mmap_mode="r"))
        exact: Answer = lambda _: next(kept)  # noqa: E731 - the windows are asked for in the file's order
    else:
        exact = chip_answer(checkpoint, "reference", "f32", options)
    answers = {options.chip: chip_answer(checkpoint, options.chip, options.kv, options)}
    if options.llama_cpp:
        answers["llama.cpp"] = llama_cpp_answer(options)
    results = compare(windows, exact, answers)
    table(results)
    if options.json:
        facts = {
            "ridgeline": VERSION,
            "model": options.model.name,
            "fingerprint": checkpoint.fingerprint(),
            "windows": [len(window.token_ids) for window in windows],
            "text": (options.tokens or options.text).name,
            "exact": options.against.name if options.against else "reference chip, float32",
            "kv": options.kv,
            "machine": {"cpu": cpu_model(), "cpus": os.cpu_count(), "system": platform.platform()},
            "python": platform.python_version(),
            "numpy": np.__version__,
            "date": time.strftime("%Y-%m-%d"),
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"facts": facts, "results": results}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
