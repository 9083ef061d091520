"""What the sampler knows of one sample: how its tokens are to be chosen, and which have been."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ridgeline.request.sampling_params import SamplingParams

TokenIds = npt.NDArray[np.int64]


def _ids(token_ids: Iterable[int]) -> TokenIds:
    return np.array(sorted(set(token_ids)), dtype=np.int64)


@dataclass(slots=True, kw_only=True, eq=False)
class SampleState:
    """One sample of a request, as the sampler sees it.

    Holds: counts of its output tokens; `note` changes them. `token_ids` is shared with who appends to it.
    """

    sampling: SamplingParams
    seed: int
    """Of this sample, 64 bits."""
    token_ids: Sequence[int]
    """Prompt and output so far; the next token's position is its length."""
    num_prompt_tokens: int
    end_ids: TokenIds
    """Tokens that end the sample: they are held back until `min_tokens`."""
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    prompt_ids: TokenIds = field(init=False)
    """Each token of the prompt once; empty where nothing asks for it."""
    output_counts: dict[int, int] = field(default_factory=dict)
    is_plain_greedy: bool = field(init=False)
    """Whether every token is the argmax of the raw logits."""
    changes_logits: bool = field(init=False)
    """Whether any option but temperature and the cuts touches the logits."""

    def __post_init__(self) -> None:
        wants_prompt = self.sampling.repetition_penalty != 1.0
        self.prompt_ids = _ids(self.token_ids[: self.num_prompt_tokens] if wants_prompt else ())
        sampling = self.sampling
        self.changes_logits = bool(
            sampling.logit_bias
            or sampling.allowed_token_ids is not None
            or self.bad_word_ids
            or sampling.min_tokens
            or sampling.repetition_penalty != 1.0
            or sampling.presence_penalty
            or sampling.frequency_penalty
        )
        self.is_plain_greedy = self.sampling.is_greedy and not self.changes_logits

    @classmethod
    def of(
        cls,
        sampling: SamplingParams,
        *,
        seed: int,
        token_ids: Sequence[int],
        num_prompt_tokens: int,
        end_of_sequence_ids: Iterable[int] = (),
        bad_word_ids: tuple[tuple[int, ...], ...] = (),
    ) -> SampleState:
        """The state at the start of a sample."""
        return cls(
            sampling=sampling,
            seed=seed,
            token_ids=token_ids,
            num_prompt_tokens=num_prompt_tokens,
            end_ids=_ids((*end_of_sequence_ids, *sampling.stop_token_ids)),
            bad_word_ids=bad_word_ids,
        )

    @property
    def num_output_tokens(self) -> int:
        """Tokens chosen so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    def note(self, token_id: int) -> None:
        """Count a token that was chosen."""
        self.output_counts[token_id] = self.output_counts.get(token_id, 0) + 1
