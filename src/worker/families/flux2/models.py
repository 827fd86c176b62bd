"""FLUX.2's published models: one row per model, and what each pipeline class can do."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from worker.families.family import Family, PictureDefaults, Sizes
from worker.families.flux2.planning import estimate_needs, find_edition
from worker.families.flux2.working import count_rank_bytes
from worker.weights.instead import Relative
from worker.weights.spec import ModelSpec, Parts

MODULE: Final = "worker.families.flux2.model"
KLEIN: Final = "Flux2KleinPipeline"
DEV: Final = "Flux2Pipeline"
KLEIN_4B: Final = "flux-2-klein-4b"
ALL_TASKS: Final = ("text-to-image", "edit", "img2img", "inpaint", "outpaint")

# Width and height by aspect ratio: about a million pixels in multiples of 16.
KLEIN_SIZES: Final[Sizes] = {
    "1:1": (1024, 1024),
    "16:9": (1360, 768),
    "9:16": (768, 1360),
    "4:3": (1184, 880),
    "3:4": (880, 1184),
    "3:2": (1248, 832),
    "2:3": (832, 1248),
}
SMALL_AREA: Final = 96 * 96
SMALL_SIZES: Final[Sizes] = {
    "1:1": (96, 96),
    "16:9": (128, 64),
    "9:16": (64, 128),
    "4:3": (112, 80),
    "3:4": (80, 112),
    "3:2": (112, 80),
    "2:3": (80, 112),
}
PARTS: Final = Parts(
    weights=("transformer", "text_encoder", "vae"), beside=("tokenizer", "scheduler")
)
APACHE: Final = "apache-2.0"
NON_COMMERCIAL: Final = "flux-non-commercial-license"

# Distilled to four steps, without CFG and so without a negative prompt.
DISTILLED: Final = PictureDefaults(
    steps=4,
    max_references=4,
    sizes=KLEIN_SIZES,
    true_cfg_scale=1.0,
    negative_prompt="",
    # The schedule is shifted so far that 0.3 begins with four fifths of noise.
    strength=0.3,
    takes_cfg=False,
    weighs_references=True,
)
BASE: Final = replace(DISTILLED, steps=50, true_cfg_scale=4.0, takes_cfg=True)
GUIDED: Final = replace(DISTILLED, steps=50, guidance=4.0)


def _make_row(
    name: str, repository: str, pipeline: str, defaults: PictureDefaults, licence: str
) -> ModelSpec:
    """Return a row: what is not Apache's is gated."""
    spec = ModelSpec(
        name,
        repository,
        pipeline,
        family=MODULE,
        tasks=ALL_TASKS,
        defaults=defaults,
        licence=licence,
        parts=PARTS,
        is_gated=licence != APACHE,
    )
    rank_bytes = count_rank_bytes(find_edition(spec))
    return replace(spec, defaults=replace(defaults, rank_bytes=rank_bytes))


TABLE: Final = (
    _make_row("flux-2-dev", "black-forest-labs/FLUX.2-dev", DEV, GUIDED, NON_COMMERCIAL),
    _make_row(
        "flux-2-klein-base-9b",
        "black-forest-labs/FLUX.2-klein-base-9B",
        KLEIN,
        BASE,
        NON_COMMERCIAL,
    ),
    _make_row(
        "flux-2-klein-9b", "black-forest-labs/FLUX.2-klein-9B", KLEIN, DISTILLED, NON_COMMERCIAL
    ),
    _make_row(
        "flux-2-klein-base-4b", "black-forest-labs/FLUX.2-klein-base-4B", KLEIN, BASE, APACHE
    ),
    _make_row(KLEIN_4B, "black-forest-labs/FLUX.2-klein-4B", KLEIN, DISTILLED, APACHE),
    replace(
        _make_row(
            "tiny-flux",
            "tiny/flux",
            KLEIN,
            replace(DISTILLED, area=SMALL_AREA, sizes=SMALL_SIZES),
            APACHE,
        ),
        embedded="tiny/flux",
        needs_gpu=False,
    ),
)


def _complete(pipeline: str, spec: ModelSpec, about: Mapping[str, Any]) -> ModelSpec:
    """Complete a model from outside the table by its class and what it says of itself.

    `is_distilled` is in the model_index.json of a klein, "area" (pixels) in a worker.json.
    """
    defaults = GUIDED if pipeline == DEV else DISTILLED if about.get("is_distilled") else BASE
    area = about.get("area")
    if isinstance(area, int) and area > 0:
        sizes = SMALL_SIZES if area == SMALL_AREA else defaults.sizes
        defaults = replace(defaults, area=area, sizes=sizes)
    return replace(spec, family=MODULE, tasks=ALL_TASKS, defaults=defaults, parts=PARTS)


FAMILY: Final = Family(
    rows=TABLE,
    classes={pipeline: partial(_complete, pipeline) for pipeline in (KLEIN, DEV)},
    form="a diffusers checkpoint (transformer/, text_encoder/, vae/, tokenizer/, scheduler/)",
    needs=estimate_needs,
    relatives=(
        Relative("FLUX.1", r"black-forest-labs/flux\.1-", r"Flux(?![23])\w*Pipeline", KLEIN_4B),
        Relative("FLUX.3", r"black-forest-labs/flux[.-]3-", r"Flux3\w*Pipeline", KLEIN_4B),
        Relative(
            "FLUX.2 klein KV",
            r"black-forest-labs/flux\.2-klein-9b-kv",
            "Flux2KleinKVPipeline",
            "flux-2-klein-9b",
        ),
        Relative("Z-Image", r"tongyi-mai/z-image", r"ZImage\w*Pipeline", KLEIN_4B),
    ),
)
