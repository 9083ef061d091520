"""A model of random weights on a GPU: prefill and decode, against transformers on the same weights and GPU, in turns.

    python bench/gpu.py [--shape qwen2.5-1.5b] [--rounds 5] [--json bench/results/gpu-NAME.json]

Needs torch, transformers and a GPU. The weights are random, bfloat16, in the shape of a published model; they are
written to a folder and read by both. Both keep keys and values as bfloat16. Each figure of ours is a whole step as the
engine calls it: indices to the GPU, the decoder, logits back to the host. Those of transformers leave the likeliest
token on the GPU, and wait for the GPU once a figure.

A share is what the step must move or compute, as the decoder itself counts it, over what it took, against the read
bandwidth or the bf16 product measured in the same round. Errors are those of logits against transformers in float32.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from ridgeline.chips.torch import roofline
from ridgeline.chips.torch.chip import TorchChip
from ridgeline.engine.open import step_cost
from ridgeline.model.load import load_plan, plan_model
from ridgeline.model.trial import Trial
from ridgeline.ops.cost import StepCost
from ridgeline.ops.step import SpanShape, StepShape
from ridgeline.version import VERSION
from ridgeline.weights.open import open_checkpoint

# The published configurations of Qwen2.5 0.5B, 1.5B and 7B, but for the tokens that end a text.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
                     "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "qwen2.5-1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
                     "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "qwen2.5-7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
                   "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
    "tiny": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": True},
}  # fmt: skip
CONTEXT_TOKENS = 4096
PREFILLS = (512, 2048)
BATCHES = (1, 8, 64)
DECODE_CONTEXT = 512
DECODE_STEPS = 32
CHECKED_TOKENS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-1.5b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peer = made_model(SHAPES[options.shape], folder, options.device)
        chip = TorchChip(options.device)
        begin = time.perf_counter()
        checkpoint = open_checkpoint(folder)
        plan = plan_model(checkpoint, context_tokens=CONTEXT_TOKENS)
        trial = Trial(
            chip, load_plan(plan, chip), num_sequences=max(BATCHES), max_tokens=max(PREFILLS) + 64, kv_format="bf16"
        )
        open_seconds = time.perf_counter() - begin
        checkpoint.close()
    report: dict[str, Any] = {
        "program": f"ridgeline {VERSION}",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"gpu": chip.facts().description, "cpu": cpu_model(), "system": platform.platform(),
                    "torch": torch.__version__, "transformers": transformers.__version__},
        "shape": options.shape,
        "open_seconds": open_seconds,
        "errors": errors(trial, peer, options.device),
        "rounds": [],
    }  # fmt: skip
    print(json.dumps({key: value for key, value in report.items() if key != "rounds"}), flush=True)
    cost = step_cost(plan, "bf16")
    for number in range(options.rounds + 1):
        measured = one_round(trial, peer, cost, chip.device, swapped=number % 2 == 1)
        if number > 0:  # the first round compiles kernels and records graphs
            report["rounds"].append(measured)
    print(shown(report["rounds"]))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def cpu_model() -> str:
    """Launching kernels one by one takes as long as this takes."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(names))


def made_model(shape: dict[str, Any], folder: Path, device: str) -> Any:
    """Transformers' model with random weights on the device, and its files in the folder."""
    config = transformers.Qwen2Config(
        **shape, max_position_embeddings=CONTEXT_TOKENS, rms_norm_eps=1e-6, use_sliding_window=False
    )
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0.0, 0.2)
    model.eval()
    model.save_pretrained(folder)
    return model


def errors(trial: Trial, peer: Any, device: str) -> dict[str, float]:
    """Root mean square difference of logits over their size: ours and the peer's own, against the peer in float32."""
    token_ids = random_tokens(CHECKED_TOKENS, peer.config.vocab_size)
    ours = np.concatenate(
        [trial.feed({0: token_ids[start:end]})[0] for start, end in ((0, 150), (150, 199), (199, 200))]
    )
    trial.forget(0)
    tokens = torch.tensor([token_ids], device=device)
    with torch.inference_mode():
        theirs = peer(tokens).logits[0].float().cpu().numpy()
        exact = peer.float()(tokens).logits[0].cpu().numpy()
    # Rounding back is exact: these are the values that it had.
    peer.to(torch.bfloat16)

    def error(logits: np.ndarray) -> float:
        return float(np.sqrt(np.mean((logits - exact) ** 2) / np.mean(exact**2)))

    return {"ridgeline": error(ours), "transformers bf16": error(theirs)}


def random_tokens(count: int, vocabulary_size: int) -> list[int]:
    found: list[int] = np.random.default_rng(count).integers(0, vocabulary_size, count).tolist()
    return found


def one_round(trial: Trial, peer: Any, cost: StepCost, device: torch.device, *, swapped: bool) -> list[dict[str, Any]]:
    """Every case, ours and theirs in turns, with the roofline measured before."""
    with torch.inference_mode():
        bandwidth = roofline.read_bytes_per_second(device) if device.type == "cuda" else 1e10
        peak = roofline.product_operations_per_second(device, torch.bfloat16) if device.type == "cuda" else 1e11
    vocabulary_size = peer.config.vocab_size
    figures = []
    for num_tokens in PREFILLS:
        tokens = random_tokens(num_tokens, vocabulary_size)
        shape = StepShape(spans=(SpanShape(num_tokens=num_tokens, context_tokens=num_tokens),), num_logit_rows=1)
        runs = [lambda tokens=tokens: our_prefill(trial, tokens), lambda tokens=tokens: peer_prefill(peer, tokens)]
        ours, theirs = in_turns(runs, swapped)
        figures.append(
            {"case": f"prefill {num_tokens}", "tokens": num_tokens, "seconds": ours, "peer_seconds": theirs,
             "share_of_bf16_peak": cost.operations(shape) / ours / peak,
             "share_of_bandwidth": cost.bytes(shape) / ours / bandwidth}
        )  # fmt: skip
    for batch in BATCHES:
        span = SpanShape(num_tokens=1, context_tokens=DECODE_CONTEXT + DECODE_STEPS // 2)
        shape = StepShape(spans=(span,) * batch, num_logit_rows=batch)
        tokens = random_tokens(DECODE_CONTEXT, vocabulary_size)
        runs = [
            lambda tokens=tokens, batch=batch: our_decode(trial, tokens, batch),
            lambda tokens=tokens, batch=batch: peer_decode(peer, tokens, batch),
        ]
        ours, theirs = in_turns(runs, swapped)
        figures.append(
            {"case": f"decode {batch} @{DECODE_CONTEXT}", "tokens": batch, "seconds": ours, "peer_seconds": theirs,
             "share_of_bf16_peak": cost.operations(shape) / ours / peak,
             "share_of_bandwidth": cost.bytes(shape) / ours / bandwidth}
        )  # fmt: skip
    for figure in figures:
        figure["read_bytes_per_second"], figure["bf16_operations_per_second"] = bandwidth, peak
    return figures


def in_turns(runs: Sequence[Callable[[], float]], swapped: bool) -> list[float]:
    """Seconds of each; which is first changes from round to round."""
    order = (1, 0) if swapped else (0, 1)
    seconds = {place: runs[place]() for place in order}
    return [seconds[0], seconds[1]]


def our_prefill(trial: Trial, tokens: list[int]) -> float:
    seconds = []
    for _ in range(3):
        trial.forget(0)
        trial.feed({0: tokens}, last_only=True)
        seconds.append(trial.seconds())
    trial.forget(0)
    return statistics.median(seconds)


def our_decode(trial: Trial, tokens: list[int], batch: int) -> float:
    for sequence in range(batch):
        trial.forget(sequence)
        trial.feed({sequence: tokens}, last_only=True)
    seconds = []
    for number in range(DECODE_STEPS):
        trial.feed({sequence: [tokens[number]] for sequence in range(batch)}, last_only=True)
        seconds.append(trial.seconds())
    for sequence in range(batch):
        trial.forget(sequence)
    return statistics.median(seconds)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peer_prefill(peer: Any, tokens: list[int]) -> float:
    ids = torch.tensor([tokens], device=peer.device)
    seconds = []
    with torch.inference_mode():
        for _ in range(3):
            synchronize()
            begin = time.perf_counter()
            peer(ids, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(dim=-1)
            synchronize()
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def peer_decode(peer: Any, tokens: list[int], batch: int) -> float:
    ids = torch.tensor([tokens] * batch, device=peer.device)
    with torch.inference_mode():
        answer = peer(ids, use_cache=True, logits_to_keep=1)
        cache, chosen = answer.past_key_values, answer.logits[:, -1:].argmax(dim=-1)
        synchronize()
        begin = time.perf_counter()
        for _ in range(DECODE_STEPS):
            answer = peer(chosen, past_key_values=cache, use_cache=True)
            cache, chosen = answer.past_key_values, answer.logits[:, -1:].argmax(dim=-1)
        synchronize()
    return (time.perf_counter() - begin) / DECODE_STEPS


def shown(rounds: Sequence[Sequence[dict[str, Any]]]) -> str:
    """Medians of all rounds, and the least and the most of the ratio."""
    lines = ["case | tokens/s | of bf16 peak | of bandwidth | transformers tokens/s | ratio [least to most]"]
    for case in zip(*rounds, strict=True):
        ratios = [figure["peer_seconds"] / figure["seconds"] for figure in case]
        ours = statistics.median(figure["tokens"] / figure["seconds"] for figure in case)
        theirs = statistics.median(figure["tokens"] / figure["peer_seconds"] for figure in case)
        peak = statistics.median(figure["share_of_bf16_peak"] for figure in case)
        bandwidth = statistics.median(figure["share_of_bandwidth"] for figure in case)
        lines.append(
            f"{case[0]['case']} | {ours:,.0f} | {peak:.1%} | {bandwidth:.1%} | {theirs:,.0f} | "
            f"{statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
