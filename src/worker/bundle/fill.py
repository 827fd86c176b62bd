"""Modules without memory for weights, and how they get their tensors."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from worker.engine.quantise import Precision, make_linear

# accelerate swaps a method of nn.Module meanwhile: two threads would restore each other's.
_ONE_AT_A_TIME: Final = threading.Lock()


@contextmanager
def make_empty() -> Iterator[None]:
    """Make modules whose parameters have no memory; buffers and plain tensors are real.

    Under torch.device("meta") what a constructor computes (inv_freq of a language model, pos_embed
    frequencies of a transformer) would stay on meta and be lost.
    """
    from accelerate import init_empty_weights  # noqa: PLC0415 - imported while files are read

    with _ONE_AT_A_TIME, init_empty_weights(include_buffers=False):
        yield


def fill(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    precision: Precision,
    device: torch.device,
    *,
    packed: bool = False,
) -> None:
    """Give every parameter of a meta-device model its tensor; replace quantised Linears.

    `tensors` are in bf16 where `quantise` did not store them. The model ends in eval mode on
    `device`; `packed` is that of `make_linear`. Raises KeyError or ValueError when tensors and
    parameters do not match one to one, or when anything is left on meta.
    """
    plain, quantised = _split(tensors)
    for name, parts in quantised.items():
        parts["weight"] = plain.pop(f"{name}.weight")
        bias = plain.pop(f"{name}.bias", None)
        moved_bias = None if bias is None else bias.to(device)
        _put(model, name, make_linear(parts, moved_bias, precision, device, packed=packed))
    for name, old in list(model.named_parameters()):
        if not old.is_meta:
            continue
        tensor = plain.pop(name)
        if tensor.shape != old.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, not {tuple(old.shape)}")
        _put(model, name, nn.Parameter(tensor.to(device), requires_grad=False))
    if plain:
        raise ValueError(f"{len(plain)} tensors have no place, {sorted(plain)[:3]}")
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = buffer.to(device)  # noqa: SLF001 - assigning keeps its persistence
    model.eval().requires_grad_(requires_grad=False)
    if lost := sorted(find_on_meta(model)):
        raise ValueError(f"{len(lost)} tensors have no memory, {lost[:3]}")


def _split(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Split parameters from the tensors of quantised weights ("MODULE.weight.absmax")."""
    plain: dict[str, Tensor] = {}
    quantised: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, packed, suffix = name.partition(".weight.")
        if packed:
            quantised.setdefault(module, {})[f"weight.{suffix}"] = tensor
        else:
            plain[name] = tensor
    return plain, quantised


def _put(model: nn.Module, name: str, value: nn.Module | nn.Parameter) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, value)


def find_on_meta(model: nn.Module) -> Iterator[str]:
    """Name every tensor of a model that is on meta: parameters, buffers and plain attributes."""
    for path, module in model.named_modules():
        for name, tensor in _find_tensors("", vars(module)):
            if tensor.is_meta:
                yield f"{path}{name}"


def _find_tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Find the tensors in a value and in the dicts and sequences in it."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _find_tensors(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _find_tensors(f"{name}.{index}", item)
