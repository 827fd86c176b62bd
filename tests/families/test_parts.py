"""Which tensors are quantised, and their names: as they are published and as modules have them."""

import pytest

from worker.bundle.recipe import Part
from worker.families.flux2 import parts as flux2
from worker.families.orpheus import parts as orpheus
from worker.families.qwen_image import parts as qwen_image

# What the publishers of each text encoder call its tensors -> in our modules.
QWEN = {
    "model.layers.1.mlp.up_proj.weight": "model.language_model.layers.1.mlp.up_proj.weight",
    "model.embed_tokens.weight": "model.language_model.embed_tokens.weight",
    "visual.blocks.0.attn.qkv.weight": "model.visual.blocks.0.attn.qkv.weight",
}
MISTRAL = {
    "language_model.model.layers.1.mlp.up_proj.weight": (
        "model.language_model.layers.1.mlp.up_proj.weight"
    ),
    "language_model.lm_head.weight": "lm_head.weight",
    "vision_tower.patch_conv.weight": "model.vision_tower.patch_conv.weight",
    "multi_modal_projector.norm.weight": "model.multi_modal_projector.norm.weight",
}
NAMES = [
    (part, theirs, ours, names)
    for part, names in ((qwen_image.TEXT_ENCODER, QWEN), (flux2.TEXT_ENCODER, MISTRAL))
    for theirs, ours in names.items()
]


@pytest.mark.parametrize(("part", "theirs", "ours", "names"), NAMES)
def test_a_published_name_is_found_and_shown_again(
    part: Part, theirs: str, ours: str, names: dict[str, str]
) -> None:
    """One of either kind tells how the others are shown."""
    assert part.keep(theirs) == ours
    for kind in names:
        assert part.shown(["other.weight", kind])(ours) == theirs


@pytest.mark.parametrize(("part", "theirs", "ours", "names"), NAMES)
def test_a_name_of_transformers_5_is_what_it_is(
    part: Part, theirs: str, ours: str, names: dict[str, str]
) -> None:
    assert theirs != ours
    assert part.keep(ours) == ours
    assert part.shown(["other.weight", "lm_head.weight", *names.values()])(ours) == ours
    assert part.shown([])(ours) == ours


def test_qwens_head_is_dropped_and_anything_else_stays() -> None:
    part = qwen_image.TEXT_ENCODER
    assert part.keep("lm_head.weight") is None
    assert part.keep("lm_head.bias") == "lm_head.bias"
    assert part.shown(list(QWEN))("lm_head.weight") == "lm_head.weight"


def test_what_mistral_does_not_move_stays() -> None:
    """Qwen3, which FLUX.2's smaller models have, is published as it is."""
    part = flux2.TEXT_ENCODER
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight"):
        assert part.keep(name) == name
        assert part.shown(list(MISTRAL))(name) == name


def name_linears(before: str) -> list[str]:
    """Return what the Linears of a language model's layers are called."""
    inside = [f"self_attn.{x}_proj" for x in "qkvo"] + [
        f"mlp.{x}_proj" for x in ("gate", "up", "down")
    ]
    return [f"{before}layers.{n}.{name}.weight" for n in (0, 27) for name in inside]


def name_others(before: str) -> list[str]:
    """Return what a language model's other tensors are called."""
    inside = ("layers.0.self_attn.q_proj.bias", "layers.0.self_attn.q_norm.weight", "norm.weight")
    return [f"{before}{name}" for name in (*inside, "embed_tokens.weight")]


LANGUAGE = "model.language_model."
# Each part: what is quantised of it, and what is not.
QUANTISED: dict[str, tuple[Part, list[str], list[str]]] = {
    "qwen_image's text encoder": (
        qwen_image.TEXT_ENCODER,
        name_linears(LANGUAGE),
        [*name_others(LANGUAGE), "model.visual.blocks.0.mlp.up_proj.weight"],
    ),
    "qwen_image's transformer": (
        qwen_image.TRANSFORMER,
        [
            "transformer_blocks.59.attn.to_out.0.weight",
            "transformer_blocks.0.txt_mlp.net.0.proj.weight",
        ],
        [
            "transformer_blocks.0.attn.to_out.0.bias",
            "transformer_blocks.0.attn.norm_q.weight",
            "transformer_blocks.0.attn.to_outx0.weight",
            "proj_out.weight",
        ],
    ),
    "flux2's text encoder": (
        flux2.TEXT_ENCODER,
        # Qwen3's, and Mistral 3's, which has a language model inside
        [*name_linears("model."), *name_linears(LANGUAGE)],
        [*name_others("model."), *name_others(LANGUAGE)],
    ),
    "flux2's transformer": (
        flux2.TRANSFORMER,
        [
            *(f"transformer_blocks.4.attn.to_{x}.weight" for x in "qkv"),
            *(f"transformer_blocks.0.attn.add_{x}_proj.weight" for x in "qkv"),
            "transformer_blocks.0.attn.to_out.0.weight",
            "transformer_blocks.0.attn.to_add_out.weight",
            "transformer_blocks.0.ff.linear_in.weight",
            "transformer_blocks.0.ff_context.linear_out.weight",
            "single_transformer_blocks.19.attn.to_qkv_mlp_proj.weight",
            "single_transformer_blocks.19.attn.to_out.weight",
        ],
        [
            "transformer_blocks.0.attn.norm_q.weight",
            "transformer_blocks.0.attn.to_out.0.bias",
            "context_embedder.weight",
            "double_stream_modulation_img.linear.weight",
            "proj_out.weight",
        ],
    ),
    "orpheus's language model": (
        orpheus.LANGUAGE,
        name_linears("model."),
        [*name_others("model."), "lm_head.weight"],
    ),
}


@pytest.mark.parametrize("which", QUANTISED)
def test_the_linears_of_the_blocks_are_quantised_and_nothing_else(which: str) -> None:
    part, quantised, others = QUANTISED[which]
    assert part.quantised is not None
    found = [name for name in (*quantised, *others) if part.quantised.fullmatch(name)]
    assert found == quantised
