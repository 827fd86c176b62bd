"""A GPU's streams without a GPU: what is queued runs when it is waited for, and in its order.

Device memory is the CPU's. A copy that does not block is put off until its stream is waited for, so
that a buffer that is used again too early shows in the bytes.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor


class Event:
    """A mark in a stream."""

    world: "Streams"

    def record(self, stream: Any) -> None:
        """Put the mark at the end of a stream; on the main stream it notes what was allocated."""
        self.stream, self.end = stream, len(stream.queue)
        self.allocated = dict.fromkeys(self.world.allocated, self.world.tick())

    def synchronize(self) -> None:
        """Run what was queued before the mark."""
        self.stream.run(self.end)


class Stream:
    """Work in order, none of it done before it is waited for."""

    def __init__(self, _device: object = None, *, is_main: bool = False) -> None:
        self.is_main = is_main
        self.queue: list[Callable[[], object]] = []
        self.done = 0
        self.may_write: dict[int, int] = {}
        self._turn = threading.RLock()
        Event.world.streams.append(self)

    def wait_event(self, event: Event) -> None:
        """Let what is queued later come after an event: memory allocated before it is usable.

        The main stream, whose work is done at once, does what the event comes after.
        """
        self.may_write |= event.allocated
        if self.is_main:
            event.synchronize()

    def wait_stream(self, other: "Stream") -> None:
        """Let what is queued later come after another stream."""
        other.synchronize()

    def run(self, end: int) -> None:
        """Run the queue up to an end."""
        with self._turn:
            while self.done < end:
                self.queue[self.done]()
                self.queue[self.done] = int  # what it copied from may go
                self.done += 1

    def synchronize(self) -> None:
        """Run everything."""
        self.run(len(self.queue))

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to do."""
        return self.done == len(self.queue)


class Streams:
    """The world: every stream, what was allocated on the device, and pinned memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        Event.world = self
        self.streams: list[Stream] = []
        self.allocated: list[int] = []
        self.pinned: list[weakref.ref[Tensor]] = []
        self.emptied: list[int] = []
        self.now = 0
        self.used: dict[int, int] = {}
        self._main = Stream(is_main=True)
        self._own = threading.local()
        self._empty: Any = torch.empty
        self._copy: Any = Tensor.copy_
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: self._main)
        monkeypatch.setattr(torch.cuda, "stream", self.use)
        monkeypatch.setattr(torch, "empty", self.allocate)
        # a function, so that it becomes a method of tensors
        monkeypatch.setattr(Tensor, "copy_", lambda *given, **named: self.copy(*given, **named))  # noqa: PLW0108
        monkeypatch.setattr(torch._C, "_host_emptyCache", self.empty_host_cache)  # noqa: SLF001 - the only name in every torch

    def tick(self) -> int:
        """Return the time, which is later than any before."""
        self.now += 1
        return self.now

    def note_use(self, tensor: Tensor) -> None:
        """Note that work of the main stream uses a tensor on the device."""
        self.used[tensor.untyped_storage().data_ptr()] = self.tick()

    @contextlib.contextmanager
    def use(self, stream: Stream) -> Iterator[None]:
        """Queue this thread's copies on a stream."""
        self._own.stream = stream
        try:
            yield
        finally:
            del self._own.stream

    def allocate(self, *size: Any, pin_memory: bool = False, **named: Any) -> Tensor:
        """Allocate on the CPU, and note what was meant for the device and what was pinned."""
        is_device = torch.device(named.pop("device", None) or "cpu").type == "cuda"
        made: Tensor = self._empty(*size, **named)
        if is_device:
            self.allocated.append(made.untyped_storage().data_ptr())
        if pin_memory:
            self.pinned.append(weakref.ref(made))
        return made

    def copy(self, place: Tensor, source: Tensor, *, non_blocking: bool = False) -> Tensor:
        """Copy, later where it does not block."""
        stream = getattr(self._own, "stream", None)
        if stream is None or not non_blocking:
            copied: Tensor = self._copy(place, source)
            return copied
        address = place.untyped_storage().data_ptr()
        assert address in stream.may_write, "written to before its memory was free"
        assert stream.may_write[address] > self.used.get(address, 0), "written to while it is used"
        stream.queue.append(lambda: self._copy(place, source))
        return place

    def empty_host_cache(self) -> None:
        """Note how much pinned memory is still in use."""
        self.emptied.append(sum(each() is not None for each in self.pinned))
