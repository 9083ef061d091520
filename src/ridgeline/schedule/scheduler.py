"""The scheduler: decides what each step runs, and owns who holds which page.

Continuous batching: every step takes one token of each decoding sequence and fills up with chunks of prompts. Waiting
sequences are admitted in order of priority, then arrival, as places and pages allow; when pages run out, the last in
that order gives up all of its pages, keeps its tokens, and is run again later. None of it changes any request's tokens:
what a sequence yields depends on its own tokens alone.

Knows: tokens as integers, page numbers, predicted seconds. Does not know: arrays, chips, streams, the clock.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping
from collections.abc import Sequence as AbstractSequence

from ridgeline.cache.prefix import PrefixIndex
from ridgeline.ops.step import PAGE_SLOTS, StepLimits
from ridgeline.schedule.batch import Batch, BatchEntry
from ridgeline.schedule.sequence import Sequence, pages_for
from ridgeline.schedule.step_size import Predict, Share, prefill_shares
from ridgeline.schedule.waiting import WaitingQueue

ADMISSIONS_PER_PROMOTION = 16
"""After so many admissions the oldest sequence that has not got its first token goes to the front whatever its
priority: nobody waits for more than this many times the sequences that were ahead of it."""
MAX_PASSED_OVER = 64
"""Waiting sequences that admission looks past because their prefix is just being computed by another."""
Propose = Callable[[list[Sequence], int], Mapping[int, tuple[int, ...]]]
"""(decoding sequences, drafts that the step has room for) -> drafts of some of them, by sequence id."""

MIN_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 60.0


class Scheduler:
    """What runs next.

    Holds: the waiting queue; the running sequences in order; free places; which sequence is computing which page that
    another may be waiting for; the prefix index, which owns the pages. Changed by: its own methods alone.

    Args:
        index: all pages.
        limits: the largest step; it must leave a token for a prompt beside `max_sequences` decoding sequences.
        predict: seconds that a step will take.
        goal_seconds: how long decoding sequences may wait for a step that also reads prompts; None: for ever.
        propose: guesses at the tokens that decoding sequences will go on with; None: nobody guesses.
        max_queued_sequences: newcomers beyond this many waiting are refused.
        max_queued_tokens: the same, for the sum of their tokens.
    """

    def __init__(
        self,
        index: PrefixIndex,
        limits: StepLimits,
        *,
        predict: Predict | None = None,
        goal_seconds: float | None = None,
        propose: Propose | None = None,
        max_queued_sequences: int = 4096,
        max_queued_tokens: int = 1 << 22,
    ) -> None:
        assert limits.max_tokens > limits.max_sequences, "no token would be left for a prompt"
        assert limits.max_logit_rows >= limits.max_sequences, "not every sequence could be sampled"
        self._index = index
        self._limits = limits
        self._predict = predict
        self._goal_seconds = goal_seconds
        self._propose = propose
        self._waiting = WaitingQueue(max_queued_sequences, max_queued_tokens)
        self._running: list[Sequence] = []
        self._sequences: dict[int, Sequence] = {}
        self._places = list(range(limits.max_sequences - 1, -1, -1))
        self._computing: dict[bytes, Sequence] = {}
        self._num_admissions = 0
        self._tokens_per_second = 0.0
        self.num_preemptions = 0

    @property
    def num_running(self) -> int:
        """Sequences that have a place."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that have none."""
        return len(self._waiting)

    @property
    def num_available_pages(self) -> int:
        """Pages that no running sequence holds."""
        return self._index.num_available

    def add(self, sequences: AbstractSequence[Sequence]) -> None:
        """Queue the sequences of one request, all or none; OverloadedError when the queue is full."""
        self._waiting.check_room(sequences, retry_after_seconds=self.retry_after_seconds())
        for sequence in sequences:
            assert pages_for(len(sequence.token_ids)) <= self._index.num_pages, "admission lets no such request in"
            self._sequences[sequence.sequence_id] = sequence
            self._waiting.add(sequence)

    def remove(self, sequence_id: int, *, is_tainted: bool = False) -> None:
        """End a sequence: its pages and its place are free at once. Unknown ids are ignored.

        `is_tainted` says that its keys and values are not to be trusted: nobody will find its pages.
        """
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is None:
            return
        if sequence.place is None:
            self._waiting.remove(sequence)
            return
        if is_tainted:
            self._index.withdraw(sequence.pages)
        self._leave(sequence)

    def retry_after_seconds(self) -> float:
        """When a refused client should come back: when all that waits now will have been run, within bounds."""
        if self._tokens_per_second <= 0.0:
            return MIN_RETRY_SECONDS
        return min(max(self._waiting.num_tokens / self._tokens_per_second, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)

    def next_batch(self) -> Batch | None:
        """The next step; None when nothing can run. To be followed by `accept`, or by `remove` of all its sequences."""
        self._extend_running()
        self._admit()
        shares = self._plan()
        return Batch(entries=tuple(_entry(share) for share in shares)) if shares else None

    def accept(self, batch: Batch, sampled: Mapping[int, AbstractSequence[int]], seconds: float = 0.0) -> None:
        """Take in that the batch was run in `seconds` and which tokens were sampled for which sequence.

        One token, and another for each draft that stands: they are the sampled ones but the last. Drafts that do not
        stand were run in vain, and what they stored will be stored over. Full pages become findable. Sequences that
        were removed meanwhile are passed over.
        """
        if seconds > 0.0:
            rate = batch.num_tokens / seconds
            self._tokens_per_second += (rate - self._tokens_per_second) * (0.1 if self._tokens_per_second else 1.0)
        for entry in batch.entries:
            sequence = self._sequences.get(entry.sequence_id)
            if sequence is None:
                continue
            assert sequence.num_computed == entry.start, (sequence.sequence_id, sequence.num_computed, entry.start)
            tokens = sampled.get(entry.sequence_id, ())
            end = entry.end - entry.num_drafted
            if tokens:
                assert end == len(sequence.token_ids), "a token was sampled before the end"
                end += len(tokens) - 1
                assert end <= entry.end
            elif entry.num_drafted:
                end = entry.start  # nothing was drawn from the step; it is made again without drafts
            sequence.token_ids += tokens
            sequence.num_computed = end
            if sequence.rows_from is not None:
                is_done = end >= sequence.num_prompt_tokens
                sequence.rows_from = None if is_done else max(sequence.rows_from, end)
            self._publish(sequence, entry.start // PAGE_SLOTS, end // PAGE_SLOTS)

    def _publish(self, sequence: Sequence, start_page: int, end_page: int) -> None:
        sequence.extend_keys(end_page)
        pages = sequence.pages
        for number in range(start_page, end_page):
            key = sequence.keys[number]
            pages[number] = self._index.publish(key, pages[number], pages[number - 1] if number else None)
            if self._computing.get(key) is sequence:
                del self._computing[key]

    def _extend_running(self) -> None:
        """Give every running sequence the pages for its known tokens; the last in order pay when there are none."""
        for sequence in list(self._running):
            while sequence.place is not None:
                missing = pages_for(len(sequence.token_ids)) - len(sequence.pages)
                pages = self._index.allocate(missing) if missing > 0 else []
                if pages is not None:
                    sequence.pages += pages
                    break
                self._preempt(self._running[-1])

    def _preempt(self, sequence: Sequence) -> None:
        self._leave(sequence)
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self._waiting.add(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """Take a running sequence's pages and place."""
        index = bisect_left(self._running, sequence.order, key=lambda each: each.order)
        assert self._running[index] is sequence
        del self._running[index]
        for key in sequence.keys[sequence.num_computed // PAGE_SLOTS :]:
            if self._computing.get(key) is sequence:
                del self._computing[key]
        self._index.release(sequence.pages)
        sequence.pages = []
        sequence.num_computed = 0
        assert sequence.place is not None
        self._places.append(sequence.place)
        sequence.place = None

    def _admit(self) -> None:
        """Admit waiting sequences while there are places, pages, and not yet a full step of prompt tokens to run."""
        num_passed_over = 0
        for sequence in list(self._waiting):
            if num_passed_over >= MAX_PASSED_OVER or self._backlog_before(sequence) >= self._limits.max_tokens:
                break
            if not self._places and self._running[-1].priority <= sequence.priority:
                break
            keys = sequence.matchable_keys()
            matched = self._index.match(keys)
            if self._is_computed_by_another(sequence, keys, len(matched)):
                num_passed_over += 1
                continue
            if not self._enter(sequence, matched):
                break

    def _backlog_before(self, sequence: Sequence) -> int:
        """Prompt tokens that running sequences have yet to run before this one's turn would come."""
        backlog = 0
        for each in self._running:
            if each.order > sequence.order:
                break
            if each.num_remaining > 1:
                backlog += each.num_remaining
        return backlog

    def _is_computed_by_another(self, sequence: Sequence, keys: list[bytes], num_matched: int) -> bool:
        """Whether the next page that it needs is being computed by one that is ahead of it: then it pays to wait."""
        if num_matched == len(keys):
            return False
        owner = self._computing.get(keys[num_matched])
        return owner is not None and owner.order < sequence.order

    def _enter(self, sequence: Sequence, matched: list[int]) -> bool:
        """Give a waiting sequence a place and all pages that its tokens need; False if it must go on waiting.

        Running sequences of a lower urgency give way. One page for each running sequence is left free, so that an
        admission is not followed at once by a preemption.
        """
        self._index.hold(matched)
        num_missing = pages_for(len(sequence.token_ids)) - len(matched)
        while True:
            if self._places and num_missing + len(self._running) <= self._index.num_available:
                pages = self._index.allocate(num_missing)
                if pages is not None:
                    break
            if not self._running or self._running[-1].priority <= sequence.priority:
                self._index.release(matched)
                return False
            self._preempt(self._running[-1])
        self._waiting.remove(sequence)
        sequence.pages = matched + pages
        sequence.num_computed = len(matched) * PAGE_SLOTS
        if sequence.num_preemptions == 0:
            sequence.num_cached_tokens = sequence.num_computed
        sequence.place = self._places.pop()
        sequence.extend_keys(len(sequence.token_ids) // PAGE_SLOTS)
        for key in sequence.keys[len(matched) :]:
            self._computing.setdefault(key, sequence)
        insort(self._running, sequence, key=lambda each: each.order)
        self._num_admissions += 1
        if self._num_admissions % ADMISSIONS_PER_PROMOTION == 0:
            self._promote_oldest()
        return True

    def _promote_oldest(self) -> None:
        """Put the sequence that has waited longest for its first token ahead of all others."""
        early = list(self._waiting)
        early += [each for each in self._running if each.num_computed < each.num_prompt_tokens]
        if not early:
            return
        oldest = min(early, key=lambda each: each.arrival)
        highest = min(each.priority for each in (*self._waiting, *self._running))
        if oldest.priority == highest:
            return
        if oldest.place is None:
            self._waiting.remove(oldest)
            oldest.priority = highest
            self._waiting.add(oldest)
        else:
            self._running.remove(oldest)
            oldest.priority = highest
            insort(self._running, oldest, key=lambda each: each.order)

    def _plan(self) -> list[Share]:
        sequences = [sequence for sequence in self._running if sequence.num_remaining == 1]
        prefilling = [sequence for sequence in self._running if sequence.num_remaining > 1]
        drafts = self._drafts(sequences, has_prompts=bool(prefilling))
        decoding = []
        for sequence in sequences:
            draft = drafts.get(sequence.sequence_id, ())
            draft = draft[: self._room_for_draft(sequence, len(draft))] if draft else ()
            decoding.append(Share(sequence=sequence, end=sequence.num_computed + 1 + len(draft), draft=draft))
        num_tokens = sum(share.num_tokens for share in decoding)
        return decoding + prefill_shares(
            decoding,
            prefilling,
            max_tokens=self._limits.max_tokens - num_tokens,
            max_rows=self._limits.max_logit_rows - num_tokens,
            predict=self._predict,
            goal_seconds=self._goal_seconds,
        )

    def _drafts(self, sequences: list[Sequence], *, has_prompts: bool) -> Mapping[int, tuple[int, ...]]:
        """Drafts for decoding sequences, within what the step has room for; prompts keep half of it."""
        if self._propose is None or not sequences:
            return {}
        room = min(self._limits.max_tokens, self._limits.max_logit_rows) - len(sequences)
        if has_prompts:
            room //= 2
        return self._propose(sequences, room) if room > 0 else {}

    def _room_for_draft(self, sequence: Sequence, num_wanted: int) -> int:
        """How many drafts the sequence's pages have room for, taking another page only if nobody will miss it."""
        num_known = len(sequence.token_ids)
        missing = pages_for(num_known + num_wanted) - len(sequence.pages)
        if missing > 0 and self._index.num_available >= missing + len(self._running):
            sequence.pages += self._index.allocate(missing) or []
        return min(num_wanted, len(sequence.pages) * PAGE_SLOTS - num_known)

    def check_integrity(self) -> None:
        """Assert that pages, places and sequences add up."""
        self._index.check_integrity([sequence.pages for sequence in self._running])
        assert [each.order for each in self._running] == sorted(each.order for each in self._running)
        places = [sequence.place for sequence in self._running]
        assert None not in places
        assert sorted([*(place for place in places if place is not None), *self._places]) == list(
            range(self._limits.max_sequences)
        ), "a place leaked"
        assert len(self._running) + len(self._waiting) == len(self._sequences)
        assert all(sequence.place is None and not sequence.pages for sequence in self._waiting)
        assert self._waiting.num_tokens == sum(len(sequence.token_ids) for sequence in self._waiting)
        assert all(owner.place is not None for owner in self._computing.values())
        for sequence in self._running:
            assert len(sequence.pages) >= pages_for(sequence.num_computed)


def _entry(share: Share) -> BatchEntry:
    sequence = share.sequence
    start, end = sequence.num_computed, share.end
    num_known = end - len(share.draft)
    assert sequence.place is not None
    return BatchEntry(
        sequence_id=sequence.sequence_id,
        start=start,
        end=end,
        token_ids=(*sequence.token_ids[start:num_known], *share.draft),
        page_ids=tuple(sequence.pages[: pages_for(end)]),
        place=sequence.place,
        num_logit_rows=share.num_rows,
        num_drafted=len(share.draft),
    )
