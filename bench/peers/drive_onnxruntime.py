"""ONNX Runtime GenAI on the CPU, driven by `bench/peers.py`: one generator for a batch of equally long prompts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai
import protocol


class OnnxruntimeAdapter:
    """Holds the model."""

    def load(self, *, model: str, num_threads: int, context_tokens: int, num_sequences: int) -> None:
        # The number of threads is told by the model's own configuration only.
        path = Path(model) / "genai_config.json"
        config = json.loads(path.read_text())
        session = config["model"]["decoder"]["session_options"]
        if session.get("intra_op_num_threads") != num_threads:
            session["intra_op_num_threads"] = num_threads
            path.write_text(json.dumps(config, indent=1))
        self._model = onnxruntime_genai.Model(model)

    def generate(self, prompts: list[list[int]], new_tokens: int) -> tuple[float, float | None]:
        length = len(prompts[0]) + new_tokens
        begin = time.perf_counter()
        generator = self._generator(len(prompts), length)
        generator.append_tokens(np.array(prompts, dtype=np.int32))
        generator.generate_next_token()
        first_seconds = time.perf_counter() - begin
        for _ in range(new_tokens - 1):
            generator.generate_next_token()
        return time.perf_counter() - begin, first_seconds

    def loss(self, windows: list[list[int]]) -> tuple[float, int]:
        nats, tokens = 0.0, 0
        for window in windows:
            half = len(window) // 2
            generator = self._generator(1, len(window) + 1)
            generator.append_tokens(np.array([window], dtype=np.int32))
            logits_TV = generator.get_output("logits")[0]
            for row, token in zip(logits_TV[half - 1 : -1], window[half:], strict=True):
                exact_V = np.asarray(row, dtype=np.float64)
                largest = exact_V.max()
                nats += float(largest + np.log(np.exp(exact_V - largest).sum()) - exact_V[token])
                tokens += 1
        return nats, tokens

    def _generator(self, num_prompts: int, length: int) -> Any:
        parameters = onnxruntime_genai.GeneratorParams(self._model)
        parameters.set_search_options(
            batch_size=num_prompts,
            min_length=length,
            max_length=length,
            do_sample=False,
            past_present_share_buffer=True,
        )
        return onnxruntime_genai.Generator(self._model, parameters)


if __name__ == "__main__":
    protocol.serve(OnnxruntimeAdapter())
