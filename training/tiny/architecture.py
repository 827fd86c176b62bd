"""The shape of the tiny checkpoint: the published classes, a few thousand times smaller."""

from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

AREA = 96 * 96  # the native size in pixels
CONDITION_AREA = 96 * 96  # of a reference for the text encoder, before the processor's own limits
PROCESSOR_PIXELS = (56 * 56, 84 * 84)  # 4 to 9 tokens per picture, whatever size the engine sends

Z_DIM = 16
WIDTH = 128
HEADS = 4
LAYERS = 6
LORA_RANK = 16
LORA_MODULES = (
    *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
    *(f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
    *(f"{stream}_mlp.net.{layer}" for stream in ("img", "txt") for layer in ("0.proj", "2")),
)

SCHEDULER: dict[str, Any] = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
}


def build_vae() -> Any:
    """Return an AutoencoderKLQwenImage: 16 channels, 8x, 2.6 M parameters."""
    return AutoencoderKLQwenImage(
        base_dim=16,
        z_dim=Z_DIM,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * Z_DIM,
        latents_std=[1.0] * Z_DIM,
    )


def build_transformer(*, zero_cond_t: bool) -> Any:
    """Return a QwenImageTransformer2DModel: 6 blocks of 4 heads x 32, 3.7 M parameters.

    The width of every linear layer of a block is a multiple of 64, as 4-bit kernels require.
    """
    return QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=4 * Z_DIM,
        out_channels=Z_DIM,
        num_layers=LAYERS,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
        zero_cond_t=zero_cond_t,
    )


def build_text_encoder(tokenizer: Any) -> Any:
    """Return a Qwen2_5_VLForConditionalGeneration for that tokenizer: 2 + 2 layers."""
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("endoftext", "im_end", "image_pad", "video_pad", "vision_start", "vision_end")
    }
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS // 2,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "bos_token_id": ids["endoftext"],
            "eos_token_id": ids["im_end"],
            "pad_token_id": ids["endoftext"],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=False,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def lora_names() -> tuple[str, ...]:
    """Return the 12 modules per block that a Lightning LoRA changes, by their published names."""
    return tuple(f"transformer_blocks.{i}.{name}" for i in range(LAYERS) for name in LORA_MODULES)


def random_lora(transformer: Any, seed: int, scale: float) -> dict[str, Tensor]:
    """Return a LoRA with the published keys; `scale` is the standard deviation of `lora_up`.

    alpha equals the rank, so that the change of a weight is lora_up @ lora_down.
    """
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name in lora_names():
        layer = transformer.get_submodule(name)
        down = torch.randn(LORA_RANK, layer.in_features, generator=generator)
        up = torch.randn(layer.out_features, LORA_RANK, generator=generator)
        state[f"{name}.lora_down.weight"] = down / layer.in_features**0.5
        state[f"{name}.lora_up.weight"] = up * scale
        state[f"{name}.alpha"] = torch.tensor(float(LORA_RANK))
    return state
