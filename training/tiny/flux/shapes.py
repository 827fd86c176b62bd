"""The shape of the embedded FLUX.2: the published classes, a thousand times smaller."""

from typing import Any, Final

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

CHANNELS: Final = 16  # of the latents; a token of the transformer has four times as many
WIDTH: Final = 128
HEADS: Final = 4
DOUBLE: Final = 2
SINGLE: Final = 6
TEXT_LAYERS: Final = (1, 2, 3)  # whose outputs are the prompt's embeddings, of one layer more
TEXT_LENGTH: Final = 512  # tokens; what is shorter is padded, and the padding attended

SCHEDULER: Final[dict[str, Any]] = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
}


def build_vae() -> Any:
    """Return an AutoencoderKLFlux2: 16 channels, 8x, 1.0 M parameters, ready to be trained.

    The second convolution of each residual block is scaled by 0.3, the mean is the encoder's own
    output, and the log-variance starts at -4: the first pictures are not drowned in noise.
    """
    vae = AutoencoderKLFlux2(
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=96,
    )
    with torch.no_grad():
        for name, weight in vae.named_parameters():
            if name.endswith("conv2.weight"):
                weight.mul_(0.3)
        vae.quant_conv.weight.zero_()
        vae.quant_conv.weight[:CHANNELS, :CHANNELS, 0, 0].copy_(torch.eye(CHANNELS))
        vae.quant_conv.bias.zero_()
        vae.quant_conv.bias[CHANNELS:] = -4.0
    return vae


def build_transformer() -> Any:
    """Return a Flux2Transformer2DModel: 2 + 6 blocks of 4 heads x 32, 2.6 M parameters.

    Modulation and output start at zero, so that every block begins as the identity. The sides of
    every linear layer of a block are multiples of 64, as 4-bit kernels require.
    """
    transformer = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=4 * CHANNELS,
        num_layers=DOUBLE,
        num_single_layers=SINGLE,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=len(TEXT_LAYERS) * WIDTH,
        axes_dims_rope=(8, 8, 8, 8),
        guidance_embeds=False,
    )
    still: list[Any] = [
        transformer.double_stream_modulation_img.linear,
        transformer.double_stream_modulation_txt.linear,
        transformer.single_stream_modulation.linear,
        transformer.norm_out.linear,
        transformer.proj_out,
    ]
    for layer in still:
        nn.init.zeros_(layer.weight)
    return transformer


def build_text_encoder(tokenizer: Any) -> Any:
    """Return a Qwen3ForCausalLM for that tokenizer: 4 layers, of which the last is never used."""
    config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=max(TEXT_LAYERS) + 1,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        head_dim=WIDTH // HEADS,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0.0, 0.5)
    return model
