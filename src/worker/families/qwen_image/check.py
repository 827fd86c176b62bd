"""What is checked of published weights before they are downloaded: small files and headers."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from worker.bundle import declared, fit, refuse
from worker.bundle.expected import CONFIGURATION, build_expected
from worker.bundle.recipe import Published
from worker.errors import WeightsUnavailable
from worker.families.qwen_image import schedules, tokenizing
from worker.families.qwen_image.parts import COPIED, WITH_WEIGHTS
from worker.weights.checkpoint import ABOUT, INDEX
from worker.weights.snapshot import Snapshot
from worker.weights.spec import ModelSpec

PATCH: Final = 2  # the pipelines fold 2x2 latents into a token
RGB: Final = 3
STATISTICS: Final = ("latents_mean", "latents_std")
# component -> the classes of it that can be opened; a tokenizer, whose class has had many
# names, is checked by what it does
CLASSES: Final[declared.Classes] = {
    "transformer": ("QwenImageTransformer2DModel",),
    "vae": ("AutoencoderKLQwenImage",),
    "text_encoder": ("Qwen2_5_VLForConditionalGeneration",),
    "scheduler": ("FlowMatchEulerDiscreteScheduler",),
    "processor": ("Qwen2VLProcessor", "Qwen2_5_VLProcessor"),
}
MODEL_TYPE: Final = "qwen2_5_vl"
# What a component of the model cannot be opened without; any one of each group.
REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    "tokenizer": ("tokenizer.json", "vocab.json"),
    "scheduler": ("scheduler_config.json",),
    "processor": ("preprocessor_config.json", "processor_config.json"),
}


def check(snapshot: Snapshot, spec: ModelSpec) -> Published:
    """Read a model's small files and headers and check everything that they show.

    Quantised weights come first, since other faults follow from them. Raises WeightsUnavailable
    naming the component and the file.
    """
    with refuse.name_repository(snapshot):
        return _check(snapshot, spec)


def _check(snapshot: Snapshot, spec: ModelSpec) -> Published:
    index = refuse.read_object(snapshot, INDEX)
    configs = {
        part.role: refuse.read_object(snapshot, f"{part.role}/{CONFIGURATION}")
        for part in WITH_WEIGHTS
    }
    refuse.check_configured(index, configs, spec)
    shards = {part.role: refuse.read_shards(snapshot, part.role, spec) for part in WITH_WEIGHTS}
    edits = "edit" in spec.tasks
    declared.check_index(index, spec.pipeline, _list_classes(edits=edits))
    for role, config in configs.items():
        declared.check_class(f"{role}/{CONFIGURATION}", config, CLASSES[role])
    declared.check_type(f"text_encoder/{CONFIGURATION}", configs["text_encoder"], MODEL_TYPE)
    _check_transformer(configs["transformer"])
    fits = {part.role: build_expected(part, configs[part.role]) for part in WITH_WEIGHTS}
    for part in WITH_WEIGHTS:
        refuse.check_stored(part, shards[part.role], fits[part.role], spec)
    for part in WITH_WEIGHTS:
        fit.check(part, shards[part.role], fits[part.role])
    filled = {role: fits[role].config for role in fits}
    _check_together(filled)
    small = _read_small(snapshot, edits=edits)
    scheduler = declared.read_object(schedules.FILE, small["scheduler"]["scheduler_config.json"])
    declared.check_class(schedules.FILE, scheduler, CLASSES["scheduler"])
    _check_flags(configs, scheduler)
    schedules.check(scheduler)
    tokenizing.check(small, filled["text_encoder"], edits=edits)
    kept = {
        part.role: fit.drop_unkept(part, shards[part.role], fits[part.role])
        for part in WITH_WEIGHTS
    }
    return Published(small, kept, {**filled, "scheduler": scheduler}, _read_facts(snapshot))


def _list_classes(*, edits: bool) -> declared.Classes:
    """Return the classes of the components that a pipeline has: only edits have a processor."""
    return {role: names for role, names in CLASSES.items() if edits or role != "processor"}


def _check_transformer(config: Mapping[str, Any]) -> None:
    """Refuse what the module can be built with and no pipeline of ours runs."""
    path = f"transformer/{CONFIGURATION}"
    if config.get("guidance_embeds"):
        raise WeightsUnavailable(
            f"{path}: guidance_embeds is set: no published Qwen-Image takes an embedded guidance,"
            " and diffusers' transformer has no weights for it"
        )
    if config.get("use_additional_t_cond"):
        raise WeightsUnavailable(
            f"{path}: use_additional_t_cond is set, which needs a second condition"
            " (time_text_embed.addition_t_embedding) that QwenImageLayeredPipeline alone gives, and"
            " this worker does not serve it"
        )


def _check_together(configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Check the sizes that one component hands to the next."""
    for name in STATISTICS:
        values = configs["vae"][name]
        if not isinstance(values, list | tuple) or not all(type(v) in (int, float) for v in values):
            raise WeightsUnavailable(f"vae/{CONFIGURATION}: {name} is no list of numbers")
    try:
        pairs = list(_pair_sizes(configs["transformer"], configs["text_encoder"], configs["vae"]))
    except TypeError as error:
        raise WeightsUnavailable(
            f"a {CONFIGURATION} has a field of a wrong kind ({error})"
        ) from None
    for has, count, needs, required in pairs:
        if count != required:
            raise WeightsUnavailable(f"{has} {count}, and {needs} {required}")


def _pair_sizes(
    transformer: Mapping[str, Any], text: Mapping[str, Any], vae: Mapping[str, Any]
) -> Iterator[tuple[str, int, str, int]]:
    """Yield what has how many of something, and what needs how many of it."""
    channels = vae["z_dim"]
    patches = channels * PATCH * PATCH
    side = transformer["patch_size"]
    given = (transformer["out_channels"] or transformer["in_channels"]) * side * side
    axes, heads = sum(transformer["axes_dims_rope"]), transformer["attention_head_dim"]
    joint, hidden = transformer["joint_attention_dim"], text["hidden_size"]
    steps, levels = len(vae["temperal_downsample"]), len(vae["dim_mult"])
    yield "vae/ has input_channels", vae["input_channels"], "pictures have", RGB
    yield "transformer/ has in_channels", transformer["in_channels"], "vae/ makes", patches
    yield "transformer/ gives channels", given, "vae/ takes", patches
    yield "transformer/ has joint_attention_dim", joint, "text_encoder/ gives", hidden
    yield "transformer/ has axes_dims_rope of", axes, "its heads have", heads
    yield "text_encoder/ has out_hidden_size", text["out_hidden_size"], "its layers take", hidden
    yield "vae/ has temperal_downsample of", steps, "its dim_mult needs", levels - 1
    for name in STATISTICS:
        yield (
            f"vae/ has {name} of",
            len([float(value) for value in vae[name]]),
            "z_dim is",
            channels,
        )


def _check_flags(configs: Mapping[str, Mapping[str, Any]], scheduler: Mapping[str, Any]) -> None:
    # imported here: preparing has them loaded by now, and importing this room must not load them
    from diffusers import (  # noqa: PLC0415
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImageTransformer2DModel,
    )

    for path, config, made in (
        (f"transformer/{CONFIGURATION}", configs["transformer"], QwenImageTransformer2DModel),
        (f"vae/{CONFIGURATION}", configs["vae"], AutoencoderKLQwenImage),
        (schedules.FILE, scheduler, FlowMatchEulerDiscreteScheduler),
    ):
        declared.check_flags(path, config, made)


def _read_small(snapshot: Snapshot, *, edits: bool) -> dict[str, dict[str, bytes]]:
    """Read every component's small files, REQUIRED among them."""
    parts = (*WITH_WEIGHTS, *(part for part in COPIED if edits or not part.is_optional))
    roles = [part.role for part in parts]
    small = refuse.read_small(snapshot, roles)
    for name, data in small.get("processor", {}).items():
        small["processor"][name] = tokenizing.rename_classes(name, data)
    for role, names in REQUIRED.items():
        if role in roles and not any(name in small[role] for name in names):
            reason = (
                ": without it no reference reaches the text encoder" if role == "processor" else ""
            )
            raise WeightsUnavailable(f"there is no {role}/{names[0]}{reason}")
    return small


def _read_facts(snapshot: Snapshot) -> dict[str, Any]:
    """Read what a model declares for this worker."""
    facts = refuse.read_about(snapshot)
    area = facts.get("condition_area")
    if area is not None and (type(area) is not int or area <= 0):
        raise WeightsUnavailable(f"{ABOUT}: condition_area must be a number of pixels")
    return facts
