"""Weights that were published as a pickle: read as tensors alone, so that no code of it runs."""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from worker.bundle.tensors import Header, TensorEntry
from worker.errors import WeightsUnavailable

ENDINGS = (".bin", ".pt", ".pth")


def is_pickle(path: str) -> bool:
    """Return whether a file is a pickle, by its name."""
    return path.endswith(ENDINGS)


def read_pickled_header(data: bytes, path: str) -> Header:
    """Return which tensors a pickle has; raises WeightsUnavailable for one that is anything else.

    They have no place in the file: `start` and `end` are 0.
    """
    return {
        name: TensorEntry(tensor.dtype, tuple(tensor.shape), 0, 0)
        for name, tensor in _load(io.BytesIO(data), path).items()
    }


@contextmanager
def open_weights(path: Path) -> Iterator[Callable[[str], Tensor]]:
    """Yield what returns a tensor of a file by its name; the file is mapped where it can be.

    Raises WeightsUnavailable for a pickle that is no mapping of tensors, and what safetensors does.
    """
    if is_pickle(path.name):
        yield _load(path, path.name).__getitem__
        return
    with safe_open(path, framework="pt") as file:
        yield file.get_tensor


def _load(source: Any, path: str) -> Mapping[str, Tensor]:
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        # whatever a broken file, or one with code in it, makes torch raise
        raise WeightsUnavailable(
            f"{path} is not a file of tensors alone ({type(error).__name__})"
        ) from error
    is_plain = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    )
    if not is_plain:
        raise WeightsUnavailable(f"{path} is not a mapping of names to tensors")
    found: dict[str, Tensor] = dict(state)
    return found
