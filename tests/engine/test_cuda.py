"""The laws of determinism of the engine on a GPU: the tests of `test_real_chips`, run on `torch:cuda`.

`pytest -k cuda` runs them; they are skipped, with the reason, where there is no GPU.
"""

from __future__ import annotations

import pytest

from tests.engine.test_real_chips import (
    Case,
    alone,
    folder,
    test_among_batch_mates,
    test_logprobs_of_a_prompt_are_those_of_the_same_tokens_as_output,
    test_preempted_and_run_again,
    test_samples_of_one_request_are_those_of_single_requests,
    test_with_a_prefix_from_the_cache,
    test_with_any_chunking,
)
from tests.ops.chips import opened

__all__ = [
    "alone",
    "folder",
    "test_among_batch_mates",
    "test_logprobs_of_a_prompt_are_those_of_the_same_tokens_as_output",
    "test_preempted_and_run_again",
    "test_samples_of_one_request_are_those_of_single_requests",
    "test_with_a_prefix_from_the_cache",
    "test_with_any_chunking",
]

CASES = (Case("torch:cuda", None, "bf16"), Case("torch:cuda", None, "f32"), Case("torch:cuda", None, "bf16", "Q4_1"))


@pytest.fixture(params=CASES, ids=str, scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    opened("torch:cuda", tmp_path_factory.mktemp("cache")).close()
    return request.param
