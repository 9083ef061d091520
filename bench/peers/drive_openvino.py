"""OpenVINO GenAI on the CPU, driven by `bench/peers.py` through its continuous batching pipeline, step by step."""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
import protocol

CACHE_GIGABYTES = 2
STEP_TOKENS = 2048


class OpenvinoAdapter:
    """Holds the pipeline, and for scoring the plain model, which is opened when it is first needed."""

    def __init__(self) -> None:
        self._numbers = count()

    def load(self, *, model: str, num_threads: int, context_tokens: int, num_sequences: int) -> None:
        self._folder, self._num_threads = Path(model), num_threads
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GIGABYTES
        scheduler.max_num_batched_tokens = STEP_TOKENS
        scheduler.max_num_seqs = num_sequences
        scheduler.enable_prefix_caching = True
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": num_threads}
        )

    def generate(self, prompts: list[list[int]], new_tokens: int) -> tuple[float, float | None]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new_tokens, True, False
        first_seconds = None
        begin = time.perf_counter()
        handles = [
            self._pipeline.add_request(next(self._numbers), openvino.Tensor(np.array([prompt], dtype=np.int64)), config)
            for prompt in prompts
        ]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            if len(prompts) == 1 and first_seconds is None and handles[0].can_read():
                first_seconds = time.perf_counter() - begin
        return time.perf_counter() - begin, first_seconds

    def loss(self, windows: list[list[int]]) -> tuple[float, int]:
        core = openvino.Core()
        compiled = core.compile_model(
            self._folder / "openvino_model.xml", "CPU", {"INFERENCE_NUM_THREADS": self._num_threads}
        )
        request = compiled.create_infer_request()
        nats, tokens = 0.0, 0
        for window in windows:
            request.reset_state()
            half = len(window) // 2
            kept_row = None
            for start, end in ((0, half), (half, len(window))):
                fed = {
                    "input_ids": np.array([window[start:end]], dtype=np.int64),
                    "attention_mask": np.ones((1, end), dtype=np.int64),
                    "position_ids": np.arange(start, end, dtype=np.int64)[None],
                    "beam_idx": np.zeros(1, dtype=np.int32),
                }
                names = {name for port in compiled.inputs for name in port.names}
                logits_TV = request.infer({name: value for name, value in fed.items() if name in names})["logits"][0]
                if start == half:
                    rows = [kept_row, *logits_TV[:-1]]
                    nats += sum(_loss(row, token) for row, token in zip(rows, window[half:], strict=True))
                    tokens += len(rows)
                kept_row = logits_TV[-1].copy()
        return float(nats), tokens


def _loss(logits_V: Any, token: int) -> float:
    exact_V = np.asarray(logits_V, dtype=np.float64)
    largest = exact_V.max()
    return float(largest + np.log(np.exp(exact_V - largest).sum()) - exact_V[token])


if __name__ == "__main__":
    protocol.serve(OpenvinoAdapter())
