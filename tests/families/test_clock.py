"""A phase takes from its beginning until the device has finished it, in milliseconds."""

import contextlib
import time

import pytest
import torch

from worker.engine import device as devices
from worker.families.clock import Clock


def test_a_phase_ends_when_the_device_has_finished_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that fails; what has the same name is added."""
    moment = 5.0

    def pass_seconds(seconds: float) -> None:
        nonlocal moment
        moment += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: moment)
    monkeypatch.setattr(devices, "synchronize", lambda device: pass_seconds(len(device.type)))
    clock = Clock(torch.device("cpu"))
    for seconds in (0.5, 1.0):
        with clock.measure_phase("text"):
            pass_seconds(seconds)
    with contextlib.suppress(InterruptedError), clock.measure_phase("decode"):
        raise InterruptedError
    assert clock.spent == {"text": 7500.0, "decode": 3000.0}
