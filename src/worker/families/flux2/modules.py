"""The modules that a published model's configuration describes, without memory for weights."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn

from worker.bundle.fill import make_empty
from worker.engine.offload import Streamed

# How many of a text encoder's layers are run: a prompt is its hidden states after a quarter, a half
# and three quarters of them (9, 18 and 27 of Qwen3's 36; 10, 20 and 30 of Mistral's 40).
QUARTERS: Final = 3
MISTRAL: Final = "Mistral3ForConditionalGeneration"


class Statistics(nn.Module):
    """The mean and the variance of packed latents, one of each per channel.

    In place of the batch norm that is published with them and never run, whose count of batches
    nothing reads: as parameters they are filled like any other tensor.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        empty = torch.empty(channels, device="meta")
        self.running_mean, self.running_var = nn.Parameter(empty), nn.Parameter(empty.clone())


def build_transformer(config: Mapping[str, Any]) -> Any:
    """Return the diffusion transformer of a configuration."""
    from diffusers import Flux2Transformer2DModel  # noqa: PLC0415 - takes seconds to import

    with make_empty():
        return Flux2Transformer2DModel.from_config(dict(config))


def build_vae(config: Mapping[str, Any]) -> Any:
    """Return the VAE of a configuration."""
    from diffusers import AutoencoderKLFlux2  # noqa: PLC0415 - takes seconds to import

    with make_empty():
        return AutoencoderKLFlux2.from_config(dict(config))


def keep_statistics(vae: Any) -> Any:
    """Put the statistics of a VAE's latents in place of its batch norm."""
    vae.bn = Statistics(vae.bn.num_features)
    return vae


def arrange_vae(vae: Any) -> Any:
    """Return a filled VAE as its device runs it best."""
    from worker.families.flux2.arranging import arrange  # noqa: PLC0415 - imports diffusers

    return arrange(vae)


def build_text_encoder(config: Mapping[str, Any]) -> Any:
    """Return the text encoder of a configuration as it is published: Qwen3 or Mistral 3."""
    import transformers  # noqa: PLC0415 - takes seconds to import

    kind, read = ("Qwen3ForCausalLM", "Qwen3Config")
    if MISTRAL in (config.get("architectures") or ()):
        kind, read = (MISTRAL, "Mistral3Config")
    described = getattr(transformers, read).from_dict(dict(config))
    with make_empty():
        return getattr(transformers, kind)._from_config(  # noqa: SLF001 - the public way reads weights
            described, dtype=torch.bfloat16
        )


def find_language_model(encoder: Any) -> Any:
    """Return the part of a text encoder that makes hidden states of tokens."""
    return getattr(encoder.model, "language_model", encoder.model)


def strip_text_encoder(encoder: Any) -> Any:
    """Remove what no prompt needs: the last quarter of the layers, the final norm, all around it.

    The library norms the last of the hidden states: without the norm, the last layer that is left
    gives what it gives with all the others after it, to the last bit.
    """
    model = find_language_model(encoder)
    model.layers = model.layers[: count_run_layers(len(model.layers))]
    model.norm = nn.Identity()
    encoder.lm_head = nn.Identity()
    for name in ("vision_tower", "multi_modal_projector"):
        if hasattr(encoder.model, name):
            setattr(encoder.model, name, nn.Identity())
    return encoder


def stream_text_encoder(encoder: Any) -> Streamed:
    """Return what of a text encoder passes through the device: its layers, one by one.

    The table of embeddings, of which a prompt takes a few rows, stays on the host.
    """
    model = find_language_model(encoder)
    return Streamed(model, [*model.layers], [model.embed_tokens])


def count_run_layers(layers: int) -> int:
    """Return how many of a published text encoder's layers are run."""
    return layers // 4 * QUARTERS


def describe_text_encoder(encoder: Any) -> dict[str, Any]:
    """Return the configuration of the language model of a text encoder, with its defaults."""
    described: dict[str, Any] = find_language_model(encoder).config.to_dict()
    return described
