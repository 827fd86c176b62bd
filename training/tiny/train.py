"""Train the tiny checkpoint from scratch, in stages that resume and with gates that must pass.

    python -m training.tiny.train FOLDER [--out checkpoints/tiny] [--compile] [--model-steps N ...]

FOLDER has the state of every stage (never committed); a killed run resumes from it. Stages: vae,
bank (drawn and encoded pictures), model, teacher (what the LoRAs learn from), lightning.
"""

import argparse
import random
import time
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from training.tiny import architecture, bank, checker, distil, train_model, train_vae, world
from training.tiny.bank import Bank
from training.tiny.conditioning import Conditioner
from training.tiny.flat_vae import FlatVae
from training.tiny.lean import Lean
from training.tiny.make import Parts, write
from training.tiny.pixels import picture, psnr, stack, unit
from training.tiny.tokenizer import build_tokenizer

SEED = 20
JITTERS = 6
VAE_STEPS = 4500
MODEL_STEPS = 2400
TEACHER_GROUPS = 320
ROUNDS = 1100
# Shares of ROUNDS. The 8-step LoRA starts from the 4-step one, whose last step is trained last.
COURSES = (
    (4, distil.ALL_STEPS, 1.0),
    (8, distil.ALL_STEPS, 0.15),
    (4, distil.LAST_STEP, 0.255),
)
VAE_GATE_DB = 33.0
VAE_GATE_READ = 0.97


def vae_gate(flat: FlatVae, device: torch.device) -> str:
    """Return the VAE's figures; raises RuntimeError below 33 dB or 97 % of pictures read right."""
    rng = random.Random(SEED)
    scenes = [world.random_scene(rng, held_out=i % 2 == 0) for i in range(200)]
    drawn = [world.draw(scene, world.random_jitter(rng)) for scene in scenes]
    frames = unit(stack(drawn)).to(device)
    ours = train_vae.reconstruct(flat, frames)
    db = psnr(ours, frames)
    reads = [checker.read(picture(frame)) for frame in ours]
    right = [astuple(r) == astuple(s) for r, s in zip(reads, scenes, strict=True)]
    read = sum(right) / len(right)
    if db < VAE_GATE_DB or read < VAE_GATE_READ:
        raise RuntimeError(f"the VAE is not good enough: {db:.1f} dB, {read:.1%} read right")
    return f"{db:.1f} dB, {read:.1%} of 200 reconstructions read right in all five parts"


def lightning(
    folder: Path,
    device: torch.device,
    rounds: int,
    groups: int,
    *,
    lean: Lean,
    make: Conditioner,
    encoded: Bank,
    flat: FlatVae,
) -> dict[int, dict[str, Tensor]]:
    """Make the teacher's pictures, or load them from `folder`, and distil both LoRAs."""
    file = folder / "teacher.pt"
    if not file.exists():
        drawn = distil.lessons(lean, make, encoded, flat, groups, device, seed=3)
        torch.save(drawn, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
    with torch.serialization.safe_globals([distil.Lesson, train_model.Sample]):
        taught: list[distil.Lesson] = torch.load(file, weights_only=True)
    states: dict[int, dict[str, Tensor]] = {}
    for steps, course, share in COURSES:
        states[steps] = distil.student(
            folder,
            steps,
            round(rounds * share),
            device,
            lean=lean,
            make=make,
            bank=encoded,
            flat=flat,
            taught=taught,
            course=course,
            start=states.get(4),
        )
    return states


def load_start(edit: Path, transformer: Any, text_encoder: Any) -> None:
    """Load the weights of a written checkpoint, including the vision tower's."""
    read = QwenImageTransformer2DModel.from_pretrained(edit / "transformer")
    transformer.load_state_dict(read.state_dict())
    words = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        edit / "text_encoder", dtype=torch.float32
    )
    text_encoder.load_state_dict(words.state_dict())


def main() -> None:
    """Run the stages that are not done yet, then write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("checkpoints/tiny"))
    parser.add_argument("--start", type=Path, help="a checkpoint to continue from, with its VAE")
    parser.add_argument("--vae-steps", type=int, default=VAE_STEPS)
    parser.add_argument("--model-steps", type=int, default=MODEL_STEPS)
    parser.add_argument("--groups", type=int, default=TEACHER_GROUPS, help="of 64 teacher pictures")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of distillation")
    parser.add_argument("--compile", action="store_true", help="compile the blocks; needs g++")
    parser.add_argument("--bf16", action="store_true", help="matrix products in bf16: AMX, CUDA")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    folder, device = options.folder, torch.device(options.device)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def say(stage: str, figures: str) -> None:
        print(f"{stage}: {figures} ({time.monotonic() - began:.0f} s since start)", flush=True)

    if options.start is None:
        vae = train_vae.train(folder, options.vae_steps, device)
    else:
        vae = AutoencoderKLQwenImage.from_pretrained(options.start / "edit" / "vae")
    flat = FlatVae(vae).to(device)
    say("vae", vae_gate(flat, device))

    torch.manual_seed(SEED)
    tokenizer = build_tokenizer()
    text_encoder: Any = architecture.build_text_encoder(tokenizer).to(device)
    transformer: Any = architecture.build_transformer(zero_cond_t=True).to(device)
    train_model.initialise(transformer, text_encoder, SEED)
    if options.start is not None:
        load_start(options.start / "edit", transformer, text_encoder)
    encoded = bank.cached(folder, flat, text_encoder, JITTERS, SEED, device)
    say("bank", f"{encoded.latents.shape[0]} x {len(encoded.scenes)} pictures encoded")
    make = Conditioner(text_encoder, tokenizer, compiled=options.compile, bf16=options.bf16)
    lean = Lean(transformer, compiled=options.compile, bf16=options.bf16)
    train_model.train(
        folder,
        options.model_steps,
        device,
        lean=lean,
        make=make,
        text_encoder=text_encoder,
        bank=encoded,
    )
    say("model", "trained")
    loras = lightning(
        folder,
        device,
        options.rounds,
        options.groups,
        lean=lean,
        make=make,
        encoded=encoded,
        flat=flat,
    )
    say("lightning", "distilled")
    vae.register_to_config(latents_mean=encoded.mean.tolist(), latents_std=encoded.std.tolist())
    parts = Parts(tokenizer, text_encoder.cpu(), vae, transformer.cpu(), loras)
    write(options.out, parts)
    say("checkpoint", f"written to {options.out}")


if __name__ == "__main__":
    main()
