"""Train the embedded FLUX.2 checkpoint from scratch, in stages that resume.

    python -m training.tiny.flux.make FOLDER [--minutes 90] [--device cpu] [--out DIR]

FOLDER has the state of every stage (never committed); a killed run resumes from it. Stages: vae,
model, teacher (what the four steps learn from), steps. Each takes its share of the minutes.
"""

import argparse
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline

from training.tiny import world as little
from training.tiny.cases import edits, exchanges, prompts
from training.tiny.flux import learn_model, learn_steps, learn_vae, shapes
from training.tiny.flux.drawn import Hands
from training.tiny.flux.flow import Flow
from training.tiny.flux.learn_model import Bank
from training.tiny.flux.learn_steps import Drawn
from training.tiny.flux.pace import Pace
from training.tiny.flux.stored import Stage
from training.tiny.flux.tables import Tables
from training.tiny.flux.trial import judge
from training.tiny.flux.words import build_tokenizer
from training.tiny.latents import OBJECT_APART, pack

BEGAN: Final = time.monotonic()
SEED: Final = 20
SHARES: Final = {"vae": 0.2, "model": 0.5, "teacher": 0.05, "steps": 0.25}
ABOUT: Final = {"area": little.SIDE**2}


def encode(vae: Any, pictures: torch.Tensor, *, bf16: bool) -> Bank:
    """Return the bank of pictures (J, S, 3, H, W) in uint8."""
    packed, shown = [], []
    for jitter, latents in zip(pictures, learn_vae.latents(vae, pictures, bf16=bf16), strict=True):
        packed.append(learn_vae.normalise(vae, pack(latents)))
        far = (jitter.int() - jitter[:, :, :1, :1].int()).abs().amax(1) > OBJECT_APART
        shown.append(far.unfold(1, 16, 16).unfold(2, 16, 16).flatten(3).any(3).flatten(1))
    device = packed[0].device
    return Bank(torch.stack(packed), torch.stack(shown).to(device))


def write(folder: Path, flow: Flow, vae: Any, tokenizer: Any) -> None:
    """Write the checkpoint in bf16, as a diffusers folder."""
    text_encoder, transformer = shapes.build_text_encoder(tokenizer), shapes.build_transformer()
    text_encoder.load_state_dict(flow.text_encoder.state_dict())
    transformer.load_state_dict(flow.transformer.state_dict())
    stored = shapes.build_vae()
    stored.load_state_dict(vae.state_dict())
    parts = {"text_encoder": text_encoder, "transformer": transformer, "vae": stored}
    pipeline: Any = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**shapes.SCHEDULER),
        tokenizer=tokenizer,
        is_distilled=True,
        **{name: part.to(torch.bfloat16) for name, part in parts.items()},
    )
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.save_pretrained(folder)
    for written in folder.rglob("*.safetensors"):
        written.chmod(0o644)
    (folder / "worker.json").write_text(json.dumps(ABOUT, indent=2) + "\n")


def say(stage: str, figures: str) -> None:
    """Print a stage's figures, with the seconds since the start."""
    print(f"{stage}: {figures} ({time.monotonic() - BEGAN:.0f} s since start)", flush=True)


def tell(stage: str, flow: Flow, world: Drawn, tokenizer: Any, count: int) -> None:
    """Print how many of the judge's cases are right, seen and held out apart."""
    for cases in (
        list(prompts(count, 11)),
        list(edits(count, 12)),
        list(exchanges(count // 4, 13)),
    ):
        for held in (False, True):
            some = [case for case in cases if case.held_out == held]
            if not some:
                continue
            rates = judge(flow, world.vae, tokenizer, some, world.hands)
            shown = " | ".join(f"{name} {rate:.1%}" for name, rate in rates.items())
            kind = f"{some[0].kind}, {'held out' if held else 'seen'} {len(some)}"
            print(f"{stage} | {kind} | {shown}", flush=True)


def begin(options: argparse.Namespace, tokenizer: Any, hands: Hands) -> Drawn:
    """Draw the pictures and run the first stage: all that the model learns from."""
    device, bf16 = torch.device(options.device), options.bf16
    pictures = hands.draw(options.jitters, SEED).to(device)
    say("drawn", f"{options.jitters} x {pictures.shape[1]} pictures")
    torch.manual_seed(SEED)
    tables = Tables(tokenizer, options.jitters, device)
    say("tables", f"{len(tables.ids)} prompts of at most {tables.ids.shape[1]} tokens")
    stage, pace = Stage(options.folder, "vae"), timed("vae", options)
    vae = learn_vae.train(stage, pictures, pace, device, options.pictures, bf16=bf16)
    bank = encode(vae, pictures, bf16=bf16)
    say("vae", learn_vae.read_back(vae, hands, SEED, bf16=bf16))
    return Drawn(vae, tables, bank, hands)


def timed(stage: str, options: argparse.Namespace) -> Pace:
    """Return how long a stage may take."""
    return Pace(SHARES[stage] * options.minutes * 60)


def main() -> None:
    """Run the stages that are not done yet, then write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("checkpoints/tiny/flux"))
    parser.add_argument("--minutes", type=float, default=90.0, help="of training")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="matrix products in bf16: AMX, CUDA")
    parser.add_argument("--batch", type=int, default=192, help="examples of a step")
    parser.add_argument("--taught", type=int, default=96, help="examples of a distilling step")
    parser.add_argument("--pictures", type=int, default=8, help="of a step of the VAE")
    parser.add_argument("--jitters", type=int, default=8, help="in which every scene is drawn")
    parser.add_argument("--mixed", action="store_true", help="one batch a step: fewer launches")
    parser.add_argument("--lessons", type=int, default=12, help="least batches of the teacher")
    parser.add_argument("--cases", type=int, default=200, help="of each kind that are judged")
    options = parser.parse_args()
    hands = Hands(len(os.sched_getaffinity(0)))
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)  # it does not take every mask
    tokenizer = build_tokenizer()
    world = begin(options, tokenizer, hands)

    text_encoder, transformer = shapes.build_text_encoder(tokenizer), shapes.build_transformer()
    flow = Flow(text_encoder, transformer, bf16=options.bf16).to(options.device)
    mix = learn_model.MIXED if options.mixed else learn_model.APART
    stage, pace = Stage(options.folder, "model"), timed("model", options)
    learn_model.train(stage, flow, world.tables, world.bank, pace, options.batch, mix)
    write(options.out, flow, world.vae, tokenizer)
    say("model", "trained")
    tell("model", flow, world, tokenizer, options.cases)

    stage = Stage(options.folder, "steps")
    finished = stage.finished(flow.device)
    if finished is None:
        pace = timed("teacher", options)
        taught = learn_steps.lessons(flow, world, pace, options.batch, mix, options.lessons)
        say("teacher", f"{len(taught)} batches")
        pace = timed("steps", options)
        learn_steps.train(stage, flow, world, taught, pace, options.taught)
    else:
        flow.load_state_dict(finished)
    write(options.out, flow, world.vae, tokenizer)
    say("steps", f"written to {options.out}")
    tell("steps", flow, world, tokenizer, options.cases)
    hands.close()
    say("judged", "done")


if __name__ == "__main__":
    main()
