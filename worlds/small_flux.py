"""Small FLUX.2 models with random weights, published as the real ones are: for tests alone.

Every tensor is random, the statistics of the VAE too: with a fresh batch norm's, a normalisation
that is missing shows nowhere.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from transformers import (
    AutoTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from worker.weights.meaning import find_checkpoints

Kind = Literal["klein", "base", "dev"]

LAYERS: Final = 4
# A text encoder's hidden states after these are the prompt: a quarter, a half, three quarters.
OUT_LAYERS: Final = (1, 2, 3)
HIDDEN: Final = 64
TEXT: Final[Mapping[str, Any]] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
}
# Qwen3's chat template, for one user's turn without thinking.
QWEN_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# Mistral's, for a system message and one user's turn: of other roles and parts it shows nothing.
MISTRAL_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}[SYSTEM_PROMPT]{% elif message.role == 'user' %}[INST]"
    "{% endif %}"
    "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}"
    "{% if message.role == 'system' %}[/SYSTEM_PROMPT]{% elif message.role == 'user' %}[/INST]"
    "{% endif %}"
    "{% endfor %}"
)
MISTRAL_TOKENS: Final = ("<s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")


def publish(folder: Path, kind: Kind = "klein", *, seed: int = 0) -> Path:
    """Write a small model into a new folder as a diffusers checkpoint and return it."""
    torch.manual_seed(seed)
    tokenizer = _build_tokenizer(kind)
    parts: dict[str, Any] = {
        "scheduler": FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=1000, shift=3.0, use_dynamic_shifting=True
        ),
        "vae": _build_vae(),
        "text_encoder": _build_text_encoder(kind, len(tokenizer)),
        "tokenizer": tokenizer,
        "transformer": Flux2Transformer2DModel(
            in_channels=32,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=len(OUT_LAYERS) * HIDDEN,
            timestep_guidance_channels=64,
            axes_dims_rope=(8, 8, 8, 8),
            guidance_embeds=kind == "dev",
        ),
    }
    for part in ("vae", "text_encoder", "transformer"):
        _spread(parts[part])
    pipeline: Any = (
        Flux2Pipeline(**parts)
        if kind == "dev"
        else Flux2KleinPipeline(**parts, is_distilled=kind == "klein")
    )
    pipeline.save_pretrained(folder)
    (folder / "worker.json").write_text(json.dumps({"area": 96 * 96}))
    return folder


def _spread(model: torch.nn.Module) -> None:
    """Make a model's weights large enough that each of them shows in what it gives."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim > 1:
                tensor.normal_(std=1.0 / tensor[0].numel() ** 0.5)
            elif name.endswith("weight"):
                tensor.uniform_(0.5, 1.5)
            else:
                tensor.normal_(std=0.1)


def _build_vae() -> Any:
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16), latent_channels=8, norm_num_groups=4, sample_size=64
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 4.0)
    vae.bn.num_batches_tracked.fill_(7)
    return vae


def _build_text_encoder(kind: Kind, words: int) -> Any:
    if kind != "dev":
        return Qwen3ForCausalLM(Qwen3Config(**TEXT, vocab_size=words, tie_word_embeddings=True))
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 16, "head_dim": 16}
    config = Mistral3Config(
        text_config={**TEXT, "vocab_size": words, "model_type": "mistral"},
        vision_config={**vision, "model_type": "pixtral"},
    )
    return Mistral3ForConditionalGeneration(config)


def _build_tokenizer(kind: Kind) -> Any:
    """Return the embedded checkpoint's, with the family's template and its special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(find_checkpoints() / "tiny" / "edit" / "tokenizer")
    if kind == "dev":
        tokenizer.add_tokens(list(MISTRAL_TOKENS), special_tokens=True)
        tokenizer.bos_token = MISTRAL_TOKENS[0]
        tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
        tokenizer.chat_template = MISTRAL_TEMPLATE
    else:
        tokenizer.add_tokens(["<think>", "</think>"])
        tokenizer.chat_template = QWEN_TEMPLATE
    return tokenizer
