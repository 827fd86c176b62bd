"""The components of a FLUX.2: how each is published, and what a bundle holds of it."""

import re
from collections.abc import Iterable
from typing import Final

from worker.bundle.recipe import Modules, Naming, Part
from worker.families.flux2 import modules

# Entries of a model_index.json by which two models with equal parts differ.
SWITCHES: Final = ("is_distilled",)
# What Mistral 3's parts are called in files of transformers 4 -> in our modules.
MOVED: Final = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "vision_tower.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}


def rename_text(name: str) -> str | None:
    """Return the name that a published tensor of the text encoder has in our modules."""
    for theirs, ours in MOVED.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def restore_text(published: Iterable[str]) -> Naming:
    """Return what gives our tensors the names that the publisher of `published` uses."""
    if not any(name.startswith(tuple(MOVED)) for name in published):
        return lambda name: name

    def show(name: str) -> str:
        for theirs, ours in MOVED.items():
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        return name

    return show


# The Linears of the blocks alone: the embedders, the three modulations that all blocks share, the
# last layers and all norms are sensitive and small. These are the tensors that the publisher's own
# files in 8 and 4 bits have in fewer bits, by the sizes of those files.
TRANSFORMER: Final = Part(
    "transformer",
    Modules(modules.build_transformer),
    quantised=re.compile(
        r"(?:single_)?transformer_blocks\.\d+\."
        r"(?:attn\.(?:to_[qkv]|to_out(?:\.0)?|add_[qkv]_proj|to_add_out|to_qkv_mlp_proj)"
        r"|ff(?:_context)?\.linear_(?:in|out))\.weight"
    ),
)
TEXT_ENCODER: Final = Part(
    "text_encoder",
    Modules(
        modules.build_text_encoder,
        modules.strip_text_encoder,
        modules.describe_text_encoder,
        streamed=modules.stream_text_encoder,
    ),
    keep=rename_text,
    shown=restore_text,
    quantised=re.compile(
        r"model\.(?:language_model\.)?layers\.\d+\."
        r"(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)\.weight"
    ),
    is_shared=True,
)
VAE: Final = Part(
    "vae",
    Modules(modules.build_vae, modules.keep_statistics, final=modules.arrange_vae),
    is_shared=True,
)
WITH_WEIGHTS: Final = (TRANSFORMER, TEXT_ENCODER, VAE)
COPIED: Final = (Part("tokenizer"), Part("scheduler"))
