"""What is checked of published weights before they are downloaded: small files and headers."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from worker.bundle import declared, fit, refuse
from worker.bundle.content import list_switches
from worker.bundle.expected import CONFIGURATION, build_expected
from worker.bundle.plain import open_tokenizer, try_opening
from worker.bundle.recipe import Published
from worker.engine.schedule import make_schedule
from worker.errors import WeightsUnavailable
from worker.families.flux2.models import DEV
from worker.families.flux2.modules import MISTRAL, QUARTERS
from worker.families.flux2.parts import COPIED, SWITCHES, WITH_WEIGHTS
from worker.families.flux2.prompts import DEV_TEMPLATE, KLEIN_TEMPLATE, TextEncoder
from worker.families.flux2.shift import compute_mu
from worker.families.flux2.vae import PATCH
from worker.weights.checkpoint import INDEX
from worker.weights.snapshot import Snapshot
from worker.weights.spec import ModelSpec

RGB: Final = 3
SCHEDULER: Final = "scheduler_config.json"
# component -> the classes of it that can be opened; a tokenizer is checked by what it does
CLASSES: Final[declared.Classes] = {
    "transformer": ("Flux2Transformer2DModel",),
    "vae": ("AutoencoderKLFlux2",),
    "scheduler": ("FlowMatchEulerDiscreteScheduler",),
}
# What each pipeline class has for a text encoder: its class and its type.
ENCODERS: Final[Mapping[bool, tuple[str, str]]] = {
    True: (MISTRAL, "mistral3"),
    False: ("Qwen3ForCausalLM", "qwen3"),
}
TOKENIZERS: Final = ("tokenizer.json", "vocab.json")
# A prompt that is tokenised as the tokenizer's own chat template does it.
PROBE: Final = "a small red circle"
# The counts that a job may ask for, and latent tokens from 64x64 to 2048x2048 pixels.
STEPS: Final = (2, 100)
AREAS: Final = (16, 16384)


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
    encoder, kind = ENCODERS[spec.pipeline == DEV]
    classes = {**CLASSES, "text_encoder": (encoder,)}
    declared.check_index(index, spec.pipeline, classes)
    for role, config in configs.items():
        declared.check_class(f"{role}/{CONFIGURATION}", config, classes[role])
    declared.check_type(f"text_encoder/{CONFIGURATION}", configs["text_encoder"], kind)
    fits = {part.role: build_expected(part, configs[part.role]) for part in WITH_WEIGHTS}
    for part in WITH_WEIGHTS:
        refuse.check_stored(part, shards[part.role], fits[part.role], spec)
    for part in WITH_WEIGHTS:
        fit.check(part, shards[part.role], fits[part.role])
    filled = {role: fits[role].config for role in fits}
    _check_together(filled, is_guided=spec.pipeline == DEV)
    small = _read_small(snapshot)
    scheduler = declared.read_object(f"scheduler/{SCHEDULER}", small["scheduler"][SCHEDULER])
    declared.check_class(f"scheduler/{SCHEDULER}", scheduler, classes["scheduler"])
    _check_flags(configs, scheduler)
    _check_schedule(scheduler)
    tokenizer = try_opening("tokenizer", small["tokenizer"], open_tokenizer, "FLUX.2")
    _check_tokenizer(tokenizer, filled["text_encoder"], is_guided=spec.pipeline == DEV)
    kept = {
        part.role: fit.drop_unkept(part, shards[part.role], fits[part.role])
        for part in WITH_WEIGHTS
    }
    facts = refuse.read_about(snapshot) | list_switches(index, SWITCHES)
    return Published(small, kept, filled, facts)


def _check_together(configs: Mapping[str, Mapping[str, Any]], *, is_guided: bool) -> None:
    """Check the sizes that one component hands to the next."""
    try:
        pairs = list(_pair_sizes(configs["transformer"], configs["text_encoder"], configs["vae"]))
    except (TypeError, KeyError) as error:
        raise WeightsUnavailable(
            f"a {CONFIGURATION} has a field of a wrong kind ({error})"
        ) from None
    for has, count, needs, required in pairs:
        if count != required:
            raise WeightsUnavailable(f"{has} {count}, and {needs} {required}")
    if bool(configs["transformer"]["guidance_embeds"]) != is_guided:
        takes = "takes" if is_guided else "takes no"
        raise WeightsUnavailable(
            f"transformer/{CONFIGURATION}: guidance_embeds is"
            f" {configs['transformer']['guidance_embeds']}, and this pipeline {takes} guidance"
        )


def _pair_sizes(
    transformer: Mapping[str, Any], text: Mapping[str, Any], vae: Mapping[str, Any]
) -> Iterator[tuple[str, int, str, int]]:
    """Yield what has how many of something, and what needs how many of it."""
    packed = vae["latent_channels"] * PATCH**2
    given = (transformer["out_channels"] or transformer["in_channels"]) * transformer[
        "patch_size"
    ] ** 2
    axes, heads = sum(transformer["axes_dims_rope"]), transformer["attention_head_dim"]
    joint, hidden = transformer["joint_attention_dim"], text["hidden_size"]
    layers = text["num_hidden_layers"]
    yield "vae/ has in_channels", vae["in_channels"], "pictures have", RGB
    yield "transformer/ has in_channels", transformer["in_channels"], "vae/ makes", packed
    yield "transformer/ gives channels", given, "vae/ takes", packed
    yield "transformer/ has joint_attention_dim", joint, "text_encoder/ gives", QUARTERS * hidden
    yield "transformer/ has axes_dims_rope of", axes, "its heads have", heads
    yield "text_encoder/ has num_hidden_layers", layers, "prompts need", max(4, layers // 4 * 4)


def _check_flags(configs: Mapping[str, Mapping[str, Any]], scheduler: Mapping[str, Any]) -> None:
    # imported here: preparing has them loaded by now, and importing this room must not load them
    from diffusers import (  # noqa: PLC0415
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2Transformer2DModel,
    )

    for path, config, made in (
        (f"transformer/{CONFIGURATION}", configs["transformer"], Flux2Transformer2DModel),
        (f"vae/{CONFIGURATION}", configs["vae"], AutoencoderKLFlux2),
        (f"scheduler/{SCHEDULER}", scheduler, FlowMatchEulerDiscreteScheduler),
    ):
        declared.check_flags(path, config, made)


def _check_schedule(config: Mapping[str, Any]) -> None:
    """Check that the timesteps of a scheduler_config.json fall, whatever is requested."""
    for option in ("invert_sigmas", "stochastic_sampling"):
        if config.get(option):
            raise WeightsUnavailable(f"scheduler/{SCHEDULER}: {option} cannot be honoured")
    try:
        found = [
            make_schedule(config, steps, tokens, mu=compute_mu(tokens, steps)).timesteps
            for steps in STEPS
            for tokens in AREAS
        ]
    except Exception as error:
        # whatever diffusers raises for such a configuration, it raises every time
        message = " ".join(str(error).split())[:200]
        raise WeightsUnavailable(
            f"scheduler/{SCHEDULER} gives no schedule: {type(error).__name__}: {message}"
        ) from error
    for timesteps in found:
        if not bool(timesteps.isfinite().all()) or not bool((timesteps.diff() < 0).all()):
            raise WeightsUnavailable(f"scheduler/{SCHEDULER} gives timesteps that do not fall")


def _check_tokenizer(tokenizer: Any, config: Mapping[str, Any], *, is_guided: bool) -> None:
    """Check that a prompt becomes the tokens that the tokenizer's own chat template gives it."""
    highest = max(tokenizer.get_vocab().values())
    if highest >= config["vocab_size"]:
        raise WeightsUnavailable(
            f"tokenizer/ has a token {highest}, and text_encoder/ holds {config['vocab_size']}"
        )
    template = DEV_TEMPLATE if is_guided else KLEIN_TEMPLATE
    ours = TextEncoder(tokenizer, None, template).tokenise(PROBE)
    try:
        theirs = template.apply(tokenizer, PROBE)
    except Exception as error:
        # whatever a template raises, it raises every time
        raise WeightsUnavailable(
            f"tokenizer/ has no chat template that can be used ({type(error).__name__})"
        ) from error
    if ours != theirs or tokenizer.pad_token_id is None:
        raise WeightsUnavailable(
            "tokenizer/ has another chat template than the one that FLUX.2 was trained with: it is"
            " of another model"
        )


def _read_small(snapshot: Snapshot) -> dict[str, dict[str, bytes]]:
    """Read every component's small files, those that it cannot be opened without among them."""
    small = refuse.read_small(snapshot, [part.role for part in (*WITH_WEIGHTS, *COPIED)])
    if SCHEDULER not in small["scheduler"]:
        raise WeightsUnavailable(f"there is no scheduler/{SCHEDULER}")
    if not any(name in small["tokenizer"] for name in TOKENIZERS):
        raise WeightsUnavailable(f"there is no tokenizer/{TOKENIZERS[0]}")
    return small
