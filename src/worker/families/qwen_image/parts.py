"""The components of a Qwen-Image: how each is published, and what a bundle holds of it."""

import re
from collections.abc import Iterable
from typing import Final

from worker.bundle.recipe import Modules, Naming, Part, Replaced, Work
from worker.bundle.stream import Transform
from worker.families.qwen_image import modules, rows
from worker.families.qwen_image.lightning import LIGHTNING_MODULES
from worker.families.qwen_image.modulation import MODULATION
from worker.families.qwen_image.transform import Transformer


def rename_text(name: str) -> str | None:
    """Return the name that a published tensor of the text encoder has in our modules.

    It is published under the names of transformers 4 ("model.layers", "visual"), whose modules
    have moved since. The stock model runs lm_head over every token and never uses the result: it
    is dropped (None).
    """
    if name == "lm_head.weight":
        return None
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model")):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name


def restore_text(published: Iterable[str]) -> Naming:
    """Return what gives our tensors the names that the publisher of `published` uses."""
    if not any(rename_text(name) not in (name, None) for name in published):
        return lambda name: name

    def show(name: str) -> str:
        if name.startswith("model.language_model."):
            return f"model.{name.removeprefix('model.language_model.')}"
        return name.removeprefix("model.") if name.startswith("model.visual.") else name

    return show


def make_transform(work: Work) -> Transform:
    """Return what makes a transformer's files, with a row for every timestep of its schedule."""
    return Transformer(work, rows.compute_keys(work.published.configs["scheduler"]))


# img_in, txt_in, time_text_embed, norm_out, proj_out, norms and the vision tower are sensitive and
# small: they stay bf16. The modulation becomes rows.
TRANSFORMER: Final = Part(
    "transformer",
    Modules(modules.build_transformer),
    quantised=re.compile(
        rf"transformer_blocks\.\d+\.({'|'.join(map(re.escape, LIGHTNING_MODULES))})\.weight"
    ),
    replaced=Replaced(MODULATION, rows.describe_rows, rows.count_row_bytes, make_transform),
)
TEXT_ENCODER: Final = Part(
    "text_encoder",
    Modules(
        modules.build_text_encoder,
        modules.remove_head,
        modules.describe_text_encoder,
        streamed=modules.stream_text_encoder,
    ),
    keep=rename_text,
    shown=restore_text,
    quantised=re.compile(
        r"model\.language_model\.layers\.\d+\."
        r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight"
    ),
    is_shared=True,
)
VAE: Final = Part("vae", Modules(modules.build_vae, final=modules.keep_frames), is_shared=True)
WITH_WEIGHTS: Final = (TRANSFORMER, TEXT_ENCODER, VAE)
COPIED: Final = (
    Part("tokenizer"),
    Part("processor", is_optional=True),
    Part("scheduler"),
)
