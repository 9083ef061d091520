"""What speculation gains on texts that repeat what was given, and what it costs on one that does not.

    python bench/speculation.py MODEL.gguf ... [--draft-model SMALL.gguf] [--rounds 5] [--json FILE]

Cases are conversations as people have them, through the model's own chat template: a file to be returned with names
changed, a question over a document that is answered by quoting it, both greedy; a story drawn at temperature 0.8, which
repeats little, and one at 1.5, which repeats nothing. Each case runs with and without speculation, a few steps of each
in turn; both give the same tokens, which is checked. Nothing is left from one round to the next: no cached prefix, and
no text to copy from. Rates are of the steps after the first token. A round in which other processes took more than
MAX_FOREIGN_SHARE of the CPUs is left out of the medians where there are others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from machine import MAX_FOREIGN_SHARE, facts, foreign_share
from ridgeline.engine.engine import Engine
from ridgeline.engine.open import open_engine
from ridgeline.engine.settings import EngineSettings
from ridgeline.request.output import TokenChunk
from ridgeline.request.request import Request
from ridgeline.request.sampling_params import SamplingParams
from ridgeline.text.chat_prompt import chat_tokens
from ridgeline.text.open import open_text
from ridgeline.weights.cache_folder import default_cache_folder
from ridgeline.weights.open import open_checkpoint

MEMORY_BYTES = 3_000_000_000
CONTEXT_TOKENS = 8192
STEPS_A_TURN = 8
DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One conversation of one message."""

    name: str
    message: str
    max_tokens: int
    temperature: float = 0.0
    min_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One answer: its decoding, after the first token."""

    tokens_per_second: float
    num_output_tokens: int
    num_drafted_tokens: int
    num_accepted_tokens: int
    foreign_share: float

    @property
    def num_steps(self) -> int:
        """After the first token: each brings one and what stands of its drafts."""
        return self.num_output_tokens - 1 - self.num_accepted_tokens

    @property
    def acceptance(self) -> float:
        """Share of drafts that stood."""
        return self.num_accepted_tokens / max(self.num_drafted_tokens, 1)

    @property
    def rows_per_step(self) -> float:
        """Rows of a step: its own token's and the drafts'."""
        return 1 + self.num_drafted_tokens / max(self.num_steps, 1)


def cases() -> tuple[Case, ...]:
    """What is asked."""
    code = (DATA / "code_edit.py.txt").read_text()
    document = (DATA / "document.txt").read_text()
    return (
        Case(
            name="code edit",
            message=f"```python\n{code}```\n\nIn this file, rename the class `ParcelBook` to `DepotBook` and the "
            "argument `clerk` to `handled_by` everywhere. Return the whole file and change nothing else.",
            max_tokens=1400,
        ),
        Case(
            name="question over a document",
            message=f"Here is a handbook.\n\n{document}\n\nWhat does the handbook say about lost property, and what "
            "about safety? Answer by quoting these two sections in full, word for word.",
            max_tokens=400,
        ),
        Case(
            name="story, temperature 1.5",
            message="Tell a story of four hundred words about a clockmaker who repairs a lighthouse.",
            max_tokens=400,
            min_tokens=400,
            temperature=1.5,
        ),
        Case(
            name="story, temperature 0.8",
            message="Tell a story of four hundred words about a clockmaker who repairs a lighthouse.",
            max_tokens=400,
            min_tokens=400,
            temperature=0.8,
        ),
    )


@dataclass(slots=True, kw_only=True)
class Answer:
    """One answer while it is made. The clock counts after the first token, and only while its own engine steps."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    seconds: float = 0.0
    last: TokenChunk | None = None

    def take(self, chunks: Sequence[TokenChunk], seconds: float) -> None:
        """Add what a step brought."""
        if self.tokens:
            self.seconds += seconds
        for chunk in chunks:
            self.tokens += chunk.token_ids
            self.text += chunk.text
            self.last = chunk


def run(engines: Mapping[str, Engine], case: Case, prompt: Sequence[int]) -> tuple[dict[str, Run], dict[str, Answer]]:
    """One answer of each engine from an empty prefix cache, all at once, each engine a few steps in turn.

    The turns are short, so that a machine that changes its speed does so for all.
    """
    sampling = SamplingParams(
        max_tokens=case.max_tokens, min_tokens=case.min_tokens, temperature=case.temperature, seed=1
    )
    answers = {name: Answer() for name in engines}
    with foreign_share() as foreign:
        for engine in engines.values():
            engine.forget_prefixes()
            engine.add(Request(request_id="bench", prompt_token_ids=tuple(prompt), sampling=sampling, seed=1))
        while any(engine.has_work() for engine in engines.values()):
            for name, engine in engines.items():
                for _ in range(STEPS_A_TURN):
                    begin = time.perf_counter()
                    chunks = engine.step()
                    answers[name].take(chunks, time.perf_counter() - begin if chunks else 0.0)
    figures = {}
    for name, answer in answers.items():
        assert answer.last is not None and answer.last.error is None and answer.last.timing is not None
        figures[name] = Run(
            tokens_per_second=(len(answer.tokens) - 1) / answer.seconds,
            num_output_tokens=len(answer.tokens),
            num_drafted_tokens=answer.last.timing.num_drafted_tokens,
            num_accepted_tokens=answer.last.timing.num_accepted_tokens,
            foreign_share=foreign.share,
        )
    return figures, answers


def measured(model: Path, names: Sequence[str], num_rounds: int, draft_model: str | None) -> list[dict[str, Any]]:
    """Each case with and without, in turns."""
    checkpoint = open_checkpoint(model)
    tokenizer, template = open_text(checkpoint, default_cache_folder() / "text")
    checkpoint.close()
    sides = {
        "plain": EngineSettings(
            model=str(model), context_tokens=CONTEXT_TOKENS, memory_bytes=MEMORY_BYTES, speculation=False
        ),
        "speculating": EngineSettings(
            model=str(model), context_tokens=CONTEXT_TOKENS, draft_model=draft_model, memory_bytes=MEMORY_BYTES
        ),
    }
    engines = {name: open_engine(settings) for name, settings in sides.items()}
    report = []
    for case in cases():
        if names and case.name not in names:
            continue
        prompt = chat_tokens(tokenizer, template, [{"role": "user", "content": case.message}])
        runs: dict[str, list[Run]] = {name: [] for name in engines}
        answer = ""
        # The first round lets both learn what steps cost.
        for number in range(num_rounds + 1):
            figures, answers = run(engines, case, prompt)
            answer = answers["plain"].text
            assert len({tuple(each.tokens) for each in answers.values()}) == 1, "speculation changed an answer"
            for name in engines if number else ():
                runs[name].append(figures[name])
        report.append(
            {
                **{key: value for key, value in asdict(case).items() if key != "message"},
                "num_prompt_tokens": len(prompt),
                "answer_begins": answer[:200],
                **shown(case, runs),
                "rounds": {
                    name: [
                        {
                            **asdict(each),
                            "num_steps": each.num_steps,
                            "acceptance": each.acceptance,
                            "rows_per_step": each.rows_per_step,
                        }
                        for each in own
                    ]
                    for name, own in runs.items()
                },
            }
        )
    for engine in engines.values():
        engine.close()
    return report


def shown(case: Case, runs: dict[str, list[Run]]) -> dict[str, float]:
    """Print and return medians of the clean rounds; the ratio is the median of the rounds' own ratios.

    Both sides of a round run in turns of a few steps, so that a machine that changes its speed spoils few ratios.
    """
    pairs = list(zip(runs["plain"], runs["speculating"], strict=True))
    clean = [pair for pair in pairs if max(each.foreign_share for each in pair) <= MAX_FOREIGN_SHARE] or pairs
    rates = {name: statistics.median(pair[side].tokens_per_second for pair in clean) for side, name in enumerate(runs)}
    ratio = statistics.median(with_drafts.tokens_per_second / plain.tokens_per_second for plain, with_drafts in clean)
    last = runs["speculating"][-1]
    print(
        f"{case.name:<26}{rates['plain']:>8.1f}{rates['speculating']:>8.1f} tokens/s {ratio:>6.2f}x  "
        f"{last.num_output_tokens} tokens in {last.num_steps} steps of {last.rows_per_step:.1f} rows, "
        f"{last.acceptance:.0%} of {last.num_drafted_tokens} drafts stood; foreign "
        f"{max(each.foreign_share for own in runs.values() for each in own):.0%}",
        flush=True,
    )
    return {**{f"{name}_tokens_per_second": rate for name, rate in rates.items()}, "ratio": ratio}


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--draft-model")
    parser.add_argument("--case", action="append", default=[], help="only these")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="a file that exists is added to")
    options = parser.parse_args()
    report: dict[str, Any] = {
        "machine": facts(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "models": [],
    }
    for model in options.models:
        print(f"{model.name}\n{'case':<26}{'plain':>8}{'with':>8}", flush=True)
        cases_measured = measured(model, options.case, options.rounds, options.draft_model)
        draft_name = None if options.draft_model is None else Path(options.draft_model).name
        report["models"].append({"model": model.name, "draft_model": draft_name, "cases": cases_measured})
    if options.json is not None:
        if options.json.exists():
            report["models"] = json.loads(options.json.read_text())["models"] + report["models"]
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
