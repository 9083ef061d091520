"""The pool of pages: a free list and a count of holders for each.

Knows: page numbers. Does not know: what a page holds, for whom, or whether it may be found again (`prefix` does).
"""

from __future__ import annotations


class PagePool:
    """All pages of an engine, by number.

    A page is free, held (by one holder or more), or idle: nobody holds it, but it has not been given back, because its
    contents may be wanted again.

    Holds: the free list, used as a stack so that recently used memory is used again first; the holders of each page.
    Changed by: its own methods alone.
    """

    def __init__(self, num_pages: int) -> None:
        self._num_holders = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_pages(self) -> int:
        """Pages in all."""
        return len(self._num_holders)

    @property
    def num_free(self) -> int:
        """Pages on the free list."""
        return len(self._free)

    def take(self) -> int | None:
        """A free page, now with one holder; None if there is none."""
        if not self._free:
            return None
        page = self._free.pop()
        self._num_holders[page] = 1
        return page

    def hold(self, page: int) -> int:
        """Add a holder to a page that is held or idle; return how many there are now."""
        self._num_holders[page] += 1
        return self._num_holders[page]

    def release(self, page: int) -> int:
        """Take a holder away; return how many are left. At 0 the page is idle until it is held or given back."""
        assert self._num_holders[page] > 0, page
        self._num_holders[page] -= 1
        return self._num_holders[page]

    def give_back(self, page: int) -> None:
        """Put an idle page on the free list."""
        assert self._num_holders[page] == 0, page
        self._free.append(page)

    def num_holders(self, page: int) -> int:
        """How many hold the page."""
        return self._num_holders[page]

    def check_integrity(self) -> None:
        """Assert the laws: free pages are distinct and nobody holds one; no count is negative. Costs O(pages)."""
        free = set(self._free)
        assert len(free) == len(self._free), "a page is on the free list twice"
        assert all(0 <= page < self.num_pages for page in free)
        for page, count in enumerate(self._num_holders):
            assert count >= 0, (page, count)
            assert count == 0 or page not in free, f"page {page} is free and held"
