"""Which tensors are quantised, and Mistral 3's names: of transformers 4, and in our modules."""

import pytest

from worker.families.flux2.parts import TEXT_ENCODER, TRANSFORMER, rename_text, restore_text

NAMES = {
    "language_model.model.layers.1.mlp.up_proj.weight": (
        "model.language_model.layers.1.mlp.up_proj.weight"
    ),
    "language_model.lm_head.weight": "lm_head.weight",
    "vision_tower.patch_conv.weight": "model.vision_tower.patch_conv.weight",
    "multi_modal_projector.norm.weight": "model.multi_modal_projector.norm.weight",
}


@pytest.mark.parametrize(("published", "ours"), NAMES.items())
def test_a_published_name_is_found_and_shown_again(published: str, ours: str) -> None:
    """One of either kind tells how the others are shown."""
    assert rename_text(published) == ours
    for kind in NAMES:
        assert restore_text(["other.weight", kind])(ours) == published


@pytest.mark.parametrize("ours", NAMES.values())
def test_a_name_of_transformers_5_is_what_it_is(ours: str) -> None:
    assert rename_text(ours) == ours
    assert restore_text(["other.weight", *NAMES.values()])(ours) == ours
    assert restore_text([])(ours) == ours


def test_any_other_name_stays() -> None:
    """Qwen3, which the smaller models have, is published as it is."""
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight"):
        assert rename_text(name) == name
        assert restore_text(list(NAMES))(name) == name


@pytest.mark.parametrize(
    ("name", "is_quantised"),
    [
        *((f"transformer_blocks.4.attn.to_{x}.weight", True) for x in "qkv"),
        *((f"transformer_blocks.0.attn.add_{x}_proj.weight", True) for x in "qkv"),
        ("transformer_blocks.0.attn.to_out.0.weight", True),
        ("transformer_blocks.0.attn.to_add_out.weight", True),
        ("transformer_blocks.0.ff.linear_in.weight", True),
        ("transformer_blocks.0.ff_context.linear_out.weight", True),
        ("single_transformer_blocks.19.attn.to_qkv_mlp_proj.weight", True),
        ("single_transformer_blocks.19.attn.to_out.weight", True),
        ("transformer_blocks.0.attn.norm_q.weight", False),
        ("transformer_blocks.0.attn.to_out.0.bias", False),
        ("context_embedder.weight", False),
        ("double_stream_modulation_img.linear.weight", False),
        ("proj_out.weight", False),
    ],
)
def test_the_linears_of_the_blocks_are_quantised(name: str, *, is_quantised: bool) -> None:
    assert TRANSFORMER.quantised is not None
    assert bool(TRANSFORMER.quantised.fullmatch(name)) is is_quantised


@pytest.mark.parametrize("inside", ["", "language_model."])
@pytest.mark.parametrize(
    ("name", "is_quantised"),
    [
        *((f"layers.0.self_attn.{x}_proj.weight", True) for x in "qkvo"),
        *((f"layers.27.mlp.{x}_proj.weight", True) for x in ("gate", "up", "down")),
        ("layers.0.self_attn.q_norm.weight", False),
        ("embed_tokens.weight", False),
        ("norm.weight", False),
    ],
)
def test_the_text_encoders_linears_are_quantised(
    inside: str, name: str, *, is_quantised: bool
) -> None:
    """Qwen3's, and Mistral 3's, which has a language model inside."""
    assert TEXT_ENCODER.quantised is not None
    assert bool(TEXT_ENCODER.quantised.fullmatch(f"model.{inside}{name}")) is is_quantised
