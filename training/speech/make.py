"""Train the speaking checkpoint and write it: one command, which goes on where it was stopped.

    python -m training.speech.make FOLDER [--minutes 50] [--device cuda] [--out FOLDER]

FOLDER has the state of every stage (never committed). Stages: autoencoder, codebooks, decoder (with
a gate), bank (the codes of every key), speaker, then the checkpoint and its figures.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch

from training.speech import bank as banks
from training.speech import export, listening, train_codec, train_speaker
from training.speech.codec import Snac
from training.speech.dialling import dial
from training.speech.texts import pick_text

SHARES: Final = {"autoencoder": 0.07, "decoder": 0.13, "speaker": 0.65}  # the rest is for figures
# crops and tokens of a step: what a GPU and what two cores make good use of
SIZES: Final = {"cuda": (32, 65_536), "cpu": (6, 4096)}
CODEC_GATE: Final = 0.98


def prepare_codec(
    folder: Path,
    minutes: Mapping[str, float],
    sounds: int,
    device: torch.device,
    say: Callable[[str, str], None],
) -> Snac:
    """Return the codec, trained as far as it is not yet."""
    codec = train_codec.build(device)
    fitted = folder / "codebooks.pt"
    if not fitted.exists():
        file = folder / "autoencoder.pt"
        train_codec.train(codec, file, minutes["autoencoder"], sounds, device, coded=False)
        left = train_codec.fit(codec, device)
        torch.save(codec.state_dict(), fitted.with_suffix(".part"))
        fitted.with_suffix(".part").replace(fitted)
        say("codebooks", f"variance left after each: {', '.join(f'{one:.0%}' for one in left)}")
    codec.load_state_dict(torch.load(fitted, map_location=device, weights_only=True))
    file = folder / "decoder.pt"
    train_codec.train(codec, file, minutes["decoder"], sounds, device, coded=True)
    return codec


def main() -> None:
    """Run the stages that are not done yet, then write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("checkpoints/tiny-speech"))
    parser.add_argument("--minutes", type=float, default=50.0, help="for all stages together")
    parser.add_argument("--texts", type=int, default=200, help="that are read back at the end")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="the Llama's products: AVX-512, CUDA")
    options = parser.parse_args()
    folder, device = options.folder, torch.device(options.device)
    torch.backends.cudnn.allow_tf32 = False  # a code is chosen by small differences
    folder.mkdir(parents=True, exist_ok=True)
    sounds, tokens = SIZES[device.type]
    minutes = {stage: options.minutes * share for stage, share in SHARES.items()}
    began = time.monotonic()

    def say(stage: str, figures: str) -> None:
        print(f"{stage}: {figures} ({time.monotonic() - began:.0f} s since start)", flush=True)

    codec = prepare_codec(folder, minutes, sounds, device, say)
    rate = train_codec.read_back(codec, 100, device)
    if rate < CODEC_GATE:
        raise RuntimeError(f"the codec is not good enough: {rate:.0%} read back from its sound")
    say("codec", f"{rate:.0%} of 100 texts read back from its sound")
    bank = banks.load_bank(folder / "bank.npz", codec, device)
    rng = random.Random(29)
    texts = [dial(pick_text(rng, 20, held_out=False)) for _ in range(10)]
    same = banks.compare(bank, codec, texts, device)
    say("bank", f"{same:.1%} of the ids are those of texts that are encoded as one")
    model = train_speaker.build().to(device)
    file = folder / "speaker.pt"
    reached = train_speaker.train(
        model, bank, file, minutes["speaker"], tokens, device, bf16=options.bf16
    )
    say("speaker", f"texts of up to {reached} characters")
    export.write(options.out, model, codec, reached)
    say("checkpoint", f"written to {options.out}")
    figures = listening.measure(model, codec, reached, options.texts, device)
    passage = listening.find_passage(figures)
    if passage:
        export.describe(options.out, passage)
    about = {"codec": rate, "bank": same, "minutes": minutes, "passage": passage, **figures}
    (folder / "figures.json").write_text(json.dumps(about, indent=2) + "\n")
    say("figures", json.dumps(about))


if __name__ == "__main__":
    main()
