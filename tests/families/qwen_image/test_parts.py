"""Which tensors are quantised, and their names: as they are published and as modules have them."""

import pytest

from worker.families.qwen_image.parts import TEXT_ENCODER, TRANSFORMER, rename_text, restore_text

NAMES = {
    "model.layers.1.mlp.up_proj.weight": "model.language_model.layers.1.mlp.up_proj.weight",
    "model.embed_tokens.weight": "model.language_model.embed_tokens.weight",
    "visual.blocks.0.attn.qkv.weight": "model.visual.blocks.0.attn.qkv.weight",
}


LINEARS = ("gate", "up", "down")


@pytest.mark.parametrize(("published", "ours"), NAMES.items())
def test_a_published_name_is_found_and_shown_again(published: str, ours: str) -> None:
    """One of either kind tells how the others are shown."""
    assert rename_text(published) == ours
    for kind in NAMES:
        assert restore_text(["lm_head.weight", kind])(ours) == published


@pytest.mark.parametrize("ours", NAMES.values())
def test_a_name_of_transformers_5_is_what_it_is(ours: str) -> None:
    assert rename_text(ours) == ours
    assert restore_text(["lm_head.weight", *NAMES.values()])(ours) == ours
    assert restore_text([])(ours) == ours


def test_the_head_is_dropped_and_anything_else_stays() -> None:
    assert rename_text("lm_head.weight") is None
    assert rename_text("lm_head.bias") == "lm_head.bias"
    show = restore_text(list(NAMES))
    assert show("lm_head.weight") == "lm_head.weight"


@pytest.mark.parametrize(
    ("name", "is_quantised"),
    [
        *((f"model.language_model.layers.27.self_attn.{x}_proj.weight", True) for x in "qkvo"),
        *((f"model.language_model.layers.0.mlp.{x}_proj.weight", True) for x in LINEARS),
        ("model.language_model.layers.0.self_attn.q_proj.bias", False),
        ("model.language_model.embed_tokens.weight", False),
        ("model.visual.blocks.0.mlp.up_proj.weight", False),
    ],
)
def test_the_language_model_s_linears_are_quantised(name: str, *, is_quantised: bool) -> None:
    assert TEXT_ENCODER.quantised is not None
    assert bool(TEXT_ENCODER.quantised.fullmatch(name)) is is_quantised


@pytest.mark.parametrize(
    ("name", "is_quantised"),
    [
        ("transformer_blocks.59.attn.to_out.0.weight", True),
        ("transformer_blocks.0.txt_mlp.net.0.proj.weight", True),
        ("transformer_blocks.0.attn.to_out.0.bias", False),
        ("transformer_blocks.0.attn.norm_q.weight", False),
        ("transformer_blocks.0.attn.to_outx0.weight", False),
        ("proj_out.weight", False),
    ],
)
def test_of_the_transformer_what_lightning_reaches_is_quantised(
    name: str, *, is_quantised: bool
) -> None:
    assert TRANSFORMER.quantised is not None
    assert bool(TRANSFORMER.quantised.fullmatch(name)) is is_quantised
