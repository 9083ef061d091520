"""The documents name files that exist, and link to pages that do."""

from __future__ import annotations

import re

import pytest

from tests.style.test_checks import ROOT, tracked

PAGES = [str(path.relative_to(ROOT)) for path in tracked("*.md", "docs/*.md", "docs/**/*.md")]
_FILE = re.compile(r"`([\w/]+\.(?:py|cpp|h|toml|md))`")
_LINK = re.compile(r"\]\(([^)#:]+)\)")


@pytest.mark.parametrize("page", PAGES)
def test_names_and_links_are_true(page: str) -> None:
    text = (ROOT / page).read_text()
    roots = (ROOT, ROOT / "src/ridgeline", ROOT / "src/ridgeline/chips/cpu", ROOT / "src/ridgeline/chips/cpu/kernels")
    named = [name for name in _FILE.findall(text) if "/" in name and not name.split("/")[-1][0].isupper()]
    missing = [name for name in named if not any((root / name).exists() for root in roots)]
    missing += [link for link in _LINK.findall(text) if not ((ROOT / page).parent / link).exists()]
    assert not missing


def test_there_are_pages() -> None:
    assert "docs/path-of-a-token.md" in PAGES
