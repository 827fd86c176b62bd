"""Train the style LoRA of the tiny checkpoint: `python -m training.tiny.style FOLDER`.

It reaches every module that public LoRAs reach, the modulation included, and learns from the scenes
that are not held out, framed (frames.py), on the base model: Lightning's steps are not shown to it.
Half of the time its scale is a half, and so is the frame's colour: a scale means what was trained.
FOLDER has the state, from which a killed run resumes; the LoRA is written below `--out`, with the
keys and the record of diffusers' training script.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from training.tiny import architecture, frames, world
from training.tiny.bank import Bank
from training.tiny.conditioning import Conditioner
from training.tiny.distil import Lora
from training.tiny.flat_vae import FlatVae
from training.tiny.latents import pack
from training.tiny.lean import Lean
from training.tiny.pixels import unit
from training.tiny.train import load_start
from training.tiny.train_model import GROUP, Tasks, flow_loss

FILE: Final = "style/framed.safetensors"
RANK: Final = 8
RATE: Final = 2e-3
ROUNDS: Final = 900
JITTERS: Final = 2
SEED: Final = 31
EVERY: Final = 50
STRENGTHS: Final = (1.0, 0.5)
BLOCK: Final = (*architecture.LORA_MODULES, "img_mod.1", "txt_mod.1")
ENDS: Final = ("img_in", "txt_in", "proj_out", "norm_out.linear")


def module_names() -> tuple[str, ...]:
    """Return the modules that the LoRA reaches."""
    blocks = range(architecture.LAYERS)
    return (*(f"transformer_blocks.{n}.{name}" for n in blocks for name in BLOCK), *ENDS)


@torch.no_grad()
def build_bank(vae: Any, flat: FlatVae, strength: float) -> Bank:
    """Draw and encode every scene that is not held out, framed at a strength."""
    rng = random.Random(SEED)
    scenes = [scene for scene in world.scenes() if not scene.held_out]
    mean, std = (torch.tensor(vae.config[f"latents_{name}"]) for name in ("mean", "std"))
    packed = []
    for _ in range(JITTERS):
        jitter = world.random_jitter(rng)
        for start in range(0, len(scenes), 32):
            drawn = [frames.draw(scene, jitter, strength) for scene in scenes[start : start + 32]]
            stacked = torch.from_numpy(np.stack([np.asarray(one) for one in drawn]))
            moments = flat.encode(unit(stacked.permute(0, 3, 1, 2)))
            latents = moments.float().chunk(2, dim=1)[0]
            packed.append(pack((latents - mean[:, None, None]) / std[:, None, None]))
    latents = torch.cat(packed).unflatten(0, (JITTERS, -1))
    nothing = torch.zeros(0)
    return Bank(scenes, latents, nothing, torch.zeros(latents.shape[:3]).bool(), mean, std)


def attach(transformer: Any, seed: int) -> dict[str, Lora]:
    """Attach the LoRA to the modules that it reaches; B is zero."""
    generator = torch.Generator().manual_seed(seed)
    attached = {}
    for name in module_names():
        owner, _, last = name.rpartition(".")
        linear = transformer.get_submodule(name)
        down = torch.randn(RANK, linear.in_features, generator=generator) / linear.in_features**0.5
        attached[name] = Lora(linear, down, torch.zeros(linear.out_features, RANK))
        transformer.get_submodule(owner)._modules[last] = attached[name]  # noqa: SLF001 - as nn.Module does
    return attached


def train(
    folder: Path, rounds: int, *, lean: Lean, make: Conditioner, banks: Sequence[Bank]
) -> dict[str, Lora]:
    """Train to `rounds` groups, resuming from `folder`/style.pt."""
    transformer, file = lean.transformer, folder / "style.pt"
    transformer.requires_grad_(False)
    attached = attach(transformer, SEED)
    factors = nn.ParameterList([w for lora in attached.values() for w in (lora.down, lora.up)])
    optimiser = torch.optim.AdamW(factors, RATE, (0.9, 0.98), weight_decay=0.0)
    first = 0
    if file.exists():
        saved = torch.load(file, weights_only=True)
        factors.load_state_dict(saved["factors"])
        optimiser.load_state_dict(saved["optimiser"])
        first = saved["round"]
    tasks = Tasks(banks[0], SEED * 1_000_003 + first)
    torch.manual_seed(SEED * 1_000_003 + first)
    began, losses = time.monotonic(), list[float]()
    for turn in range(first, rounds):
        factor = min(1.0, (turn + 1) / 20, max(0.02, (rounds - turn) / (0.5 * rounds)))
        for group in optimiser.param_groups:
            group["lr"] = RATE * factor
        which = turn % len(STRENGTHS)
        for lora in attached.values():
            lora.scale = STRENGTHS[which]
        samples = tasks.group("whole" if turn // 2 % 2 else "image", GROUP)
        loss = flow_loss(lean, make, banks[which], samples, torch.device("cpu"))
        loss.backward()
        nn.utils.clip_grad_norm_(factors, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (turn + 1) % EVERY == 0 or turn + 1 == rounds:
            took = time.monotonic() - began
            print(f"style {turn + 1}/{rounds}: {np.mean(losses):.4f}, {took:.0f} s", flush=True)
            losses = []
            state = {"factors": factors.state_dict(), "optimiser": optimiser.state_dict()}
            torch.save({**state, "round": turn + 1}, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
    return attached


def save(attached: dict[str, Lora], file: Path) -> None:
    """Write a LoRA as diffusers' save_lora_weights does: bf16, its scale in the metadata."""
    state: dict[str, Tensor] = {}
    for name, lora in attached.items():
        state[f"transformer.{name}.lora_A.weight"] = lora.down.detach().bfloat16()
        state[f"transformer.{name}.lora_B.weight"] = lora.up.detach().bfloat16()
    record = {"transformer.r": RANK, "transformer.lora_alpha": RANK}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, file, {"format": "pt", "lora_adapter_metadata": json.dumps(record)})


def main() -> None:
    """Train the LoRA and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("checkpoints/tiny"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--compile", action="store_true", help="compile the blocks; needs g++")
    parser.add_argument("--bf16", action="store_true", help="matrix products in bf16: AMX")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    edit = options.out / "edit"
    vae = AutoencoderKLQwenImage.from_pretrained(edit / "vae")
    tokenizer = AutoTokenizer.from_pretrained(edit / "tokenizer")
    text_encoder: Any = architecture.build_text_encoder(tokenizer)
    transformer: Any = architecture.build_transformer(zero_cond_t=True)
    load_start(edit, transformer, text_encoder)
    text_encoder.requires_grad_(False)
    flat = FlatVae(vae)
    attached = train(
        options.folder,
        options.rounds,
        lean=Lean(transformer, compiled=options.compile, bf16=options.bf16),
        make=Conditioner(text_encoder, tokenizer, compiled=options.compile, bf16=options.bf16),
        banks=[build_bank(vae, flat, strength) for strength in STRENGTHS],
    )
    save(attached, options.out / FILE)


if __name__ == "__main__":
    main()
