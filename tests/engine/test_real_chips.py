"""The laws of determinism on chips that compute: tokens and the bits of log-probabilities, whatever else runs."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pytest

from ridgeline.chips.registry import open_chip
from ridgeline.engine.engine import Engine
from ridgeline.engine.open import open_engine
from ridgeline.engine.settings import EngineSettings
from ridgeline.engine.sizes import logits_bytes
from ridgeline.model.load import page_layout, plan_model
from ridgeline.ops.step import StepLimits
from ridgeline.quant.formats import BY_NAME
from ridgeline.request import FinishReason, Request, SamplingParams
from ridgeline.weights.open import open_checkpoint
from tests.tiny_models import write_tiny_gguf

HAS_CPU = importlib.util.find_spec("ridgeline.chips.cpu._native") is not None
NEEDS_CPU = pytest.mark.skipif(not HAS_CPU, reason="the native kernels are not built")
CONTEXT_TOKENS = 512


@dataclass(frozen=True)
class Case:
    chip: str
    num_threads: int | None
    kv_format: str
    format_name: str = "F32"

    def __str__(self) -> str:
        return f"{self.chip}-{self.num_threads}-{self.kv_format}-{self.format_name}"


CASES = [
    Case("reference", None, "f32"),
    pytest.param(Case("cpu", 1, "bf16"), marks=NEEDS_CPU),
    pytest.param(Case("cpu", 2, "bf16"), marks=NEEDS_CPU),
    pytest.param(Case("cpu", 1, "int8"), marks=NEEDS_CPU),
    pytest.param(Case("cpu", 2, "int8", "Q8_0"), marks=NEEDS_CPU),
    pytest.param(Case("cpu", 2, "bf16", "Q4_1"), marks=NEEDS_CPU),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tiny")


def opened(
    folder: Path,
    case: Case,
    *,
    num_pages: int = 64,
    max_tokens: int = 600,
    max_sequences: int = 8,
    spare_rows: int = 0,
    **options: object,
) -> Engine:
    path = folder / f"{case.format_name}.gguf"
    if not path.exists():
        write_tiny_gguf(path, entry=BY_NAME[case.format_name])
    limits = StepLimits(
        max_tokens=max_tokens,
        max_sequences=max_sequences,
        max_logit_rows=max_sequences + spare_rows,
        max_pages_per_sequence=CONTEXT_TOKENS // 64,
    )
    checkpoint = open_checkpoint(path)
    plan = plan_model(checkpoint, context_tokens=CONTEXT_TOKENS)
    chip = open_chip(case.chip, cache_folder=folder, num_threads=case.num_threads)
    logits = logits_bytes(limits.max_logit_rows, plan.spec.vocabulary_size)
    memory_bytes = plan.weight_bytes + logits + num_pages * chip.page_bytes(page_layout(plan.spec, case.kv_format))
    checkpoint.close()
    settings = EngineSettings(
        model=str(path),
        context_tokens=min(CONTEXT_TOKENS, num_pages * 64),
        memory_bytes=memory_bytes,
        kv_format=case.kv_format,
        cache_folder=str(folder),
        speculation=bool(options),
    )
    engine = open_engine(settings, chip=chip, limits=limits, **options)
    assert engine.model.num_pages == min(num_pages, max_sequences * CONTEXT_TOKENS // 64)
    return engine


BASE = tuple((7 * i * i + 3 * i) % 290 for i in range(170))
WANTED = [
    (BASE, {"temperature": 0.0, "logprobs": 5}),
    (BASE[:64], {"temperature": 1.0, "seed": 5, "logprobs": 2, "prompt_logprobs": 3}),
    ((*BASE[:130], 9, 8, 7), {"temperature": 0.8, "top_p": 0.9, "seed": 1, "logprobs": 0}),
    (BASE[:3], {"temperature": 1.0, "repetition_penalty": 1.2, "seed": 9, "logprobs": 1}),
]


def wanted(number: int, *, max_tokens: int = 40) -> Request:
    prompt, options = WANTED[number]
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True, **options)
    return Request(request_id=f"w{number}", prompt_token_ids=prompt, sampling=sampling, seed=sampling.seed or 0)


def company(number: int) -> Request:
    prompt = BASE[: 20 + 30 * number] if number % 2 else BASE[10 : 30 + 20 * number]
    sampling = SamplingParams(max_tokens=60, temperature=1.0, ignore_eos=True)
    return Request(request_id=f"c{number}", prompt_token_ids=prompt, sampling=sampling, seed=number)


def answer(engine: Engine, request: Request, *, others: int = 0) -> tuple:
    """Tokens, and every log-probability exactly, of one request; `others` run already and beside it."""
    for number in range(others):
        engine.add(company(number))
    for _ in range(4 if others else 0):
        engine.step()
    engine.add(request)
    chunks = []
    while engine.has_work():
        chunks += [chunk for chunk in engine.step() if chunk.request_id == request.request_id]
    engine.check_integrity()
    assert chunks[-1].finish_reason is FinishReason.LENGTH, chunks[-1].error
    prompt_logprobs = [chunk.prompt_logprobs for chunk in chunks if chunk.prompt_logprobs is not None]
    tokens = tuple(token for chunk in chunks for token in chunk.token_ids)
    return tokens, tuple(entry for chunk in chunks for entry in chunk.logprobs), tuple(prompt_logprobs)


@pytest.fixture(params=CASES, ids=str, scope="module")
def case(request) -> Case:
    return request.param


@pytest.fixture(scope="module")
def alone(folder, case) -> list[tuple]:
    """Each answer from an engine of its own, which reads the prompt in one step."""
    answers = []
    for number in range(len(WANTED)):
        engine = opened(folder, case)
        answers.append(answer(engine, wanted(number)))
        engine.close()
    assert all(len(each[0]) == 40 == len(each[1]) for each in answers)
    assert len(answers[1][2][0]) == 64
    return answers


def test_among_batch_mates(folder, case, alone) -> None:
    for number, expected in enumerate(alone):
        engine = opened(folder, case)
        assert answer(engine, wanted(number), others=6) == expected
        engine.close()


@pytest.mark.parametrize("max_tokens", [9, 50, 64])
def test_with_any_chunking(folder, case, alone, max_tokens) -> None:
    engine = opened(folder, case, max_tokens=max_tokens)
    for number, expected in enumerate(alone):
        engine.forget_prefixes()
        assert answer(engine, wanted(number)) == expected
    engine.close()


def test_with_a_prefix_from_the_cache(folder, case, alone) -> None:
    engine = opened(folder, case)
    for _ in range(2):
        for number, expected in enumerate(alone):
            assert answer(engine, wanted(number)) == expected
    assert engine.statistics().num_cached_tokens >= 128
    engine.close()


def test_preempted_and_run_again(folder, case, alone) -> None:
    engine = opened(folder, case, num_pages=8, max_tokens=70)
    for number, expected in enumerate(alone):
        assert answer(engine, wanted(number), others=6) == expected
    assert engine.statistics().num_preemptions > 0
    engine.close()


def test_samples_of_one_request_are_those_of_single_requests(folder, case) -> None:
    engine = opened(folder, case)
    sampling = SamplingParams(max_tokens=12, temperature=1.0, ignore_eos=True, n=3, seed=4)
    engine.add(Request(request_id="n", prompt_token_ids=BASE, sampling=sampling, seed=4))
    together: dict[int, tuple[int, ...]] = {0: (), 1: (), 2: ()}
    while engine.has_work():
        for chunk in engine.step():
            together[chunk.sample_index] += chunk.token_ids
    for index in range(3):
        single = SamplingParams(max_tokens=12, temperature=1.0, ignore_eos=True, seed=4 + index)
        request = Request(request_id=f"s{index}", prompt_token_ids=BASE, sampling=single, seed=4 + index)
        assert answer(engine, request)[0] == together[index]
    engine.close()


@NEEDS_CPU
@pytest.mark.parametrize("kv_format", ["bf16", "int8"])
@pytest.mark.parametrize("format_name", ["F32", "Q8_0", "Q4_1"])
def test_one_thread_and_two_give_the_same_bits(folder, kv_format, format_name) -> None:
    answers = []
    for num_threads in (1, 2):
        engine = opened(folder, Case("cpu", num_threads, kv_format, format_name))
        answers.append([answer(engine, wanted(number), others=number) for number in range(len(WANTED))])
        engine.close()
    assert answers[0] == answers[1]


def test_logprobs_of_a_prompt_are_those_of_the_same_tokens_as_output(folder, case) -> None:
    """What the prompt's rows say of a token is what the sampled row said when it was drawn."""
    engine = opened(folder, case)
    tokens, logprobs, _ = answer(engine, wanted(0))
    sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=5)
    request = Request(request_id="p", prompt_token_ids=(*BASE, *tokens), sampling=sampling, seed=0)
    _, _, (prompt_logprobs,) = answer(engine, request)
    assert prompt_logprobs[len(BASE) :] == logprobs
    engine.close()
