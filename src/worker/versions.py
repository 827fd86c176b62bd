"""Which versions work together, and which are known to be bad: data for the doctor and a test."""

import importlib.metadata
from dataclasses import dataclass
from typing import Final

from packaging.specifiers import SpecifierSet
from packaging.version import Version

# The versions that the suite runs on; the lock has exactly these.
TESTED: Final = {
    "torch": "2.13.0",
    "torchvision": "0.28.0",
    "diffusers": "0.42.1",
    "transformers": "5.23.0",
    "huggingface-hub": "2.4.0",
    "peft": "0.21.2",
    "accelerate": "1.15.0",
    "bitsandbytes": "0.50.2",
    "safetensors": "0.8.0",
    "pillow": "13.0.0",
    "runpod": "1.12.0",
    "hf-transfer": "0.1.9",
}


@dataclass(frozen=True, slots=True)
class KnownBad:
    """Versions of a package that must not serve, why, and what to install instead."""

    package: str
    versions: SpecifierSet
    why: str
    instead: str


def _make_known_bad(package: str, versions: str, why: str, instead: str) -> KnownBad:
    return KnownBad(package, SpecifierSet(versions, prereleases=True), why, instead)


KNOWN_BAD: Final = (
    _make_known_bad(
        "torch", "<2.6", "loading a checkpoint can run code (CVE-2025-32434)", "2.11 or newer"
    ),
    _make_known_bad(
        "transformers", "<5.3", "CVE-2026-4372; several 4.5x break Qwen2.5-VL", "5.17 or newer"
    ),
    _make_known_bad("diffusers", "<0.40", "its Qwen-Image classes differ from ours", "0.42.1"),
    _make_known_bad("bitsandbytes", "==0.46.0", "broken release", "0.50.2"),
    _make_known_bad("bitsandbytes", "==0.48.0", "broken release", "0.50.2"),
    _make_known_bad("runpod", "<1.10.1", "jobs funnel to one worker", "1.12.0"),
    _make_known_bad("runpod", ">=1.10.1,<1.12", "no guard against internal addresses", "1.12.0"),
    _make_known_bad("pillow", "<12.3", "older than the fixes of its decoders", "12.3 or newer"),
    _make_known_bad("urllib3", "<2.7", "older than its security fixes", "2.7 or newer"),
    _make_known_bad("filelock", "<3.20.3", "older than its security fixes", "3.20.3 or newer"),
    _make_known_bad(
        "kernels", ">=0", "fetches code from a hub when it is imported", "nothing: uninstall it"
    ),
)

# The oldest driver branch for each major version of CUDA that a torch build is made for (NVIDIA's
# minor version compatibility: any driver of the branch runs every toolkit of that major version).
OLDEST_DRIVER: Final = {12: 525, 13: 580}
# bf16 arithmetic came with Ampere; fp16, all that older cards have, gives black pictures.
OLDEST_CAPABILITY: Final = (8, 0)


def find_version(package: str) -> Version | None:
    """Return the installed version of a package, None if it is not installed."""
    try:
        return Version(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return None


def find_known_bad(package: str, version: Version) -> KnownBad | None:
    """Return why a version of a package must not serve, None if nothing is known against it."""
    for row in KNOWN_BAD:
        if row.package == package and row.versions.contains(version.public):
            return row
    return None


def choose_torchvision(torch: Version) -> str:
    """Return the release series of torchvision that is built for a torch, such as "0.28".

    torchvision 0.N is built against torch 2.(N-15); another pair fails at import with "operator
    torchvision::nms does not exist".
    """
    return f"0.{torch.minor + 15}"
