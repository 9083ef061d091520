"""The prefix index: pages whose contents are known by the tokens before and in them, shared by all requests.

The key of a page is a hash of the key of the page before it and of its own tokens; the first page's parent key is made
of the request's salt. So a key stands for everything that the page's keys and values depend on, and equal keys mean
equal contents. Keyed BLAKE2b is used and never Python's `hash`, for which collisions can be crafted (CVE-2025-25183).

Knows: keys and page numbers. Does not know: layers, formats, requests, steps.

Source: SGLang's RadixAttention, arXiv 2312.07104, section 3, for sharing with eviction of the least recently used leaf;
a hash chain over whole pages instead of a tree.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from ridgeline.cache.pages import PagePool

KEY_BYTES = 32


def root_key(salt: str) -> bytes:
    """What the first page of a prompt has in place of a parent's key."""
    return blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES, person=b"ridgeline root").digest()


def page_key(parent_key: bytes, token_ids: Sequence[int]) -> bytes:
    """The key of the page that holds these tokens after the parent's."""
    return blake2b(array("q", token_ids).tobytes(), digest_size=KEY_BYTES, key=parent_key).digest()


@dataclass(slots=True)
class _Entry:
    key: bytes
    parent_page: int | None
    child_pages: set[int] = field(default_factory=set)


class PrefixIndex:
    """The owner of all pages: hands them out, finds them again by key, evicts what nobody holds.

    Laws: whoever holds an indexed page holds its parent, which is indexed too; so among idle pages a child was always
    released before its parent, and the least recently released page has no child. Eviction is a pop from that order.

    Holds: the pool; key -> page; what is known of each indexed page; the idle pages, least recently released first.
    Changed by: its own methods alone.
    """

    def __init__(self, num_pages: int) -> None:
        self._pool = PagePool(num_pages)
        self._page_of_key: dict[bytes, int] = {}
        self._entries: dict[int, _Entry] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_pages(self) -> int:
        """Pages in all."""
        return self._pool.num_pages

    @property
    def num_available(self) -> int:
        """Pages that nobody holds: free, or idle and evicted when needed."""
        return self._pool.num_free + len(self._idle)

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """The pages of the longest indexed run that begins `keys`.

        Changes nothing. The pages may be evicted until they are held. Cost: one look-up per page.
        """
        pages: list[int] = []
        for key in keys:
            page = self._page_of_key.get(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def hold(self, pages: Sequence[int]) -> None:
        """Add a holder to each of a run of pages, first page first."""
        for page in pages:
            if self._pool.hold(page) == 1:
                del self._idle[page]

    def allocate(self, count: int) -> list[int] | None:
        """Pages of undefined contents with one holder each, evicting idle ones; None if too few are left."""
        if count > self.num_available:
            return None
        pages: list[int] = []
        for _ in range(count):
            if self._pool.num_free == 0:
                self._evict()
            page = self._pool.take()
            if page is None:
                self.release(pages)
                return None
            pages.append(page)
        return pages

    def publish(self, key: bytes, page: int, parent_page: int | None) -> int:
        """Make a page, full and computed, findable by its key; return the page that its holder holds from now on.

        That is another one if the key is known already: the holder's own is released for it, contents being equal. A
        page whose parent is not in the index (it was withdrawn) is not entered.
        """
        if parent_page is not None and parent_page not in self._entries:
            return page
        known = self._page_of_key.get(key)
        if known == page:
            return page
        if known is not None:
            self.hold((known,))
            self.release((page,))
            return known
        assert page not in self._entries, page
        self._page_of_key[key] = page
        self._entries[page] = _Entry(key, parent_page)
        if parent_page is not None:
            self._entries[parent_page].child_pages.add(page)
        return page

    def release(self, pages: Sequence[int]) -> None:
        """Take a holder away from each of a run of pages given first page first."""
        for page in reversed(pages):
            if self._pool.release(page) > 0:
                continue
            if page in self._entries:
                self._idle[page] = None
            else:
                self._pool.give_back(page)

    def withdraw(self, pages: Sequence[int]) -> None:
        """Make pages, and all that continue them, unfindable: their contents are not to be trusted."""
        stack = [page for page in pages if page in self._entries]
        while stack:
            page = stack.pop()
            if page not in self._entries:
                continue
            stack.extend(self._entries[page].child_pages)
            self._remove(page)
            if page in self._idle:
                del self._idle[page]
                self._pool.give_back(page)

    def clear(self) -> None:
        """Forget every page that nobody holds."""
        while self._idle:
            self._evict()

    def _evict(self) -> None:
        page, _ = self._idle.popitem(last=False)
        assert not self._entries[page].child_pages, f"page {page} is evicted before its children"
        self._remove(page)
        self._pool.give_back(page)

    def _remove(self, page: int) -> None:
        entry = self._entries.pop(page)
        del self._page_of_key[entry.key]
        parent = None if entry.parent_page is None else self._entries.get(entry.parent_page)
        if parent is not None:
            parent.child_pages.discard(page)

    def check_integrity(self, holders: Sequence[Sequence[int]] | None = None) -> None:
        """Assert every law; with `holders` (the pages of each), that nobody else holds any. Costs O(pages)."""
        self._pool.check_integrity()
        assert len(self._page_of_key) == len(self._entries)
        order = {page: number for number, page in enumerate(self._idle)}
        num_held = 0
        for page in range(self.num_pages):
            count = self._pool.num_holders(page)
            num_held += count > 0
            assert not (count > 0 and page in order), f"page {page} is held and idle"
        assert num_held + self.num_available == self.num_pages, "a page leaked"
        for page, entry in self._entries.items():
            assert self._page_of_key[entry.key] == page
            assert (page in order) == (self._pool.num_holders(page) == 0)
            for child in entry.child_pages:
                assert self._entries[child].parent_page == page
                assert self._pool.num_holders(child) <= self._pool.num_holders(page), (child, page)
                assert page not in order or order[child] < order[page], "a parent would be evicted before its child"
            assert entry.parent_page is None or page in self._entries[entry.parent_page].child_pages
        assert all(page in self._entries for page in order)
        if holders is not None:
            counts = [0] * self.num_pages
            for pages in holders:
                assert len(set(pages)) == len(pages), "a holder has a page twice"
                for page in pages:
                    counts[page] += 1
            assert counts == [self._pool.num_holders(page) for page in range(self.num_pages)], "holders do not add up"
