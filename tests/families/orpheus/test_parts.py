"""Which tensors of a language model that speaks are quantised."""

import pytest

from worker.families.orpheus.parts import LANGUAGE


@pytest.mark.parametrize(
    ("name", "is_quantised"),
    [
        *((f"model.layers.27.self_attn.{x}_proj.weight", True) for x in "qkvo"),
        *((f"model.layers.0.mlp.{x}_proj.weight", True) for x in ("gate", "up", "down")),
        ("model.layers.0.self_attn.q_proj.bias", False),
        ("model.layers.0.input_layernorm.weight", False),
        ("model.norm.weight", False),
        ("model.embed_tokens.weight", False),
        ("lm_head.weight", False),
    ],
)
def test_the_layers_linears_are_quantised(name: str, *, is_quantised: bool) -> None:
    assert LANGUAGE.quantised is not None
    assert bool(LANGUAGE.quantised.fullmatch(name)) is is_quantised
