"""Qwen-Image's published models: one row per model, and what each pipeline class can do."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from worker.families.family import Family, PictureDefaults, Sizes
from worker.families.qwen_image.planning import estimate_needs
from worker.families.qwen_image.working import RANK_BYTES
from worker.weights.spec import LoraFile, ModelSpec, Parts

MODULE: Final = "worker.families.qwen_image.model"
DEFAULT: Final = "qwen-image-edit-2511"
EMBEDDED: Final = "tiny"

# Width and height by aspect ratio, as the model cards of Qwen-Image give them.
PUBLISHED_SIZES: Final[Sizes] = {
    "1:1": (1328, 1328),
    "16:9": (1664, 928),
    "9:16": (928, 1664),
    "4:3": (1472, 1104),
    "3:4": (1104, 1472),
    "3:2": (1584, 1056),
    "2:3": (1056, 1584),
}
TINY_AREA: Final = 96 * 96
# As RANK_BYTES, of 6 blocks of 128 channels.
TINY_RANK_BYTES: Final = 2 * 6 * 50 * 128
TINY_SIZES: Final[Sizes] = {
    "1:1": (96, 96),
    "16:9": (128, 64),
    "9:16": (64, 128),
    "4:3": (112, 80),
    "3:4": (80, 112),
    "3:2": (112, 80),
    "2:3": (80, 112),
}

# The publisher's negative prompt for Qwen-Image-2512 (README of QwenLM/Qwen-Image): low resolution,
# low quality, deformed limbs and fingers, oversaturation, waxen faces, chaos, blurred or warped
# text.
NEGATIVE_2512: Final = (
    "低分辨率，低画质，肢体畸形，手指畸形，画面过饱和，蜡像感，人脸无细节，过度光滑，画面具有AI感。"  # noqa: RUF001 - the publisher's own
    "构图混乱。文字模糊，扭曲。"  # noqa: RUF001 - the publisher's own
)

PARTS: Final = Parts(
    weights=("transformer", "text_encoder", "vae"), beside=("tokenizer", "processor", "scheduler")
)
# Without the processor, which only models that edit have.
FORM: Final = "a diffusers checkpoint (transformer/, text_encoder/, vae/, tokenizer/, scheduler/)"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What a pipeline class does: its tasks, and its defaults."""

    tasks: tuple[str, ...]
    defaults: PictureDefaults


def _make_defaults(steps: int, max_references: int) -> PictureDefaults:
    """Return what the published models have in common."""
    return PictureDefaults(
        steps=steps,
        max_references=max_references,
        sizes=PUBLISHED_SIZES,
        true_cfg_scale=4.0,
        negative_prompt=" ",
        # That of diffusers' QwenImageImg2ImgPipeline.
        strength=0.6,
        rank_bytes=RANK_BYTES,
    )


FROM_REFERENCES: Final = ("edit", "inpaint", "outpaint")
# diffusers' class name, as model_index.json gives it -> what the model can do.
# QwenImageEditPipeline (the first edition) resizes its one reference to the output's area and puts
# no "Picture 1:" before it; EditPlus (2509 and later) takes up to three.
PIPELINES: Final[Mapping[str, Pipeline]] = {
    "QwenImagePipeline": Pipeline(
        ("text-to-image", "img2img", "inpaint", "outpaint"),
        _make_defaults(50, 0),
    ),
    "QwenImageEditPipeline": Pipeline(FROM_REFERENCES, _make_defaults(50, 1)),
    "QwenImageEditPlusPipeline": Pipeline(FROM_REFERENCES, _make_defaults(40, 3)),
}


def _make_row(
    name: str, repository: str, pipeline: str, lightning: tuple[str | None, str], **own: Any
) -> ModelSpec:
    """Return a row; `lightning` is its LoRAs' repository and file names, `own` its own defaults."""
    where, pattern = lightning
    return ModelSpec(
        name,
        repository,
        pipeline,
        family=MODULE,
        tasks=PIPELINES[pipeline].tasks,
        defaults=replace(PIPELINES[pipeline].defaults, **own),
        licence="apache-2.0",
        lightning={n: LoraFile(where, pattern.format(n=n)) for n in (8, 4)},
        parts=PARTS,
    )


def _make_embedded(name: str, folder: str, pipeline: str) -> ModelSpec:
    """Return the row of a model that ships in checkpoints/."""
    lightning = (None, "lightning/tiny-Lightning-{n}steps.safetensors")
    row = _make_row(
        name,
        folder,
        pipeline,
        lightning,
        steps=40,
        area=TINY_AREA,
        sizes=TINY_SIZES,
        rank_bytes=TINY_RANK_BYTES,
    )
    return replace(row, embedded=folder, needs_gpu=False)


TABLE: Final = (
    _make_row(
        "qwen-image",
        "Qwen/Qwen-Image",
        "QwenImagePipeline",
        (
            "lightx2v/Qwen-Image-Lightning",
            "Qwen-Image-Lightning-{n}steps-V2.0-bf16.safetensors",
        ),
    ),
    _make_row(
        "qwen-image-2512",
        "Qwen/Qwen-Image-2512",
        "QwenImagePipeline",
        (
            "lightx2v/Qwen-Image-2512-Lightning",
            "Qwen-Image-2512-Lightning-{n}steps-V1.0-bf16.safetensors",
        ),
        negative_prompt=NEGATIVE_2512,
    ),
    _make_row(
        "qwen-image-edit",
        "Qwen/Qwen-Image-Edit",
        "QwenImageEditPipeline",
        (
            "lightx2v/Qwen-Image-Lightning",
            "Qwen-Image-Edit-Lightning-{n}steps-V1.0-bf16.safetensors",
        ),
    ),
    _make_row(
        "qwen-image-edit-2509",
        "Qwen/Qwen-Image-Edit-2509",
        "QwenImageEditPlusPipeline",
        (
            "lightx2v/Qwen-Image-Lightning",
            "Qwen-Image-Edit-2509/Qwen-Image-Edit-2509-Lightning-{n}steps-V1.0-bf16.safetensors",
        ),
    ),
    _make_row(
        "qwen-image-edit-2511",
        "Qwen/Qwen-Image-Edit-2511",
        "QwenImageEditPlusPipeline",
        (
            "lightx2v/Qwen-Image-Edit-2511-Lightning",
            "Qwen-Image-Edit-2511-Lightning-{n}steps-V1.0-bf16.safetensors",
        ),
    ),
    _make_embedded("tiny-image", "tiny/image", "QwenImagePipeline"),
    _make_embedded("tiny-edit", "tiny/edit", "QwenImageEditPlusPipeline"),
)


def _complete(pipeline: str, spec: ModelSpec, about: Mapping[str, Any]) -> ModelSpec:
    """Complete a model from outside the table by its class and its worker.json ("area", pixels)."""
    known, area = PIPELINES[pipeline], about.get("area")
    defaults = known.defaults
    if isinstance(area, int) and area > 0:
        sizes = TINY_SIZES if area == TINY_AREA else defaults.sizes
        defaults = replace(defaults, area=area, sizes=sizes)
    return replace(spec, family=MODULE, tasks=known.tasks, defaults=defaults, parts=PARTS)


FAMILY: Final = Family(
    rows=TABLE,
    classes={pipeline: partial(_complete, pipeline) for pipeline in PIPELINES},
    form=FORM,
    groups={EMBEDDED: ("tiny-image", "tiny-edit")},
    needs=estimate_needs,
)
