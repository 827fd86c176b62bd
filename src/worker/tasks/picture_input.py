"""The fields of a picture's job, and how each is read."""

import re
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from worker.edge import fields
from worker.edge.fields import CommonInput, Listed, Number, Plain, Visible, Whole, Word, show
from worker.loras.origin import LoraWord
from worker.media.fetch import ImageSource
from worker.tasks import adapter, reference, repaint
from worker.tasks.preset import Preset
from worker.tasks.repaint import Margins, read_margins
from worker.tasks.size import LARGEST, NAMED, RATIOS, SMALLEST, describe_words

# A schedule of the most steps, 100, ends where this strength begins: all have what it needs.
LEAST_STRENGTH: Final = 0.01
BLUR: Final = 8

REFERENCES: Final = Listed(
    "picture",
    4,
    {"image_2": 2, "image_3": 3, "image_4": 4},
    (*reference.KEYS, reference.WEIGHT),
)
WIDTH_X_HEIGHT: Final = re.compile(r"([0-9]{1,6})[xX*]([0-9]{1,6})")


class Pixels(NamedTuple):
    """A size that was written as one string."""

    width: int
    height: int


def _read_size_word(value: Any) -> Pixels | Literal["auto", "input"]:
    if isinstance(value, str):
        if value.lower() == "auto":
            return "auto"
        if value.lower() == "input":
            return "input"
        if match := WIDTH_X_HEIGHT.fullmatch(value):
            return _check_sides(Pixels(int(match[1]), int(match[2])), value)
        if value.lower() in NAMED:
            return Pixels(*NAMED[value.lower()])
    if isinstance(value, dict):
        return _read_sides(value)
    raise ValueError(f'must be "WxH", "W*H", "auto" or "input" (got {show(value)})')


def _read_sides(value: dict[Any, Any]) -> Pixels:
    """Read fal's form of a size."""
    width, height = value.get("width"), value.get("height")
    if value.keys() != {"width", "height"} or type(width) is not int or type(height) is not int:
        raise ValueError('an object must have "width" and "height", whole numbers, alone')
    return _check_sides(Pixels(width, height), f"{width}x{height}")


def _check_sides(pixels: Pixels, given: str) -> Pixels:
    if min(pixels) < SMALLEST or max(pixels) > LARGEST:
        raise ValueError(f"each side must be {SMALLEST} to {LARGEST} (got {show(given)})")
    return pixels


def _read_flag(value: Any) -> Any:
    """Read a boolean that is 0 or 1 in the API that its alias comes from."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return bool(value) if is_number and value in (0, 1) else value


Side = Annotated[int, Whole, Field(ge=SMALLEST, le=LARGEST)]
References = Annotated[
    list[Annotated[ImageSource, BeforeValidator(reference.read_reference)]],
    fields.limit_length(REFERENCES.most),
    WithJsonSchema(reference.describe_list(REFERENCES.most)),
]


SizeWord = Annotated[
    Pixels | Literal["auto", "input"],
    PlainValidator(_read_size_word),
    WithJsonSchema(describe_words()),
]


LoraWords = Annotated[
    list[Annotated[LoraWord, BeforeValidator(adapter.read_lora)]],
    fields.limit_length(adapter.MOST_LORAS),
    BeforeValidator(adapter.split_loras),
    WithJsonSchema(adapter.describe_loras()),
]
Mask = Annotated[
    ImageSource,
    BeforeValidator(reference.read_source),
    WithJsonSchema(reference.describe_one()),
]
Outpaint = Annotated[
    Margins, BeforeValidator(read_margins), WithJsonSchema(repaint.describe_margins())
]


class PictureInput(CommonInput):
    """What a job's `input` may have for a picture; None is what was left out or sent as null."""

    prompt: Annotated[str, Field(min_length=1, max_length=5000), Plain, Visible] | None = (
        fields.declare(
            "string, 1-5000 characters; blanks alone, NUL and lone surrogates are refused",
            "required",
            "text",
            place=fields.WHAT,
        )
    )
    negative_prompt: Annotated[str, Field(max_length=2000), Plain] | None = fields.declare(
        'string, up to 2000 characters; used when CFG > 1; " " asks for none',
        'the model\'s own when CFG > 1: " ", for most models',
        "negative",
        place=fields.WHAT,
    )
    images: References | None = fields.declare(
        '1-4 of: https URL, data URI, base64, or `{"image"\\|"url"\\|"data"\\|"base64": ...}`, '
        'there also with a "weight"; never a file path',
        "none",
        "image",
        "image_url",
        "image_urls",
        "image_base64",
        "init_image",
        "input_image",
        "reference_images",
        "image[]",
        *REFERENCES.slots,
        place=fields.WHAT,
        listed=REFERENCES,
    )
    reference_weights: (
        Annotated[
            list[
                Annotated[float, Number, Field(ge=0, le=reference.MOST_WEIGHT, allow_inf_nan=False)]
            ],
            fields.limit_length(REFERENCES.most),
        ]
        | None
    ) = fields.declare(
        "0-4 for each of `images`: how often it counts, 0 for not at all; see"
        " [References](#references)",
        "1 for each",
    )
    width: Side | None = fields.declare(
        "pixels, 64 to the worker's limit, floored to a multiple of 16 and reported in `adjusted`",
        "see [Sizes](#sizes)",
    )
    height: Side | None = fields.declare("as `width`", "see [Sizes](#sizes)")
    size: SizeWord | None = fields.declare(
        '"WxH", "W*H", "auto", "input" (edit: exactly the last image\'s size), '
        '`{"width": W, "height": H}` or fal\'s names such as "square_hd"',
        "auto",
        "image_size",
    )
    aspect_ratio: (
        Literal[
            "1:1",
            "16:9",
            "9:16",
            "4:3",
            "3:4",
            "3:2",
            "2:3",
            "4:5",
            "5:4",
            "2:1",
            "1:2",
            "21:9",
            "9:21",
            "3:1",
            "1:3",
            "match_input_image",
        ]
        | None
    ) = fields.declare(
        f"{' '.join(RATIOS)} match_input_image",
        "edit: match_input_image; text-to-image: the model's own size",
    )
    num_inference_steps: Annotated[int, Whole, Field(ge=2, le=100)] | None = fields.declare(
        "2-100; with Lightning one of the counts that this worker has loaded",
        "the first of LIGHTNING_STEPS; without Lightning the model's",
        "steps",
    )
    true_cfg_scale: Annotated[float, Number, Field(ge=1, le=20, allow_inf_nan=False)] | None = (
        fields.declare(
            "1-20; with Lightning set to 1.0, with a warning",
            "the model's; with Lightning 1.0",
            "cfg_scale",
            "guidance_scale",
            "guidance",
            "cfg",
        )
    )
    lightning: bool | None = fields.declare(
        "boolean", "USE_LIGHTNING_LORA", "use_lightning", "go_fast"
    )
    preset: Annotated[Preset, Word] | None = fields.declare(
        "`fast`, `balanced`, `quality`: steps, CFG and Lightning that are not given, reported in"
        " `adjusted`",
        "none",
    )
    strength: (
        Annotated[float, Number, Field(ge=LEAST_STRENGTH, le=1, allow_inf_nan=False)] | None
    ) = fields.declare(
        "0.01-1, how far the picture may change: 1 begins from noise alone;"
        " see [Strength and masks](#strength-and-masks)",
        "img2img: the model's; inpaint and outpaint: 1",
        "prompt_strength",
        "denoise",
        "denoising_strength",
    )
    mask: Mask | None = fields.declare(
        "as one of `images`: white is repainted; where its alpha varies, transparent is",
        "none",
        "mask_image",
        "mask_url",
        "mask_base64",
        listed=Listed("mask", 1, {}, reference.KEYS),
    )
    invert_mask: Annotated[bool, BeforeValidator(_read_flag)] | None = fields.declare(
        "boolean, or 0 and 1: black is repainted", "false", "inpainting_mask_invert"
    )
    mask_blur: Annotated[int, Whole, Field(ge=0, le=repaint.MOST_BLUR)] | None = fields.declare(
        "0-64 pixels of the picture over which what is repainted fades into what is not", f"{BLUR}"
    )
    preserve_unmasked: bool | None = fields.declare(
        "boolean; false: all of the picture is as the model makes it", "true"
    )
    outpaint: Outpaint | None = fields.declare(
        "`{left, top, right, bottom}`: pixels that are added to the picture, 0-4096 each",
        "none",
    )
    loras: LoraWords | None = fields.declare(
        'a list of {"path"|"url"|"name", "scale"}, such words alone, or {name: scale};'
        " see [LoRAs](#loras)",
        "none",
        "lora",
        "lora_weights",
        "lora_url",
        listed=adapter.LISTED,
    )
    lora_scale: Annotated[float, Number, Field(ge=-2, le=2, allow_inf_nan=False)] | None = (
        fields.declare("-2 to 2, for each of `loras` without a scale of its own", "1")
    )
