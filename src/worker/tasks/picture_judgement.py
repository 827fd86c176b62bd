"""What a picture's fields mean together, and for a model: one clear wish, or every fault."""

from dataclasses import replace
from typing import cast

from worker.edge.blank import is_blank
from worker.edge.verdict import Verdict
from worker.errors import InvalidInput
from worker.seam import Served
from worker.settings import Settings
from worker.tasks import adapter
from worker.tasks.picture import PictureAsked, PictureOffer, PictureWish
from worker.tasks.picture_input import BLUR, PictureInput, Pixels
from worker.tasks.preset import fill_preset
from worker.tasks.repaint import Repaint
from worker.tasks.size import Size, choose
from worker.tasks.way import (
    FROM_PICTURES,
    IMG2IMG,
    OUTPAINT,
    USES,
    Way,
    check_uses,
)


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
