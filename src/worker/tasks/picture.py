"""Pictures from text and from pictures: fields, offer, checks, the wish, a warm-up."""

import asyncio
import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, Literal, NamedTuple, cast

from PIL import Image
from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from worker.edge import fields
from worker.edge.blank import is_blank
from worker.edge.echo import declare_private, declare_public, show_given
from worker.edge.fields import CommonInput, Listed, Number, Plain, Visible, Whole, Word, show
from worker.edge.verdict import Verdict
from worker.errors import InvalidInput
from worker.loras.origin import LoraWord
from worker.loras.ready import ReadyLora, show_loras
from worker.media.fetch import ImageSource
from worker.seam import Served
from worker.settings import Settings
from worker.tasks import adapter, reference, repaint
from worker.tasks.preset import Preset, fill_preset, list_presets
from worker.tasks.repaint import Margins, Repaint, read_margins
from worker.tasks.size import LARGEST, NAMED, RATIOS, SMALLEST, Size, choose, describe_words
from worker.tasks.task import Asked, Settled, Span, Task, Warn
from worker.tasks.way import (
    FROM_PICTURES,
    FROM_TEXT,
    IMG2IMG,
    OUTPAINT,
    USES,
    WAYS,
    Way,
    check_uses,
)

# A schedule of the most steps, 100, ends where this strength begins: all have what it needs.
LEAST_STRENGTH: Final = 0.01
BLUR: Final = 8
ROUNDED: Final = 1e-6

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


@dataclass(frozen=True, slots=True)
class PictureOffer:
    """What one model offers for pictures.

    `area` is the model's native number of pixels; `lightning_steps` are the step counts whose LoRA
    is loaded, the first being the default, empty when none is; `sizes` maps an aspect ratio such as
    "16:9" to (width, height) in pixels. `no_loras` is why a job may bring no LoRAs, None where it
    may; each takes `rank_bytes` of device memory per rank where it reaches all that LoRAs reach.
    `strength` is the default of img2img, None where the model has no such task. Without
    `takes_cfg` there is no negative prompt; `guidance` is the default of a model that takes it as
    an input, None for any other. `weighs_references` says whether a reference may count more or
    less than once.
    """

    steps: int
    true_cfg_scale: float
    negative_prompt: str
    lightning_steps: tuple[int, ...]
    area: int
    max_pixels: int
    max_references: int
    sizes: Mapping[str, tuple[int, int]]
    no_loras: str | None = "this model takes none"
    strength: float | None = None
    takes_cfg: bool = True
    guidance: float | None = None
    weighs_references: bool = False
    rank_bytes: int = 0

    def describe(self, settings: Settings) -> Mapping[str, Any]:
        """Return what op=capabilities reports about it.

        Sizes are pixels; `steps` are the base schedule's default, `lightning_steps` the counts
        whose LoRA is loaded.
        """
        return {
            "steps": self.steps,
            "true_cfg_scale": self.true_cfg_scale,
            "negative_prompt": self.negative_prompt,
            "lightning_steps": list(self.lightning_steps),
            "area": self.area,
            "max_pixels": self.max_pixels,
            "max_images": self.count_most(settings),
            "max_loras": 0 if self.no_loras else settings.max_loras,
            **({} if self.no_loras else self._describe_loras()),
            **({} if self.strength is None else {"strength": self.strength}),
            **({} if self.guidance is None else {"guidance": self.guidance}),
            **({"max_reference_weight": reference.MOST_WEIGHT} if self.weighs_references else {}),
            "sizes": {ratio: list(size) for ratio, size in self.sizes.items()},
            "presets": {name: row._asdict() for name, row in list_presets(self, settings).items()},
        }

    def _describe_loras(self) -> dict[str, int]:
        """Return what LoRAs take of the device's memory, where that is known."""
        return {"lora_bytes_per_rank": self.rank_bytes} if self.rank_bytes else {}

    def count_most(self, settings: Settings) -> int:
        """Return the most pictures that a job may give: one to begin from, or references."""
        least = 0 if self.strength is None else 1
        return max(min(self.max_references, settings.max_input_images), least)


@dataclass(frozen=True, slots=True)
class PictureWish:
    """One picture to make: everything resolved, nothing left to choose.

    `negative_prompt` is None when no CFG runs. `references` are RGB pictures, upright, in the
    caller's order. `width` and `height` are pixels, multiples of 16, at which the picture is
    generated; `final` is the (width, height) at which it is delivered, None for the same.

    `source` is the picture that it begins from as far as `strength` says, None for noise alone. The
    white of `mask` (L, of its size) is repainted, None for all of it; with `preserves`, what is
    delivered has the source's own pixels elsewhere. `start_noise` is the part of the beginning that
    was noise, 0 to 1, found while the picture is made. `reference_weights` are how often each
    reference counts, empty where each counts once. `guidance` is that of a model which takes it as
    an input, None for any other.

    `previews` is how many pictures on the way are handed over while it is made.
    `ahead` is the model's: what it has done for the wish before its turn, if anything.
    """

    prompt: str = declare_public()
    negative_prompt: str | None = declare_public()
    task: str = declare_public(text="")  # a file has it next to the model, as in every task
    seed: int = declare_public()
    steps: int = declare_public("num_inference_steps", text="steps")
    true_cfg_scale: float = declare_public()
    # True only if all of the LoRA was applied and its schedule was used: else nothing is made.
    lightning: bool = declare_public("lightning_enabled", text="lightning")
    references: tuple[Image.Image, ...] = declare_private()
    width: int = declare_private(log=True)
    height: int = declare_private(log=True)
    final: tuple[int, int] | None = declare_private(default=None)
    loras: tuple[ReadyLora, ...] = declare_public(show=show_loras, default=())
    source: Image.Image | None = declare_private(default=None)  # noqa: RUF009 - a field
    mask: Image.Image | None = declare_private(default=None)  # noqa: RUF009 - a field
    preserves: bool = declare_private(default=True)
    strength: float | None = declare_public(show=show_given, default=None)
    start_noise: float | None = declare_public(show=show_given, default=None)
    reference_weights: tuple[float, ...] = declare_public(show=list, default=())
    guidance: float | None = declare_public(show=show_given, default=None)
    previews: int = declare_private(default=0)
    ahead: object = declare_private(default=None, compare=False, repr=False)

    @property
    def run_steps(self) -> int:
        """How many of the steps run: those from where `strength` begins.

        A strength that is a step's own, but for rounding, begins at that step.
        """
        return max(1, math.ceil((self.strength or 1.0) * self.steps - ROUNDED))


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureAsked(Asked):
    """What a job requests of a picture; the pictures settle `size`, within the `offer`.

    The first of them is repainted as `repaint` says, if at all. With `sees` the model has them as
    references. `adjusted` is what is known before.
    """

    size: Size
    offer: PictureOffer
    repaint: Repaint | None = None
    sees: bool = True
    adjusted: Mapping[str, Sequence[Any]] = field(default_factory=dict)


def offer_of(model: Served) -> PictureOffer:
    """Return what a model offers for pictures; raises StopIteration when that is nothing."""
    return next(offer for offer in model.offers.values() if isinstance(offer, PictureOffer))


def compare(values: PictureInput, verdict: Verdict, *, way: Way) -> None:
    """Check the fields against the task, and those of the size against each other."""
    check_uses(values, verdict, way)
    _compare_sizes(values, verdict, has_pictures=way.sign is not None)


def _compare_sizes(values: PictureInput, verdict: Verdict, *, has_pictures: bool) -> None:
    width, height, aspect = values.width, values.height, values.aspect_ratio
    named = next((name for name in ("width", "height") if getattr(values, name)), None)
    as_input = values.size == "input"
    if isinstance(values.size, Pixels):
        for name, one in (("width", width), ("height", height)):
            if one is not None and one != getattr(values.size, name):
                verdict.add_fault("size", f"differs from {name}")
        width, height = values.size
    elif as_input and named is not None:
        verdict.add_fault("size", f"input cannot be combined with {named}")
    if as_input and not has_pictures:
        verdict.add_fault("size", "input is for edit: there is no input picture")
    if aspect is not None and width is not None and height is not None:
        verdict.warn("aspect_ratio", "has no effect with width and height")
    if aspect == "match_input_image" and not has_pictures:
        verdict.add_fault("aspect_ratio", "match_input_image is for edit")
    elif aspect not in (None, "match_input_image") and as_input:
        verdict.add_fault("aspect_ratio", "differs from size input")


def judge(
    values: PictureInput, model: Served, verdict: Verdict, settings: Settings, *, way: Way
) -> PictureAsked:
    """Check the fields against what a model offers."""
    offer = cast("PictureOffer", model.offers[way.name])
    values, adjusted = fill_preset(values, offer, settings, verdict)
    _check_references(values, model, offer, settings, verdict, way)
    lightning, steps = _choose_steps(values, model, offer, settings, verdict)
    scale, negative_prompt = _choose_cfg(values, offer, lightning=lightning, verdict=verdict)
    size = _read_size(values, verdict, way)
    if not settings.shrink:
        _check_limits(size, offer, verdict, way)
    draft = PictureWish(
        prompt=values.prompt or "",
        negative_prompt=negative_prompt,
        task=way.name,
        seed=0,
        steps=steps,
        true_cfg_scale=scale,
        lightning=lightning,
        references=(),
        width=0,
        height=0,
        preserves=values.preserve_unmasked is not False,
        strength=_choose_strength(values, offer, way),
        reference_weights=_choose_weights(values, model, offer, verdict, way),
        guidance=_choose_guidance(values, offer),
    )
    sources = tuple(values.images or ())
    if values.mask is not None:
        sources += (replace(values.mask, field=verdict.find_word("mask")),)
    loras = adapter.choose_loras(
        values.loras or (), values.lora_scale, settings, verdict, refusal=offer.no_loras
    )
    return PictureAsked(
        draft,
        draft.prompt,
        sources,
        loras,
        size=size,
        offer=offer,
        repaint=_choose_repaint(values, verdict, way),
        sees=FROM_PICTURES in model.offers and way.name != IMG2IMG,
        adjusted=adjusted,
    )


async def settle(
    asked: PictureAsked, fetched: Sequence[bytes], settings: Settings, warn: Warn
) -> Settled:
    """Decode the pictures and choose the size.

    The size follows the last picture, or the first where that is repainted. Raises as
    media.images.decode, `choose` and Repaint.apply.
    """
    has_mask = asked.repaint is not None and asked.repaint.margins is None
    shown, mask = (fetched[:-1], fetched[-1]) if has_mask else (fetched, None)
    pictures, warnings = await reference.decode_all(shown, settings.max_image_pixels)
    for text in warnings:
        warn(text)
    begins = asked.draft.strength is not None
    size = pictures[-1].size if pictures else None
    if asked.repaint is not None:
        size = asked.repaint.measure(pictures[0].size)
    chosen = choose(asked.size, asked.offer, size, shrink=settings.shrink)
    for text in chosen.warnings:
        warn(text)
    part = None
    if asked.repaint is not None:
        part = await asyncio.to_thread(asked.repaint.apply, pictures[0], mask, settings, warn)
        pictures = (part.image, *pictures[1:])
    wish = replace(
        asked.draft,
        references=pictures if asked.sees else (),
        source=pictures[0] if begins else None,
        mask=None if part is None else part.mask,
        width=chosen.width,
        height=chosen.height,
        final=chosen.final,
    )
    return Settled(wish, {**asked.adjusted, **chosen.adjusted})


def _choose_strength(values: PictureInput, offer: PictureOffer, way: Way) -> float | None:
    """Choose where to begin, None where it is not from a picture."""
    if not way.begins:
        return None
    if values.strength is not None:
        return values.strength
    return 1.0 if way.part is not None or offer.strength is None else offer.strength


def _choose_repaint(values: PictureInput, verdict: Verdict, way: Way) -> Repaint | None:
    """Choose how the part that is repainted is found, None where it is all of the picture."""
    if way.part is None:
        return None
    return Repaint(
        blur=BLUR if values.mask_blur is None else values.mask_blur,
        invert=bool(values.invert_mask),
        margins=values.outpaint if way.part == OUTPAINT else None,
        field=verdict.find_word(way.part),
    )


def _check_references(
    values: PictureInput,
    model: Served,
    offer: PictureOffer,
    settings: Settings,
    verdict: Verdict,
    way: Way,
) -> None:
    if verdict.is_broken("images"):
        return
    count = len(values.images or ())
    most = offer.count_most(settings)
    if way.sign is None:
        if count:
            message = "text-to-image takes none; leave it out or ask for task edit"
            verdict.add_fault("images", message)
    elif not count:
        verdict.add_fault("images", f"is required for {way.name}")
    elif way.name == IMG2IMG and count > 1:
        verdict.add_fault("images", f"must be one for img2img (got {count})")
    elif count > most:
        verdict.add_fault("images", f"must be at most {most} for {model.id} (got {count})")


def _choose_steps(
    values: PictureInput, model: Served, offer: PictureOffer, settings: Settings, verdict: Verdict
) -> tuple[bool, int]:
    """Choose Lightning or not, and the number of steps."""
    loaded, steps = offer.lightning_steps, values.num_inference_steps
    lightning = settings.use_lightning_lora if values.lightning is None else values.lightning
    if lightning and not loaded:
        if values.lightning:
            verdict.add_fault("lightning", f"no Lightning LoRA is loaded for {model.id}")
        lightning = False
    if loaded and not lightning and settings.lightning_fused:
        verdict.add_fault("lightning", f"cannot be turned off: {model.id} has it baked in here")
        lightning = True
    if not lightning:
        return False, steps or offer.steps
    if steps is not None and steps not in loaded:
        counts = " or ".join(map(str, loaded))
        others = "" if settings.lightning_fused else ", or lightning must be false"
        verdict.add_fault(
            "num_inference_steps", f"must be {counts} with Lightning{others} (got {steps})"
        )
    return True, steps or loaded[0]


def _choose_cfg(
    values: PictureInput, offer: PictureOffer, *, lightning: bool, verdict: Verdict
) -> tuple[float, str | None]:
    """Choose the CFG scale and, where CFG runs, the negative prompt."""
    if not offer.takes_cfg:
        _refuse_cfg(values, offer, verdict)
        return 1.0, None
    scale = offer.true_cfg_scale if values.true_cfg_scale is None else values.true_cfg_scale
    if lightning:
        if values.true_cfg_scale not in (None, 1.0):
            message = (
                f"set to 1.0, since Lightning runs without CFG (got {values.true_cfg_scale:g})"
            )
            verdict.warn("true_cfg_scale", message)
        scale = 1.0
    if scale > 1:
        return scale, values.negative_prompt or offer.negative_prompt
    if values.negative_prompt and not is_blank(values.negative_prompt):
        verdict.warn("negative_prompt", "has no effect at a true_cfg_scale of 1.0")
    return scale, None


def _refuse_cfg(values: PictureInput, offer: PictureOffer, verdict: Verdict) -> None:
    """Refuse a negative prompt, and warn of a scale, where a model runs without CFG."""
    if values.negative_prompt and not is_blank(values.negative_prompt):
        verdict.add_fault("negative_prompt", "this model runs without CFG and takes none")
    if offer.guidance is None and values.true_cfg_scale not in (None, 1.0):
        message = f"set to 1.0: this model runs without CFG (got {values.true_cfg_scale:g})"
        verdict.warn("true_cfg_scale", message)


def _choose_guidance(values: PictureInput, offer: PictureOffer) -> float | None:
    """Choose the guidance of a model that takes it as an input, None for any other."""
    if offer.guidance is None or values.true_cfg_scale is None:
        return offer.guidance
    return values.true_cfg_scale


def _choose_weights(
    values: PictureInput, model: Served, offer: PictureOffer, verdict: Verdict, way: Way
) -> tuple[float, ...]:
    """Choose how often each reference counts, nothing where no weight is given."""
    images, listed = values.images or (), values.reference_weights
    beside = [image.weight for image in images]
    has_own = any(weight is not None for weight in beside)
    if verdict.is_broken("images", "reference_weights") or (listed is None and not has_own):
        return ()
    name = "images" if listed is None else "reference_weights"
    if listed is not None and has_own:
        verdict.add_fault(name, "cannot be combined with weights in images")
        return ()
    weights = tuple(1.0 if weight is None else weight for weight in beside)
    if listed is not None:
        weights = tuple(listed)
    if way.name not in USES["reference_weights"]:
        if listed is None:
            verdict.add_fault(name, f"have no weights in {way.name}")
        return ()
    if len(weights) != len(images):
        verdict.add_fault(name, f"must be one for each of {len(images)} (got {len(weights)})")
    elif not offer.weighs_references and any(weight != 1 for weight in weights):
        verdict.add_fault(
            name,
            f"must be 1 for {model.id}: its prompt has seen the references, so that a weight has no"
            " meaning there",
        )
    return weights


def _read_size(values: PictureInput, verdict: Verdict, way: Way) -> Size:
    """Combine width, height, size and aspect_ratio; without any, repainting keeps the size."""
    aspect = None if values.aspect_ratio == "match_input_image" else values.aspect_ratio
    if isinstance(values.size, Pixels):
        return Size(*values.size, aspect, field=verdict.find_word("size"))
    named = next((name for name in ("width", "height") if getattr(values, name)), None)
    word = verdict.find_word(named or ("size" if values.size else "aspect_ratio"))
    is_open = named is None and values.size is None and values.aspect_ratio is None
    if is_open and way.part is not None:
        return Size(as_input=True)
    return Size(values.width, values.height, aspect, values.size == "input", word)


def _check_limits(size: Size, offer: PictureOffer, verdict: Verdict, way: Way) -> None:
    """Check a size that is known before the references are, with the other faults."""
    needs_reference = size.as_input or (way.sign is not None and size.aspect_ratio is None)
    if needs_reference and (size.width is None or size.height is None):
        return
    if verdict.is_broken("width", "height", "size", "aspect_ratio"):
        return
    try:
        choose(size, offer, None)
    except InvalidInput as error:
        for detail in error.details:
            verdict.add_fault(detail.field, detail.message)


def warm_up(model: Served) -> PictureWish:
    """Return a wish of the kind that jobs will have, at the model's own size.

    An edit where the model can do it; Lightning where it is loaded, else two steps.
    """
    offer = offer_of(model)
    side = max(SMALLEST, int(offer.area**0.5) // 32 * 32)
    edit = FROM_PICTURES in model.offers
    fast = bool(offer.lightning_steps)
    grey = Image.linear_gradient("L").resize((side, side)).convert("RGB")
    return PictureWish(
        prompt="a warm-up picture",
        negative_prompt=None,
        task=FROM_PICTURES if edit else FROM_TEXT,
        seed=0,
        steps=offer.lightning_steps[0] if fast else 2,
        true_cfg_scale=1.0,
        lightning=fast,
        references=(grey,) if edit else (),
        width=side,
        height=side,
    )


def _make_task(way: Way) -> Task:
    return Task(
        name=way.name,
        input=PictureInput,
        wish=PictureWish,
        key="images",
        noun="picture",
        formats={"png": "png", "jpeg": "jpeg", "jpg": "jpeg", "webp": "webp"},
        smaller=("webp", "jpeg"),
        lossless=("png",),
        advice="output_format jpeg or webp, fewer pictures or a smaller size",
        # Denoising is nearly all of it.
        spans=(
            Span("text", 4, "text"),
            Span("reference", 4, "text"),
            Span("denoise", 88, "denoise", steps="run_steps"),
            Span("decode", 4, "decode"),
        ),
        sign=way.sign,
        unused=way.unused,
        compare=functools.partial(compare, way=way),
        judge=functools.partial(judge, way=way),
        settle=settle,
        has_previews=True,
    )


PICTURE_TASKS: Final[Mapping[str, Task]] = {way.name: _make_task(way) for way in WAYS}
TEXT_TO_IMAGE: Final = PICTURE_TASKS[FROM_TEXT]
EDIT: Final = PICTURE_TASKS[FROM_PICTURES]
