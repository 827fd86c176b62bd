"""The job input as one table: every field with its aliases, type, limits and default."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
)

from worker.edge.blank import is_blank
from worker.edge.geometry import LARGEST, SMALLEST
from worker.edge.pictures import source
from worker.media.fetch import ImageSource

MAX_SEED: Final = 2**63 - 1
MOST_PICTURES: Final = 3
SLOTS: Final[Mapping[str, int]] = {"image_2": 2, "image_3": 3}  # aliases that name a position

INTEGER: Final = re.compile(r"-?[0-9]{1,19}")
DECIMAL: Final = re.compile(r"-?[0-9]{1,19}(?:\.[0-9]{1,19})?")
WIDTH_X_HEIGHT: Final = re.compile(r"([0-9]{1,6})[xX*]([0-9]{1,6})")


class Pixels(NamedTuple):
    """A size that was written as one string."""

    width: int
    height: int


def shown(value: Any) -> str:
    """Return a short, printable form of any JSON value, for a message."""
    if isinstance(value, str):
        short = value if len(value) <= 40 else value[:40] + "..."  # noqa: PLR2004 - a glance
        return ascii(short)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a huge number"
    if value is None or isinstance(value, int | float):
        return "null" if value is None else str(value)
    return {"list": "a list", "dict": "an object"}.get(type(value).__name__, "no JSON value")


def _integer(value: Any) -> Any:
    return int(value) if isinstance(value, str) and INTEGER.fullmatch(value) else value


def _decimal(value: Any) -> Any:
    return float(value) if isinstance(value, str) and DECIMAL.fullmatch(value) else value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _jpeg(value: Any) -> Any:
    return "jpeg" if value == "jpg" else value


def _plain(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain NUL")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain lone surrogates") from None
    return text


def _visible(text: str) -> str:
    if is_blank(text):
        raise ValueError("must have a visible character (got blanks alone)")
    return text


def _seed(value: int) -> int:
    if not -1 <= value <= MAX_SEED:
        raise ValueError(f"must be 0 to 2^63-1, or -1 for a random one (got {shown(value)})")
    return value


def _size(value: Any) -> Pixels | Literal["auto", "input"]:
    if isinstance(value, str):
        if value.lower() == "auto":
            return "auto"
        if value.lower() == "input":
            return "input"
        if match := WIDTH_X_HEIGHT.fullmatch(value):
            pixels, least, most = Pixels(int(match[1]), int(match[2])), SMALLEST, LARGEST
            if min(pixels) < least or max(pixels) > most:
                raise ValueError(f"each side must be {least} to {most} (got {shown(value)})")
            return pixels
    raise ValueError(f'must be "WxH", "W*H", "auto" or "input" (got {shown(value)})')


def _up_to(most: int) -> BeforeValidator:
    """Take one item or a list; the length is judged first, so that a long list costs nothing."""

    def listed(value: Any) -> Any:
        items = value if isinstance(value, list) else [value]
        if not 1 <= len(items) <= most:
            raise ValueError(f"must be 1 to {most} (got {len(items)}); leave it out for none")
        return items

    return BeforeValidator(listed)


def _https(value: str) -> str:
    if not value.lower().startswith(("https://", "http://")):
        raise ValueError("must be an https URL")
    return value


Plain = AfterValidator(_plain)
Visible = AfterValidator(_visible)
Side = Annotated[int, BeforeValidator(_integer), Field(ge=SMALLEST, le=LARGEST)]
Pictures = Annotated[
    list[Annotated[ImageSource, BeforeValidator(source)]],
    _up_to(MOST_PICTURES),
]
Addresses = Annotated[
    list[Annotated[str, Field(max_length=8190), AfterValidator(_https)]],
    _up_to(4),
]
Word = BeforeValidator(_lower)


def _field(description: str, default: str, *aliases: str) -> Any:
    """Declare a field that may be left out; `description` and `default` are what README says."""
    choices = AliasChoices(*aliases) if aliases else None
    return Field(
        None,
        validation_alias=choices,
        description=description,
        json_schema_extra={"default": default},
    )


class JobInput(BaseModel):
    """What a job's `input` may hold; None is what the caller left out or sent as null.

    Only what one field says by itself is judged here; what fields say together, and against the
    models served, is judged by worker.edge.request.
    """

    model_config = ConfigDict(strict=True, frozen=True, validate_by_name=True)

    prompt: Annotated[str, Field(min_length=1, max_length=5000), Plain, Visible] | None = _field(
        "string, 1-5000 characters; blanks alone, NUL and lone surrogates are refused",
        "required",
        "text",
    )
    negative_prompt: Annotated[str, Field(max_length=2000), Plain] | None = _field(
        'string, up to 2000 characters; used when CFG > 1; " " asks for none',
        'the model\'s own when CFG > 1: " ", for most models',
        "negative",
    )
    images: Pictures | None = _field(
        '1-3 of: https URL, data URI, base64, or `{"image"\\|"url"\\|"data"\\|"base64": ...}`; '
        "never a file path",
        "none",
        "image",
        "image_url",
        "image_urls",
        "image_base64",
        "init_image",
        "input_image",
        "reference_images",
        *SLOTS,
    )
    task: (
        Annotated[Literal["text-to-image", "edit", "img2img", "inpaint", "layered", "speech"], Word]
        | None
    ) = _field("`text-to-image`, `edit`", "images: edit, else text-to-image", "mode", "workflow")
    model: Annotated[str, Field(min_length=1, max_length=200), Plain] | None = _field(
        "a model this worker serves, by its name or repository",
        "the first that can do the task",
    )
    width: Side | None = _field(
        "pixels, 64 to the worker's limit, floored to a multiple of 16 and reported in `adjusted`",
        "see [Sizes](#sizes)",
    )
    height: Side | None = _field("as `width`", "see [Sizes](#sizes)")
    size: Annotated[Pixels | Literal["auto", "input"], PlainValidator(_size)] | None = _field(
        '"WxH", "W*H", "auto", or "input" (edit: exactly the last image\'s size)',
        "auto",
        "image_size",
    )
    aspect_ratio: (
        Literal["1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3", "match_input_image"] | None
    ) = _field(
        "1:1 16:9 9:16 4:3 3:4 3:2 2:3 match_input_image",
        "edit: match_input_image; text-to-image: the model's own size",
    )
    num_inference_steps: Annotated[int, BeforeValidator(_integer), Field(ge=2, le=100)] | None = (
        _field(
            "2-100; with Lightning one of the counts that this worker holds",
            "the first of LIGHTNING_STEPS; without Lightning the model's",
            "steps",
        )
    )
    true_cfg_scale: (
        Annotated[float, BeforeValidator(_decimal), Field(ge=1, le=20, allow_inf_nan=False)] | None
    ) = _field(
        "1-20; with Lightning set to 1.0, with a warning",
        "the model's; with Lightning 1.0",
        "cfg_scale",
        "guidance_scale",
        "guidance",
        "cfg",
    )
    lightning: bool | None = _field("boolean", "USE_LIGHTNING_LORA", "use_lightning", "go_fast")
    seed: Annotated[int, BeforeValidator(_integer), AfterValidator(_seed)] | None = _field(
        "integer, 0 to 2^63-1; -1 or null: random; 0 is a seed", "random, always echoed"
    )
    num_images: Annotated[int, BeforeValidator(_integer), Field(ge=1, le=4)] | None = _field(
        "1-4; picture i has seed + i", "1", "n", "num_outputs", "num_images_per_prompt"
    )
    output_format: (
        Annotated[Literal["png", "jpeg", "webp"], BeforeValidator(_jpeg), Word] | None
    ) = _field("png, jpeg, jpg, webp", "png", "image_format")
    output_quality: Annotated[int, BeforeValidator(_integer), Field(ge=1, le=100)] | None = _field(
        "1-100, for jpeg and webp", "95", "quality"
    )
    response_format: Annotated[Literal["base64", "data_url", "url"], Word] | None = _field(
        "`base64`, `data_url`, `url` (needs a bucket or `upload_url`)",
        "`url` with a bucket or `upload_url`, else `base64`",
    )
    upload_url: Addresses | None = _field(
        "https presigned PUT, or a list with one for each picture", "none"
    )
    op: Annotated[Literal["generate", "capabilities", "health"], Word] | None = _field(
        "`generate`, `capabilities`, `health`", "generate"
    )


@dataclass(frozen=True, slots=True)
class FieldFacts:
    """One row of the table, as README and op=capabilities show it."""

    name: str
    aliases: tuple[str, ...]
    accepts: str
    default: str


def table() -> tuple[FieldFacts, ...]:
    """Return every field of a job's input, in the order of the documentation."""
    return tuple(
        FieldFacts(name, _aliases(name), info.description or "", _default(info.json_schema_extra))
        for name, info in JobInput.model_fields.items()
    )


def _aliases(name: str) -> tuple[str, ...]:
    choices = JobInput.model_fields[name].validation_alias
    return tuple(map(str, choices.choices)) if isinstance(choices, AliasChoices) else ()


def _default(extra: Any) -> str:
    return str(extra["default"])


NAMES: Final[Mapping[str, str]] = {
    word: name for name in JobInput.model_fields for word in (name, *_aliases(name))
}
