"""Whatever stands in a file's figures: a plan, or a ModelFileError, quickly; never another exception."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ridgeline.errors import ModelFileError
from ridgeline.model.load import plan_model
from ridgeline.model.schema import check_spec
from ridgeline.weights.checkpoint import Checkpoint
from ridgeline.weights.open import open_checkpoint
from tests.model.goldens import NAMES, golden, write_as_gguf

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 2, -1, 1 << 31, 1 << 63, 10**400, 0.0, -0.0, 1e-300, 1e300])
    | st.floats()
    | st.sampled_from(["", "yarn", "linear", "llama3", "longrope", "default", "gelu", "gemma3", "llama", "\x00"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["rope_type", "factor", "rope_theta", "full_attention", "long_factor", "text_config"]),
            inner,
        )
    ),
    max_leaves=6,
)


@dataclass(frozen=True)
class Changed:
    """A checkpoint with other figures."""

    original: Checkpoint
    metadata: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[Checkpoint]:
    folder = tmp_path_factory.mktemp("gguf")
    as_gguf = [open_checkpoint(write_as_gguf(golden(name).folder, folder / f"{name}.gguf")) for name in NAMES]
    return [golden(name).checkpoint() for name in NAMES] + as_gguf


@given(data=st.data())
@settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changed_figures_give_a_plan_or_a_clear_error(data, checkpoints):
    checkpoint = data.draw(st.sampled_from(checkpoints))
    metadata = dict(checkpoint.metadata)
    for key in data.draw(st.lists(st.sampled_from(sorted(metadata)), min_size=1, max_size=3)):
        metadata[key] = data.draw(VALUES)
    try:
        plan = plan_model(Changed(checkpoint, metadata))
    except ModelFileError as error:
        assert str(checkpoint.path) in error.message and len(error.message) < 2000
    else:
        check_spec(plan.spec, "again")


@given(scaling=st.dictionaries(
    st.sampled_from([
        "rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "attention_factor",
        "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
        "short_factor", "long_factor", "partial_rotary_factor",
    ]),
    SCALARS | st.sampled_from([1, 2, 64, 1e30, 1e-30, [1.0, 2.0, 3.0, 4.0]]),
))  # fmt: skip
@settings(max_examples=150, deadline=2000)
def test_changed_ropes_give_a_plan_or_a_clear_error(scaling):
    checkpoint = golden("llama_llama3").checkpoint()
    try:
        plan = plan_model(Changed(checkpoint, {**checkpoint.metadata, "rope_parameters": scaling}))
    except ModelFileError as error:
        assert "rope" in error.message
    else:
        check_spec(plan.spec, "again")
