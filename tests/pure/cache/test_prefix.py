"""The prefix index: its laws after every step of any history, and what keys distinguish."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ridgeline.cache.pages import PagePool
from ridgeline.cache.prefix import PrefixIndex, page_key, root_key

NUM_PAGES = 7


class Holder:
    """A sequence as the index sees it: a run of pages, the first `num_published` of them tried to be entered."""

    def __init__(self, keys: list[bytes], pages: list[int], num_published: int) -> None:
        self.keys = keys
        self.pages = pages
        self.num_published = num_published


def chain(text: str, salt: str = "") -> list[bytes]:
    keys = [root_key(salt)]
    for letter in text:
        keys.append(page_key(keys[-1], [ord(letter)]))
    return keys[1:]


class PrefixMachine(RuleBasedStateMachine):
    """Sequences over a two-letter alphabet, so that prefixes meet often, in few pages, so that eviction is common."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(NUM_PAGES)
        self.holders: list[Holder] = []

    @rule(text=st.text("ab", min_size=1, max_size=NUM_PAGES))
    def start(self, text: str) -> None:
        keys = chain(text)
        matched = self.index.match(keys)
        self.index.hold(matched)
        available = self.index.num_available
        pages = self.index.allocate(len(keys) - len(matched))
        assert (pages is None) == (available < len(keys) - len(matched))
        if pages is None:
            self.index.release(matched)
        else:
            self.holders.append(Holder(keys, matched + pages, len(matched)))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def publish_one(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        number = holder.num_published
        if number < len(holder.pages):
            parent = holder.pages[number - 1] if number else None
            own = holder.pages[number]
            holder.pages[number] = self.index.publish(holder.keys[number], own, parent)
            holder.num_published += 1

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        self.holders.remove(holder)
        self.index.release(holder.pages)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        start = data.draw(st.integers(0, len(holder.pages)))
        self.index.withdraw(holder.pages[start:])
        assert not set(holder.pages[start:]) & set(self.index.match(holder.keys))

    @rule()
    def clear(self) -> None:
        self.index.clear()

    @invariant()
    def laws(self) -> None:
        self.index.check_integrity([holder.pages for holder in self.holders])

    def teardown(self) -> None:
        for holder in self.holders:
            self.index.release(holder.pages)
        self.index.clear()
        assert self.index.allocate(NUM_PAGES) is not None, "a page leaked"


TestPrefixMachine = PrefixMachine.TestCase
TestPrefixMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def published(index: PrefixIndex, text: str) -> list[int]:
    keys = chain(text)
    pages = index.allocate(len(keys))
    assert pages is not None
    for number, key in enumerate(keys):
        pages[number] = index.publish(key, pages[number], pages[number - 1] if number else None)
    return pages


def test_a_published_run_is_found_and_no_other() -> None:
    index = PrefixIndex(8)
    pages = published(index, "abc")
    assert index.match(chain("abcd")) == pages
    assert index.match(chain("abd")) == pages[:2]
    assert index.match(chain("bc")) == []
    assert index.match(chain("abc", salt="other")) == []


def test_equal_contents_end_up_in_one_page() -> None:
    index = PrefixIndex(8)
    first = published(index, "ab")
    second = published(index, "ab")
    assert second == first
    index.check_integrity([first, second])
    assert index.num_available == 6


def test_the_least_recently_released_leaf_is_evicted_first() -> None:
    index = PrefixIndex(4)
    old, new = published(index, "ab"), published(index, "cd")
    index.release(old)
    index.release(new)
    assert index.allocate(1) == [old[1]], "the leaf of the older run"
    assert index.match(chain("ab")) == [old[0]]
    assert index.match(chain("cd")) == new
    assert index.allocate(1) == [old[0]]


def test_being_used_again_protects_from_eviction() -> None:
    index = PrefixIndex(4)
    first, second = published(index, "ab"), published(index, "cd")
    index.release(first)
    index.release(second)
    index.hold(first)
    index.release(first)
    assert index.allocate(2) == [second[1], second[0]]


def test_held_pages_are_never_evicted() -> None:
    index = PrefixIndex(3)
    pages = published(index, "abc")
    assert index.num_available == 0
    assert index.allocate(1) is None
    assert index.match(chain("abc")) == pages


def test_keys_tell_apart_what_python_hash_would_not() -> None:
    assert page_key(root_key(""), [-1]) != page_key(root_key(""), [-2]), "hash(-1) == hash(-2)"
    assert root_key("a") != root_key("")
    assert root_key("\ud800") != root_key("a")


def test_keys_do_not_change() -> None:
    """They may one day be written down; and a key that differed from run to run would be Python's hash."""
    assert page_key(root_key("salt"), [1, 2, 3]).hex() == (
        "0e0fcf429d4ce6310e7e5fd61b582763fe921c9a2a3521663b53d7baee124cac"
    )


def test_pool_counts_holders() -> None:
    pool = PagePool(2)
    first, second = pool.take(), pool.take()
    assert {first, second} == {0, 1} and pool.take() is None
    assert pool.hold(0) == 2
    assert pool.release(0) == 1 and pool.release(0) == 0
    pool.check_integrity()
    pool.give_back(0)
    assert pool.num_free == 1
    with pytest.raises(AssertionError):
        pool.release(0)
