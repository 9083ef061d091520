"""The CPU chip for the tests of its room; without the native module they are skipped."""

from __future__ import annotations

import pytest

pytest.importorskip("ridgeline.chips.cpu._native", reason="the CPU chip's native module is not built")
