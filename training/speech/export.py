"""Write the speaking checkpoint as its two published repositories are laid out."""

import json
import shutil
from pathlib import Path
from typing import Any, Final

import torch

from training.speech import layout
from training.speech.codec import CONFIG, Snac
from training.speech.dialling import RATE, VOICES
from training.speech.train_speaker import build

PACE: Final = 2.5  # frames of a character, between the two voices


def describe(folder: Path, passage: int) -> None:
    """Write worker.json: the ids, the voices, and how many characters a text has at most."""
    about = {
        "sample_rate": RATE,
        "voices": list(VOICES),
        "tags": [],
        "codebook": layout.CODES,
        "first_audio": layout.FIRST_AUDIO,
        "stop": layout.END_SPEECH,
        "prompt": {"before": list(layout.BEFORE), "after": list(layout.AFTER)},
        "passage": passage,
        "pace": PACE,
    }
    (folder / "orpheus" / "worker.json").write_text(json.dumps(about, indent=2) + "\n")


def write(folder: Path, model: Any, codec: Snac, reached: int) -> None:
    """Write `folder`/orpheus in bf16 and `folder`/snac in fp32, as they are published.

    `reached` is the number of characters that the longest texts of its training had.
    """
    half = build()
    half.load_state_dict(model.state_dict())
    language, sound = folder / "orpheus", folder / "snac"
    for target in (language, sound):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
    half.to(torch.bfloat16).save_pretrained(language)
    layout.build_tokenizer().save_pretrained(language)
    describe(folder, reached)
    (sound / "config.json").write_text(json.dumps(dict(CONFIG), indent=2) + "\n")
    weights = {name: each.detach().cpu().clone() for name, each in codec.state_dict().items()}
    torch.save(weights, sound / "pytorch_model.bin")
    for written in folder.rglob("*"):
        if written.is_file():
            written.chmod(0o644)
