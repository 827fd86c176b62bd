"""The modules that a published model's configuration describes, without memory for weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from worker.errors import WeightsUnavailable

CONFIGURATION: Final = "config.json"
LONGEST_REASON: Final = 200

# The fields of a text encoder's language model that its neighbours depend on.
TEXT: Final = ("hidden_size", "vocab_size")

Shapes = Mapping[str, tuple[int, ...]]


class NoHead(nn.Module):
    """Stand where the text encoder had its lm_head: nobody reads the logits of a prompt."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits of no words, [..., 0]."""
        return hidden[..., :0]


@contextmanager
def empty() -> Iterator[None]:
    """Make modules whose parameters have no memory; buffers and plain tensors are real.

    Under torch.device("meta") the text encoder's inv_freq and the transformer's pos_embed
    frequencies would stay on meta and be lost.
    """
    from accelerate import init_empty_weights  # noqa: PLC0415 - imported while files are read

    with init_empty_weights(include_buffers=False):
        yield


def transformer(config: Mapping[str, Any]) -> Any:
    """Return the diffusion transformer of a configuration."""
    from diffusers import QwenImageTransformer2DModel  # noqa: PLC0415 - takes seconds to import

    with empty():
        return QwenImageTransformer2DModel.from_config(dict(config))


def vae(config: Mapping[str, Any]) -> Any:
    """Return the VAE of a configuration."""
    from diffusers import AutoencoderKLQwenImage  # noqa: PLC0415 - takes seconds to import

    with empty():
        return AutoencoderKLQwenImage.from_config(dict(config))


def text_encoder(config: Mapping[str, Any]) -> Any:
    """Return the text encoder of a configuration, with its lm_head."""
    from transformers import (  # noqa: PLC0415 - takes seconds to import
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
    )

    read = Qwen2_5_VLConfig.from_dict(dict(config))
    with empty():
        return Qwen2_5_VLForConditionalGeneration._from_config(  # noqa: SLF001 - the public way reads weights
            read, dtype=torch.bfloat16
        )


def without_head(encoder: Any) -> Any:
    """Take the lm_head, 545 M parameters whose product nobody reads, off a text encoder."""
    encoder.lm_head = NoHead()
    return encoder


@dataclass(frozen=True, slots=True)
class Expected:
    """What the weights of a component must be.

    `kept` maps every parameter to its shape. `dropped` are tensors that a publisher may store too:
    those that the modules compute by themselves, and the lm_head. `config` is the configuration
    with its defaults filled in; of a text encoder, its vision tower's and its TEXT fields.
    """

    kept: Shapes
    dropped: frozenset[str]
    config: Mapping[str, Any]


def expected(role: str, config: Mapping[str, Any]) -> Expected:
    """Build a component's modules from its configuration and return what fits them.

    Raises WeightsUnavailable when no modules can be built from it.
    """
    make = {"transformer": transformer, "text_encoder": text_encoder, "vae": vae}[role]
    try:
        model = make(config)
    except Exception as error:
        # whatever a constructor says of such a configuration, it says so every time
        raise WeightsUnavailable(
            f"{role}/{CONFIGURATION} describes no model that can be built:"
            f" {type(error).__name__}: {' '.join(str(error).split())[:LONGEST_REASON]}"
        ) from error
    stock = {*model.state_dict(), *dict(model.named_buffers())}
    if role == "text_encoder":
        filled = {**model.config.vision_config.to_dict(), **_of_text(model.config.text_config)}
        without_head(model)
    else:
        filled = dict(model.config)
    kept = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    return Expected(kept, frozenset(stock - kept.keys()), filled)


def _of_text(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in TEXT}
