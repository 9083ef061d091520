"""Which format each tensor gets."""

from __future__ import annotations

import pytest

from ridgeline.errors import UserError
from ridgeline.quant import formats
from ridgeline.shrink.recipe import MIXES, STAND_INS, choices, fitting, mix_named

WIDTHS = (32, 64, 256, 576, 896, 1536, 33)


def test_stand_ins_end_for_every_width() -> None:
    for entry in formats.FORMATS:
        for width in WIDTHS:
            assert width % fitting(entry, width).block_values == 0
            if width % entry.block_values == 0:
                assert fitting(entry, width) is entry


def test_a_stand_in_has_smaller_blocks_and_is_not_worse() -> None:
    for wanted, chosen in STAND_INS.items():
        before, after = formats.BY_NAME[wanted], formats.BY_NAME[chosen]
        assert after.block_values < before.block_values or after.bits_per_weight > before.bits_per_weight
        assert after.bits_per_weight >= before.bits_per_weight


def test_vectors_and_what_is_small_already_stay() -> None:
    made = choices(
        mix_named("Q4_0"),
        [
            ("token_embd.weight", (64, 256), formats.F16),
            ("blk.0.attn_norm.weight", (256,), formats.F32),
            ("blk.0.attn_q.weight", (256, 256), formats.Q4_K),
            ("blk.0.attn_k.weight", (256, 256), formats.Q3_K),
            ("blk.0.ffn_up.weight", (256, 256), formats.Q4_1),
            ("output.weight", (64, 256), formats.Q8_0),
        ],
    )
    assert [choice.chosen.name for choice in made] == ["Q4_0", "F32", "Q4_K", "Q3_K", "Q4_0", "Q4_0"]
    assert [choice.is_changed for choice in made] == [True, False, False, False, True, True]
    assert not any(choice.stands_in for choice in made)


def test_the_output_is_the_embedding_where_they_are_tied() -> None:
    mix = mix_named("q4")
    tied = choices(mix, [("token_embd.weight", (64, 256), formats.F16)])
    apart = choices(mix, [("token_embd.weight", (64, 256), formats.F16), ("output.weight", (64, 256), formats.F16)])
    assert tied[0].wanted is mix.output
    assert (apart[0].wanted, apart[1].wanted) == (mix.embedding, mix.output)


def test_sensitive_matrices_keep_more() -> None:
    mix = mix_named("q4-high")
    made = choices(
        mix, [(f"blk.3.{name}.weight", (8, 256), formats.F16) for name in ("attn_v", "ffn_down", "ffn_up", "ffn_gate")]
    )
    assert [choice.chosen for choice in made] == [mix.sensitive, mix.sensitive, mix.body, mix.body]
    assert mix.sensitive.bits_per_weight > mix.body.bits_per_weight


def test_what_stands_in_is_told() -> None:
    (choice,) = choices(mix_named("Q4_K"), [("blk.0.attn_q.weight", (8, 896), formats.BF16)])
    assert choice.chosen is formats.IQ4_NL
    assert choice.stands_in


@pytest.mark.parametrize("name", [mix.name for mix in MIXES] + ["Q8_0", "q5_k", "bf16"])
def test_known_names(name: str) -> None:
    assert mix_named(name).name.lower() == name.lower()


def test_unknown_names_are_told_what_there_is() -> None:
    with pytest.raises(
        UserError, match="there is no format 'q4-hihg'; there are the mixes q8, q5, q4-high, q4"
    ) as caught:
        mix_named("q4-hihg")
    assert caught.value.hint == "did you mean q4-high?"
    with pytest.raises(UserError):
        mix_named("F32")
