"""Phases that run out of memory: run again once, with memory freed, and remembered."""

import weakref

import pytest
import torch

from worker.engine import device as devices
from worker.errors import CudaOutOfMemory, DeviceLost
from worker.families.memory import Phases, check_freed


class Room:
    """A device on which something succeeds from its `enough`-th attempt on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, enough: int) -> None:
        self.events: list[str] = []
        self._left = enough - 1
        self._tensor: weakref.ref[torch.Tensor] = weakref.ref(torch.empty(0))
        monkeypatch.setattr(devices, "free_memory", self._free)

    def _free(self) -> None:
        assert self._tensor() is None, "the failed attempt still has its tensors"
        self.events.append("free")

    def forget(self) -> None:
        """Record."""
        self.events.append("forget")

    def make(self, frugal: bool) -> int:
        """Record, and fail or return a number."""
        self.events.append("frugal" if frugal else "plain")
        kept = torch.empty(3)
        self._tensor = weakref.ref(kept)
        if self._left > 0:
            self._left -= 1
            raise torch.OutOfMemoryError("full")
        return len(kept)


def test_memory_is_freed_before_the_second_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first attempt had is gone by then, and so is what was cached."""
    room = Room(monkeypatch, enough=2)
    assert Phases(room.forget).run("decode", 1, room.make) == 3
    assert room.events == ["plain", "forget", "free", "frugal"]


def test_what_a_kind_needed_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """By phase and kind; what is cached stays unless it fails again."""
    room = Room(monkeypatch, enough=2)
    phases = Phases(room.forget)
    phases.run("decode", 1, room.make)
    room.events.clear()
    phases.run("decode", 1, room.make)
    assert room.events == ["free", "frugal"]
    room.events.clear()
    phases.run("decode", 2, room.make)
    phases.run("denoise", 1, room.make)
    assert room.events == ["plain", "plain"]


def test_without_room_the_first_attempt_is_frugal(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(monkeypatch, enough=1)
    phases = Phases(room.forget)
    phases.run("decode", 1, room.make, has_room=False)
    phases.run("decode", 1, room.make)
    assert room.events == ["frugal", "plain"]


def test_a_second_failure_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(monkeypatch, enough=3)
    with pytest.raises(CudaOutOfMemory):
        Phases(room.forget).run("text", 1, room.make)
    assert room.events == ["plain", "forget", "free", "frugal"]


@pytest.mark.parametrize("error", [torch.AcceleratorError("CUDA error: x"), ValueError("another")])
def test_nothing_else_is_tried_again(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    room = Room(monkeypatch, enough=1)

    def make(_frugal: bool) -> None:
        room.events.append("tried")
        raise error

    with pytest.raises(DeviceLost if isinstance(error, torch.AcceleratorError) else ValueError):
        Phases(room.forget).run("text", 1, make)
    assert room.events == ["tried"]


class Ring:
    """A part that refers to itself, as modules with hooks do."""

    def __init__(self) -> None:
        self.own = self


def test_a_part_that_only_refers_to_itself_is_freed() -> None:
    part = Ring()
    module = weakref.ref(part)
    with pytest.raises(DeviceLost, match="not freed"):
        check_freed(module)
    del part
    assert module() is not None
    check_freed(module)
