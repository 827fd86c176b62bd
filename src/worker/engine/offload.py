"""Weights that wait in the host's memory and pass through the device, two modules at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

# Where each tensor begins in a packed module: CUDA's allocator aligns to as much, and which kernel
# multiplies depends on the alignment.
ALIGNMENT: Final = 512
# Modules on the device at once: one that runs, and the next, which is copied meanwhile.
PLACES: Final = 2


@dataclass(frozen=True, slots=True)
class Streamed:
    """What of a model passes through the device: `units`, in the order in which `root` runs them.

    A run may begin at a later one. `looked_up` stay on the host and run there, on tensors that are
    there; everything else of the model is on the device.
    """

    root: nn.Module
    units: Sequence[nn.Module]
    looked_up: Sequence[nn.Module] = ()


def stream_from_host(model: nn.Module, streamed: Streamed, device: torch.device) -> None:
    """Let a filled model on the host run on `device`, whose memory it takes only while it runs.

    The weights of its units are packed in pinned memory, one piece per unit. The result is that of
    the model on the device, to the last bit. For one thread.
    """
    passing = _Passing([_Unit(module, device) for module in streamed.units], device)
    elsewhere = {id(one) for each in streamed.looked_up for one in each.modules()}
    elsewhere |= {id(one) for each in streamed.units for one in each.modules()}
    for module in model.modules():
        if id(module) not in elsewhere:
            _place_own(module, device)
    for module in streamed.looked_up:
        module.register_forward_hook(lambda _module, _given, made: _send(made, device))
    for index, module in enumerate(streamed.units):
        module.register_forward_pre_hook(passing.make_entry(index))
        module.register_forward_hook(passing.make_exit(index))
    # always: what failed half-way has copies in flight, to memory that is given back
    streamed.root.register_forward_hook(
        lambda _module, _given, _made: passing.end(), always_call=True
    )


def measure_unit(tensors: Sequence[Tensor]) -> int:
    """Return the bytes that a module with these tensors takes on the device while it passes."""
    return sum(_round_up(tensor.nbytes) for tensor in tensors)


def _round_up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, through pinned memory: otherwise the host would wait for it."""
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=device.type == "cuda")
    return pinned.copy_(tensor).to(device, non_blocking=True)


def _place_own(module: nn.Module, device: torch.device) -> None:
    """Move a module's own tensors, without those of its children."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(parameter.to(device), requires_grad=False))
    for name, buffer in list(module.named_buffers(recurse=False)):
        setattr(module, name, buffer.to(device))


@dataclass(frozen=True, slots=True)
class _Slot:
    """One tensor of a unit: the module that has it, its name there, and where its bytes are.

    `state` is the path to it in a 4-bit weight's state, empty for a parameter or buffer.
    """

    module: str
    name: str
    state: tuple[str, ...]
    dtype: torch.dtype
    shape: torch.Size
    start: int

    def view(self, memory: Tensor) -> Tensor:
        """Return the tensor in a unit's packed bytes."""
        size = self.shape.numel() * self.dtype.itemsize
        return memory[self.start : self.start + size].view(self.dtype).reshape(self.shape)


class _Unit:
    """A module's tensors in one piece of the host's memory, pinned where the device is a GPU.

    It does not refer to the module, which refers to it.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._slots: list[_Slot] = []
        tensors: list[Tensor] = []
        start = 0
        for path, name, state, tensor in _list_tensors(module):
            self._slots.append(_Slot(path, name, state, tensor.dtype, tensor.shape, start))
            tensors.append(tensor)
            start += _round_up(tensor.nbytes)
        self.packed = torch.empty(start, dtype=torch.uint8, pin_memory=device.type == "cuda")
        for slot, tensor in zip(self._slots, tensors, strict=True):
            slot.view(self.packed).copy_(tensor)
        self.put(module, self.packed)

    def put(self, module: nn.Module, memory: Tensor) -> None:
        """Let the module use its tensors in `memory`, which has its packed bytes."""
        for slot in self._slots:
            owner = module.get_submodule(slot.module)
            made = slot.view(memory)
            old = getattr(owner, slot.name)
            if slot.state:
                _put_in_state(old.quant_state, slot.state, made)
            elif isinstance(old, nn.Parameter):
                new: Any = nn.Parameter(made, requires_grad=False)
                if (state := getattr(old, "quant_state", None)) is not None:
                    new.quant_state = state
                setattr(owner, slot.name, new)
            else:
                setattr(owner, slot.name, made)


def _list_tensors(module: nn.Module) -> Iterator[tuple[str, str, tuple[str, ...], Tensor]]:
    """Yield the module, name and path in its state of every tensor; a weight before its state."""
    for path, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            yield path, name, (), parameter.data
            state = getattr(parameter, "quant_state", None)
            for part, holder in (((), state), (("state2",), getattr(state, "state2", None))):
                for key, value in ({} if holder is None else vars(holder)).items():
                    if isinstance(value, Tensor):
                        yield path, name, (*part, key), value
        for name, buffer in owner.named_buffers(recurse=False):
            yield path, name, (), buffer


def _put_in_state(state: Any, path: tuple[str, ...], value: Tensor) -> None:
    *parts, name = path
    for part in parts:
        state = getattr(state, part)
    setattr(state, name, value)


class _Place:
    """Memory on the device for one unit: which one it has, and the events around its bytes.

    `free` is set before the first is copied there, `arrived` with each.
    """

    free: Any
    arrived: Any

    def __init__(self, size: int, device: torch.device) -> None:
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.index: int | None = None


class _Passing:
    """The passage of units through two places on a device, copied on a stream of their own.

    Places are there from the first unit of a run to the end of it. The host waits for nothing: the
    stream of the copies waits until a place is free, that of the work until its unit has arrived.
    """

    def __init__(self, units: Sequence[_Unit], device: torch.device) -> None:
        self._units = units
        self._device = device
        self._side: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._places: list[_Place] = []
        self._running: tuple[_Unit, nn.Module] | None = None

    def make_entry(self, index: int) -> Any:
        """Return what is called before the unit at `index` runs."""

        def begin(module: nn.Module, _given: Any) -> None:
            self._start()
            self._load(index)
            self._load(index + 1)
            place = self._find_place(index)
            if self._side is not None:
                torch.cuda.current_stream(self._device).wait_event(place.arrived)
            self._units[index].put(module, place.memory)
            self._running = self._units[index], module

        return begin

    def make_exit(self, index: int) -> Any:
        """Return what is called after the unit at `index` has run."""

        def leave(_module: nn.Module, _given: Any, _made: Any) -> None:
            self._stop_running()
            place = self._find_place(index)
            place.free = self._note_done()
            self._load(index + PLACES)

        return leave

    def end(self) -> None:
        """Give the places back, once nothing is copied to them any more."""
        self._stop_running()
        if self._places and self._side is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._side)
        self._places = []

    def _start(self) -> None:
        if self._places:
            return
        size = max(len(unit.packed) for unit in self._units)
        self._places = [_Place(size, self._device) for _ in range(PLACES)]
        for place in self._places:
            place.free = self._note_done()

    def _load(self, index: int) -> None:
        """Copy a unit to its place, once that is free, unless it is there already."""
        if index >= len(self._units):
            return
        place, packed = self._find_place(index), self._units[index].packed
        if place.index == index:
            return
        place.index = index
        if self._side is None:
            place.memory[: len(packed)].copy_(packed)
            return
        self._side.wait_event(place.free)
        with torch.cuda.stream(self._side):
            place.memory[: len(packed)].copy_(packed, non_blocking=True)
            place.arrived = torch.cuda.Event()
            place.arrived.record(self._side)

    def _find_place(self, index: int) -> _Place:
        return self._places[index % PLACES]

    def _note_done(self) -> Any:
        """Return an event after which memory that was used until now may be written to."""
        if self._side is None:
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _stop_running(self) -> None:
        """Let the unit that runs have its tensors on the host again."""
        if self._running is not None:
            unit, module = self._running
            unit.put(module, unit.packed)
            self._running = None
