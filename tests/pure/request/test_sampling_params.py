"""SamplingParams: whatever it is given, it is made whole or refused by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.errors import RequestError
from ridgeline.request import SamplingParams

FIELDS = tuple(SamplingParams.__dataclass_fields__)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=4,
)


@given(name=st.sampled_from(FIELDS), value=ANYTHING)
def test_nothing_but_a_request_error(name: str, value: object) -> None:
    try:
        made = SamplingParams(**{name: value})
    except RequestError as error:
        assert error.field in (name, "min_tokens") and len(error.message) < 300
    else:
        hash(made.stop), hash(made.bad_words), hash(made.stop_token_ids), hash(made.allowed_token_ids)


@pytest.mark.parametrize("name", ["ignore_eos", "skip_special_tokens", "include_stop_str_in_output"])
@pytest.mark.parametrize("value", ["false", 0, 1, None])
def test_a_switch_is_true_or_false(name: str, value: object) -> None:
    with pytest.raises(RequestError, match="true or false"):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("name", ["stop", "bad_words", "stop_token_ids", "allowed_token_ids"])
@pytest.mark.parametrize("value", [5, {"a": 1}, 1.5, True, 0, b"ab"])
def test_a_list_is_a_list(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=name):
        SamplingParams(**{name: value})


def test_lists_of_any_kind() -> None:
    assert SamplingParams(stop="END").stop == ("END",)
    assert SamplingParams(stop=None).stop == ()
    assert SamplingParams(allowed_token_ids=range(3)).allowed_token_ids == (0, 1, 2)
    assert sorted(SamplingParams(stop_token_ids={7, 5}).stop_token_ids) == [5, 7]
