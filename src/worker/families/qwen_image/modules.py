"""The modules that a published model's configuration describes, without memory for weights."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from worker.bundle.fill import make_empty
from worker.engine.offload import Streamed

# The fields of a text encoder's language model that its neighbours depend on.
TEXT: Final = ("hidden_size", "vocab_size")


class NoHead(nn.Module):
    """Stand in for the text encoder's lm_head: nothing reads the logits of a prompt."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits over no words, [..., 0]."""
        return hidden[..., :0]


def build_transformer(config: Mapping[str, Any]) -> Any:
    """Return the diffusion transformer of a configuration."""
    from diffusers import QwenImageTransformer2DModel  # noqa: PLC0415 - takes seconds to import

    with make_empty():
        return QwenImageTransformer2DModel.from_config(dict(config))


def build_vae(config: Mapping[str, Any]) -> Any:
    """Return the VAE of a configuration."""
    from diffusers import AutoencoderKLQwenImage  # noqa: PLC0415 - takes seconds to import

    with make_empty():
        return AutoencoderKLQwenImage.from_config(dict(config))


def keep_frames(vae: Any) -> Any:
    """Return what runs single frames with the weights of a filled VAE, and nothing else of it."""
    from worker.families.qwen_image.frame_vae import FrameVae  # noqa: PLC0415 - imports diffusers

    return FrameVae(vae)


def build_text_encoder(config: Mapping[str, Any]) -> Any:
    """Return the text encoder of a configuration, with its lm_head."""
    from transformers import (  # noqa: PLC0415 - takes seconds to import
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
    )

    read = Qwen2_5_VLConfig.from_dict(dict(config))
    with make_empty():
        return Qwen2_5_VLForConditionalGeneration._from_config(  # noqa: SLF001 - the public way reads weights
            read, dtype=torch.bfloat16
        )


def remove_head(encoder: Any) -> Any:
    """Remove the lm_head, 545 M parameters whose output nothing reads, from a text encoder."""
    encoder.lm_head = NoHead()
    return encoder


def stream_text_encoder(encoder: Any) -> Streamed:
    """Return what of a text encoder passes through the device: its towers, layer by layer.

    The table of embeddings, of which a prompt takes a few rows, stays on the host.
    """
    tower, language = encoder.model.visual, encoder.model.language_model
    return Streamed(
        encoder.model,
        [tower.patch_embed, *tower.blocks, tower.merger, *language.layers],
        [language.embed_tokens],
    )


def describe_text_encoder(encoder: Any) -> dict[str, Any]:
    """Return the configuration of a text encoder: its vision tower's and its TEXT fields."""
    of_text = {name: getattr(encoder.config.text_config, name) for name in TEXT}
    return {**encoder.config.vision_config.to_dict(), **of_text}
