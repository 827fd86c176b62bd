"""Which versions work together, and which are known to be bad: data for the doctor and a test."""

import importlib.metadata
from dataclasses import dataclass
from typing import Final

from packaging.specifiers import SpecifierSet
from packaging.version import Version


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """The torch of an image: the name of its lock, the CUDA that it is built for, its versions.

    `driver` is the oldest branch whose driver supports that CUDA (CUDA's release notes); older
    ones of the same major version may run it (`OLDEST_DRIVER`).
    """

    name: str
    cuda: tuple[int, int]
    torch: str
    torchvision: str
    driver: int


# The first is the default image's: the oldest CUDA that Blackwell runs on, and every host that runs
# the second runs it too.
TORCH_BUILDS: Final = (
    TorchBuild("cu128", (12, 8), "2.10.0", "0.25.0", 570),
    TorchBuild("cu130", (13, 0), "2.13.0", "0.28.0", 580),
)

# The versions that the suite runs on; the locks have exactly these.
TESTED: Final = {
    "torch": tuple(build.torch for build in TORCH_BUILDS),
    "torchvision": tuple(build.torchvision for build in TORCH_BUILDS),
    "diffusers": ("0.42.1",),
    "transformers": ("5.23.0",),
    "huggingface-hub": ("2.4.0",),
    "peft": ("0.21.2",),
    "accelerate": ("1.15.0",),
    "bitsandbytes": ("0.50.2",),
    "safetensors": ("0.8.0",),
    "pillow": ("13.0.0",),
    "soundfile": ("0.14.0",),
    "runpod": ("1.12.0",),
    "hf-transfer": ("0.1.9",),
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
        "torch", "<2.6", "loading a checkpoint can run code (CVE-2025-32434)", "2.10 or newer"
    ),
    _make_known_bad(
        "transformers", "<5.3", "CVE-2026-4372; several 4.5x break Qwen2.5-VL", "5.17 or newer"
    ),
    _make_known_bad("diffusers", "<0.40", "its Qwen-Image classes differ from ours", "0.42.1"),
    _make_known_bad(
        "bitsandbytes", "<0.45.5", "conflicts with later torch; Unsloth refuses it too", "0.50.2"
    ),
    _make_known_bad(
        "bitsandbytes", "==0.46.0", "had a bug that its next patch release fixed", "0.50.2"
    ),
    _make_known_bad(
        "bitsandbytes", "==0.48.0", "cannot open int8 weights that are quantised already", "0.50.2"
    ),
    _make_known_bad("soundfile", "<0.13", "cannot choose how strongly to compress", "0.14.0"),
    _make_known_bad("runpod", "<1.10.1", "jobs funnel to one worker", "1.12.0"),
    _make_known_bad("runpod", ">=1.10.1,<1.12", "no guard against internal addresses", "1.12.0"),
    _make_known_bad("pillow", "<12.3", "older than the fixes of its decoders", "12.3 or newer"),
    _make_known_bad("urllib3", "<2.7", "older than its security fixes", "2.7 or newer"),
    _make_known_bad("filelock", "<3.20.3", "older than its security fixes", "3.20.3 or newer"),
    _make_known_bad(
        "kernels", ">=0", "fetches code from a hub when it is imported", "nothing: uninstall it"
    ),
)

# The releases of CUDA from the default image's on (NVIDIA's release notes). RunPod matches a host's
# version exactly, so a list of allowed versions names each: a new release is added here.
CUDA_RELEASES: Final = (
    *((12, 8), (12, 9)),
    *((13, 0), (13, 1), (13, 2), (13, 3), (13, 4), (13, 5)),
)
# The oldest driver branch for each major version of CUDA that a torch build is made for (NVIDIA's
# minor version compatibility: any driver of the branch runs every toolkit of that major version).
OLDEST_DRIVER: Final = {12: 525, 13: 580}
# bf16 arithmetic came with Ampere; fp16, all that older cards have, gives black pictures.
OLDEST_CAPABILITY: Final = (8, 0)


def write_cuda(version: tuple[int, int]) -> str:
    """Write a version of CUDA as NVIDIA and RunPod do, such as "12.8"."""
    return ".".join(map(str, version))


def list_releases(oldest: tuple[int, int]) -> list[str]:
    """Return every release of CUDA that a list of allowed versions names, from the oldest on."""
    return [write_cuda(release) for release in CUDA_RELEASES if release >= oldest]


def list_runnable_builds(driver_cuda: tuple[int, int]) -> list[TorchBuild]:
    """Return the builds whose CUDA a driver supports, given the newest CUDA that it supports."""
    return [build for build in TORCH_BUILDS if build.cuda <= driver_cuda]


def find_build(torch: Version) -> TorchBuild | None:
    """Return the image's build that this torch is, None if it is another version or CUDA.

    The registry's builds have no local version, those of other indexes have one such as "+cpu".
    """
    for build in TORCH_BUILDS:
        if torch.public == build.torch and torch.local in (None, build.name):
            return build
    return None


def name_build(torch: Version | None) -> str:
    """Name a torch as the local part of a version: "+cu128" of an image, "+torch2.11.0", or ""."""
    if torch is None:
        return ""
    build = find_build(torch)
    return f"+{build.name if build else f'torch{torch}'.replace('+', '.')}"


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
