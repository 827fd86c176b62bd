"""Weights that wait on the host give a device's result, and take its memory for two modules."""

import gc
import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from worker.engine.offload import ALIGNMENT, Streamed, measure_unit, stream_from_host
from worker.engine.quantise import Precision, make_linear, quantise
from worlds.streams import Streams

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WIDTH = 64


class Layer(nn.Module):
    """A layer with a parameter, a buffer, and a Linear of any precision; it may fail."""

    shift: Tensor
    bend: Tensor

    def __init__(
        self,
        seed: int,
        precision: Precision = "bf16",
        note: Callable[[Tensor], None] = lambda _: None,
    ) -> None:
        super().__init__()
        made = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=made, dtype=torch.bfloat16)

        self.scale = nn.Parameter(draw(WIDTH), requires_grad=False)
        self.register_buffer("shift", draw(1))
        self.register_buffer("bend", draw(WIDTH))
        weight, bias = draw(WIDTH, WIDTH), draw(WIDTH)
        self.linear: Any = nn.Linear(WIDTH, WIDTH, dtype=torch.bfloat16)
        if precision == "bf16":
            self.linear.weight = nn.Parameter(weight, requires_grad=False)
        else:
            parts = quantise(weight, precision, CPU)
            self.linear = make_linear(parts, bias, precision, CPU, packed=True)
        self.linear.bias = nn.Parameter(bias, requires_grad=False)
        self.fails = False
        self._note = note

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., WIDTH] to as many."""
        if self.fails:
            raise RuntimeError("this layer fails")
        y = self.linear(x) * self.scale + self.shift
        for tensor in (self.scale, self.shift, self.bend, self.linear.weight):
            self._note(tensor)
        return torch.tanh(y) + self.bend


class Tower(nn.Module):
    """Layers after each other, from any of them on."""

    layers: Any

    def __init__(
        self, precision: Precision = "bf16", note: Callable[[Tensor], None] = lambda _: None
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(seed, precision, note) for seed in range(5))

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """Run the layers from `first` on."""
        for layer in self.layers[first:]:
            x = layer(x)
        return x


def stream(tower: Tower, device: torch.device) -> Tower:
    stream_from_host(tower, Streamed(tower, list(tower.layers)), device)
    return tower


@pytest.fixture
def x() -> Tensor:
    made = torch.Generator().manual_seed(9)
    return torch.randn(7, WIDTH, generator=made, dtype=torch.bfloat16)


@pytest.mark.parametrize("precision", ["bf16", "8bit", "4bit"])
def test_the_result_is_that_of_weights_that_are_there_to_the_last_bit(
    precision: Precision, x: Tensor
) -> None:
    """From whichever layer a run begins, and however often."""
    resident, streamed = Tower(precision), stream(Tower(precision), CPU)
    for first in (5, 0, 2, 4, 0):
        with torch.inference_mode():
            assert torch.equal(resident(x, first), streamed(x, first))


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    return Streams(monkeypatch)


def test_on_a_gpu_every_layer_has_its_own_weights_when_it_runs(streams: Streams, x: Tensor) -> None:
    """Copies come as late as they may, and none to memory that a layer still uses."""
    expected = [Tower()(x, first) for first in (0, 1, 4)]
    tower = stream(Tower(note=streams.note_use), CUDA)
    assert len(streams.pinned) == len(tower.layers)
    for first, made in zip((0, 1, 4), expected, strict=True):
        assert torch.equal(tower(x, first), made)
        assert all(one.is_idle for one in streams.streams)


def test_the_next_layer_is_copied_while_one_runs(streams: Streams, x: Tensor) -> None:
    tower = stream(Tower(), CUDA)
    waiting: list[int] = []
    for layer in tower.layers:
        layer.register_forward_pre_hook(
            lambda *_: waiting.append(sum(len(one.queue) - one.done for one in streams.streams))
        )
    tower(x)
    assert waiting == [1, 1, 1, 1, 0]


def test_the_device_has_memory_for_two_layers_and_only_while_they_run(
    monkeypatch: pytest.MonkeyPatch, x: Tensor
) -> None:
    made: list[weakref.ref[Tensor]] = []
    empty: Any = torch.empty

    def allocate(*size: Any, **named: Any) -> Tensor:
        tensor: Tensor = empty(*size, **named)
        if named.get("device") is not None:
            made.append(weakref.ref(tensor))
        return tensor

    tower = stream(Tower(), CPU)
    size = measure_unit([*tower.layers[0].parameters(), *tower.layers[0].buffers()])
    assert size % ALIGNMENT == 0
    monkeypatch.setattr(torch, "empty", allocate)
    alive: list[int] = []
    for layer in tower.layers:
        layer.register_forward_pre_hook(
            lambda *_: alive.append(sum(len(one) for ref in made if (one := ref()) is not None))
        )
    tower(x)
    assert alive == [2 * size] * 5
    assert [ref() for ref in made] == [None] * 2


def test_a_run_that_fails_leaves_nothing_in_flight_and_the_next_is_right(
    streams: Streams, x: Tensor
) -> None:
    expected = Tower()(x)
    tower = stream(Tower(note=streams.note_use), CUDA)
    for place in (0, 2, 4):
        tower.layers[place].fails = True
        with pytest.raises(RuntimeError, match="this layer fails"):
            tower(x)
        assert all(one.is_idle for one in streams.streams)
        tower.layers[place].fails = False
        assert torch.equal(tower(x), expected)


def test_between_runs_every_layer_has_its_weights_on_the_host(x: Tensor) -> None:
    """One piece of memory per layer, in which no two tensors meet."""
    tower, like = stream(Tower("4bit"), CPU), Tower("4bit")
    tower(x)
    for ours, theirs in zip(tower.layers, like.layers, strict=True):
        pairs = list(zip(ours.named_parameters(), theirs.named_parameters(), strict=True))
        assert all(torch.equal(one.data, other.data) for (_, one), (_, other) in pairs)
        state: Any = ours.linear.weight.quant_state
        assert torch.equal(state.state2.absmax, theirs.linear.weight.quant_state.state2.absmax)
        tensors = [one.data for _, one in ours.named_parameters()]
        tensors += [
            ours.shift,
            ours.bend,
            state.absmax,
            state.code,
            state.state2.absmax,
            state.state2.code,
        ]
        assert len({one.untyped_storage().data_ptr() for one in tensors}) == 1
        places = sorted((one.storage_offset() * one.element_size(), one.nbytes) for one in tensors)
        assert all(start + size <= after for (start, size), (after, _) in pairwise(places))
        assert all(start % ALIGNMENT == 0 for start, _ in places)


def test_what_passes_is_on_the_host_what_is_looked_up_too_and_the_rest_on_the_device() -> None:
    """The meta device stands for one: what was moved there shows it."""
    tower = Tower()
    tables = [nn.Embedding(3, WIDTH, dtype=torch.bfloat16) for _ in range(2)]
    first = {"table": tables[0], "places": tables[1]}
    model = nn.ModuleDict({**first, "tower": tower, "last": Layer(5)})
    model.register_buffer("rest", torch.zeros(1))
    meta = torch.device("meta")
    stream_from_host(model, Streamed(tower, list(tower.layers), tables), meta)
    found = {name: one.device.type for name, one in model.named_parameters()}
    found |= {name: one.device.type for name, one in model.named_buffers()}
    on_device = {name for name, place in found.items() if place == "meta"}
    assert on_device == {name for name in found if name.startswith(("last.", "rest"))}
    for table in tables:
        found_there = table(torch.tensor([0, 2]))
        assert (found_there.device.type, found_there.dtype) == ("meta", torch.bfloat16)
        assert found_there.shape == (2, WIDTH)
    assert not any(one.requires_grad for one in model["last"].parameters())
    placed = [
        (type(module).__name__, name)
        for module in model.modules()
        for name, one in vars(module).items()
        if isinstance(one, Tensor)
    ]
    assert placed == []


def test_a_run_that_fails_leaves_every_layer_its_weights_on_the_host(x: Tensor) -> None:
    tower = stream(Tower(), CPU)
    before = [one.data_ptr() for one in (*tower.parameters(), *tower.buffers())]
    tower.layers[2].fails = True
    with pytest.raises(RuntimeError, match="this layer fails"):
        tower(x)
    assert [one.data_ptr() for one in (*tower.parameters(), *tower.buffers())] == before
    assert not any(one.requires_grad for one in tower.parameters())


def test_a_model_that_is_dropped_is_freed() -> None:
    tower = stream(Tower(), CPU)
    kept = weakref.ref(tower)
    del tower
    gc.collect()
    assert kept() is None
