"""What torch's compiler has made in this process, as bytes that another process starts from."""

import platform
from dataclasses import dataclass
from typing import Any, Final

import torch

from worker import versions

# The packages that write or run what is compiled, in addition to torch.
MAKERS: Final = ("triton", "bitsandbytes")


@dataclass(frozen=True, slots=True)
class Artifacts:
    """What was compiled or found compiled: `names` are torch's own keys, with their kinds."""

    data: bytes
    names: frozenset[str]


def list_makers(device: torch.device) -> list[str]:
    """Name what compiled graphs depend on beside our code: the device, and every version."""
    names = [platform.machine(), f"python {platform.python_version()}"]
    names.append(f"torch {torch.__version__}")
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        names += [torch.cuda.get_device_name(device), f"capability {major}.{minor}"]
    return names + [f"{package} {versions.find_version(package)}" for package in MAKERS]


def collect() -> Artifacts | None:
    """Return what this process compiled since the last call; None where that is nothing.

    What it would have compiled but found compiled is part of it.
    """
    from torch.compiler._cache import CacheArtifactManager  # noqa: PLC0415 - a part that may move

    found: Any = torch.compiler.save_cache_artifacts()
    # Of what is saved in two turns, torch (2.10, 2.13) reads only the second back.
    CacheArtifactManager.clear()
    return None if found is None else Artifacts(found[0], _list_names(found[1]))


def load(data: bytes) -> frozenset[str]:
    """Give torch's compiler what another process collected; return the names of what it got.

    The bytes have code in them that is run: they must be the worker's own. Raises ValueError for
    bytes that are none of torch's, and what the disk raises on which torch keeps them.
    """
    info = torch.compiler.load_cache_artifacts(data)
    if info is None:
        raise ValueError("torch cannot read it")
    return _list_names(info)


def _list_names(info: Any) -> frozenset[str]:
    return frozenset(f"{kind} {key}" for kind, keys in info.artifacts.items() for key in keys)
