"""Build the worker's image with Docker BuildKit: `python builder/image.py`, on any system.

Standard library alone, for every Python from 3.9 on; build.sh runs it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
USAGE = """\
Usage: ./build.sh --tag NAME[:TAG] [--tag ...] [options]
On Windows: py builder\\image.py --tag NAME[:TAG] [--tag ...] [options]

  --tag NAME[:TAG]       the image's name; may be given several times
  --target slim|baked    slim: no weights inside (default); baked: a prepared bundle inside
  --cuda cu128|cu130     which lock: torch for CUDA 12.8, driver 570 or newer (default); for
                         CUDA 13.0, driver 580 or newer
  --push                 push to the tag's registry instead of keeping the image locally
  --no-cache             build every layer again
  --dry-run              print the command and build nothing
  --help                 this text

baked only:
  --model NAME[,NAME]    what to bake (default: qwen-image-edit-2511)
  --precision MODE       4bit, 8bit or bf16 (default: 4bit)
  --lightning-steps N    8, 4 or 8,4: the LoRAs to bake (default: 8)

another torch build than a lock's (all three together):
  --torch VERSION        such as 2.11.0
  --torchvision VERSION  the version made for it
  --torch-index URL      the package index that has that build

HF_TOKEN in the environment is passed to the baked build as a BuildKit secret, and is in no layer.
"""
SWITCHES = ("--push", "--no-cache", "--dry-run")
# each option with a value, and the build argument that takes it
OPTIONS = {
    "--tag": None,
    "--target": None,
    "--cuda": "CUDA",
    "--torch": "TORCH_VERSION",
    "--torchvision": "TORCHVISION_VERSION",
    "--torch-index": "TORCH_INDEX_URL",
    "--model": "MODEL",
    "--precision": "PRECISION_MODE",
    "--lightning-steps": "LIGHTNING_STEPS",
}
BAKED_ONLY = ("--model", "--precision", "--lightning-steps")
TORCH = ("--torch", "--torchvision", "--torch-index")
# option -> what its values are called, and those that it has
KNOWN = {
    "--target": ("target", ("slim", "baked")),
    "--cuda": ("CUDA", ("cu128", "cu130")),
    "--precision": ("precision", ("4bit", "8bit", "bf16")),
    "--lightning-steps": ("steps", ("8", "4", "8,4", "4,8")),
}
# [HOST[:PORT]/]PATH[:TAG], as Docker's reference grammar has it
PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
NAME = re.compile(
    rf"(?:[a-z0-9]+(?:[.-]+[a-z0-9]+)*:[0-9]+/)?{PART}(?:/{PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]*)?"
)
TORCH_RELEASE = re.compile(r"2\.([0-9]+)\.[0-9]+.*")
VISION_RELEASE = re.compile(r"0\.([0-9]+)\.[0-9]+.*")
TORCH_BEFORE_VISION = 15  # torchvision 0.N is made for torch 2.(N-15); another pair fails at import
WRONG_USAGE, INTERRUPTED = 2, 130


class UsageError(Exception):
    """The options make no image; the message says which is wrong."""


def read_options(words: list[str]) -> tuple[dict[str, list[str]], set[str]]:
    """Return the values of each option in the order given, and the switches."""
    values: dict[str, list[str]] = {}
    switches: set[str] = set()
    left = list(words)
    while left:
        word = left.pop(0)
        if word in SWITCHES:
            switches.add(word)
        elif word in OPTIONS:
            if not left or not left[0] or left[0].startswith("-"):
                raise UsageError(f"{word} needs a value")
            values.setdefault(word, []).append(left.pop(0))
        else:
            raise UsageError(f"unknown argument: {word}")
    return values, switches


def check(tags: list[str], given: dict[str, str]) -> None:
    """Check what was given, by option; raises UsageError."""
    if not tags:
        raise UsageError("give at least one --tag")
    for tag in tags:
        if not NAME.fullmatch(tag):
            raise UsageError(f"not an image name: {tag}")
    for option, (name, known) in KNOWN.items():
        if given.get(option, known[0]) not in known:
            raise UsageError(f"unknown {name}: {given[option]} (known: {', '.join(known)})")
    if given.get("--target") != "baked" and not given.keys().isdisjoint(BAKED_ONLY):
        raise UsageError("--model, --precision and --lightning-steps belong to --target baked")
    if not given.keys().isdisjoint(TORCH):
        check_torch(given)


def check_torch(given: dict[str, str]) -> None:
    """Check that another torch build is complete and fits together; raises UsageError."""
    if not given.keys() >= set(TORCH):
        raise UsageError("--torch, --torchvision and --torch-index belong together")
    torch, vision = given["--torch"], given["--torchvision"]
    releases = TORCH_RELEASE.fullmatch(torch), VISION_RELEASE.fullmatch(vision)
    if releases[0] is None or releases[1] is None:
        raise UsageError(f"not versions: {torch}, {vision}")
    expected = int(releases[0][1]) + TORCH_BEFORE_VISION
    if int(releases[1][1]) != expected:
        made = f"torchvision {vision} is not made for torch {torch}"
        raise UsageError(f"{made} (it would be 0.{expected}.x)")
    if not given["--torch-index"].startswith("https://"):
        raise UsageError("--torch-index must be an https URL")


def make_command(words: list[str], *, has_token: bool) -> list[str]:
    """Return Docker's command for the options; raises UsageError."""
    values, switches = read_options(words)
    tags, given = values.get("--tag", []), {option: all_[-1] for option, all_ in values.items()}
    check(tags, given)
    target = given.get("--target", "slim")
    command = ["docker", "buildx", "build", "--platform", "linux/amd64", "--target", target]
    for tag in tags:
        command += ["--tag", tag]
    for option, argument in OPTIONS.items():
        if argument is not None and option in given:
            command += ["--build-arg", f"{argument}={given[option]}"]
    if target == "baked" and has_token:
        command += ["--secret", "id=HF_TOKEN,env=HF_TOKEN"]
    command.append("--push" if "--push" in switches else "--load")
    if "--no-cache" in switches:
        command.append("--no-cache")
    return [*command, "."]


def main(words: list[str]) -> int:
    """Print Docker's command and run it; return its exit code, or 2 for wrong options."""
    if "--help" in words or "-h" in words:
        print(USAGE, end="")
        return 0
    try:
        command = make_command(words, has_token=bool(os.environ.get("HF_TOKEN")))
    except UsageError as error:
        print(f"build: {error}\nTry --help", file=sys.stderr)
        return WRONG_USAGE
    print(shlex.join(command), flush=True)
    if "--dry-run" in words:
        return 0
    docker = shutil.which(command[0])
    if docker is None:
        without = "make image-check carries out the Dockerfile without it"
        print(f"build: docker is not installed; {without}", file=sys.stderr)
        return WRONG_USAGE
    try:
        return subprocess.run([docker, *command[1:]], cwd=ROOT, check=False).returncode
    except KeyboardInterrupt:  # docker has had it too, and has said so
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
