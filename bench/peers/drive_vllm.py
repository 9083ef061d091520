"""vLLM on the CPU, driven by `bench/peers.py` through its own engine, step by step."""

from __future__ import annotations

import time
from itertools import count

import protocol
from vllm import LLM, SamplingParams, TokensPrompt


class VllmAdapter:
    """Holds the model, opened."""

    def __init__(self) -> None:
        self._numbers = count()

    def load(self, *, model: str, num_threads: int, context_tokens: int, num_sequences: int) -> None:
        self._llm = LLM(
            model,
            dtype="bfloat16",
            max_model_len=context_tokens,
            max_num_seqs=num_sequences,
            max_num_batched_tokens=max(2048, context_tokens),
            seed=0,
        )

    def generate(self, prompts: list[list[int]], new_tokens: int) -> tuple[float, float | None]:
        engine = self._llm.llm_engine
        sampling = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
        first_seconds = None
        begin = time.perf_counter()
        for prompt in prompts:
            engine.add_request(f"bench-{next(self._numbers)}", TokensPrompt(prompt_token_ids=prompt), sampling)
        while engine.has_unfinished_requests():
            answers = engine.step()
            if answers and len(prompts) == 1 and first_seconds is None:
                first_seconds = time.perf_counter() - begin
        return time.perf_counter() - begin, first_seconds

    def loss(self, windows: list[list[int]]) -> tuple[float, int]:
        sampling = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        nats, tokens = 0.0, 0
        for window in windows:
            (answer,) = self._llm.generate([TokensPrompt(prompt_token_ids=window)], sampling, use_tqdm=False)
            half = len(window) // 2
            for token, entry in zip(window[half:], answer.prompt_logprobs[half:], strict=True):
                nats -= entry[token].logprob
                tokens += 1
        return nats, tokens


if __name__ == "__main__":
    protocol.serve(VllmAdapter())
