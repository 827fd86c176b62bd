"""The components of a Qwen-Image: how each is published, and what a bundle holds of it."""

import re
from collections.abc import Iterable
from typing import Final

from worker.bundle.making import Modules, Naming, Part, Replaced, Work
from worker.bundle.stream import Transform
from worker.families.qwen_image import modules, rows
from worker.families.qwen_image.lightning import LIGHTNING_MODULES
from worker.families.qwen_image.modulation import MODULATION
from worker.families.qwen_image.transform import Transformer


def kept_of_text(name: str) -> str | None:
    """Return the name that a published tensor of the text encoder has in our modules.

    It is published under the names of transformers 4 ("model.layers", "visual"), whose modules have
    moved since. lm_head is run over every token by the stock model and never used: it is None.
    """
    if name == "lm_head.weight":
        return None
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model")):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name


def shown_of_text(published: Iterable[str]) -> Naming:
    """Return what names our tensors as the publisher of these names does."""
    if not any(kept_of_text(name) not in (name, None) for name in published):
        return lambda name: name

    def shown(name: str) -> str:
        if name.startswith("model.language_model."):
            return f"model.{name.removeprefix('model.language_model.')}"
        return name.removeprefix("model.") if name.startswith("model.visual.") else name

    return shown


def transformer_of(work: Work) -> Transform:
    """Return what makes a transformer's files, with a row for every timestep of its schedule."""
    return Transformer(work, rows.keys(work.published.configs["scheduler"]))


# What is quantised: img_in, txt_in, time_text_embed, norm_out, proj_out, norms and the vision tower
# are sensitive and small, they stay bf16. The modulation becomes rows.
TRANSFORMER: Final = Part(
    "transformer",
    Modules(modules.transformer),
    quantised=re.compile(
        rf"transformer_blocks\.\d+\.({'|'.join(map(re.escape, LIGHTNING_MODULES))})\.weight"
    ),
    replaced=Replaced(MODULATION, rows.facts, rows.size, transformer_of),
)
TEXT_ENCODER: Final = Part(
    "text_encoder",
    Modules(modules.text_encoder, modules.without_head, modules.text_encoder_config),
    keep=kept_of_text,
    shown=shown_of_text,
    quantised=re.compile(
        r"model\.language_model\.layers\.\d+\."
        r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight"
    ),
    is_shared=True,
)
VAE: Final = Part("vae", Modules(modules.vae), is_shared=True)
WITH_WEIGHTS: Final = (TRANSFORMER, TEXT_ENCODER, VAE)
COPIED: Final = (
    Part("tokenizer"),
    Part("processor", is_optional=True),
    Part("scheduler"),
)
