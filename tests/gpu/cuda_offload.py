"""A text encoder that waits in the host's memory: a resident one's result, and far less memory."""

import time
from collections.abc import Callable, Iterator

import pytest
import torch
from gpu.figures import Figures
from gpu.studio import FLUX, Drawing, Studio, find_opener, make_images, make_wishes
from torch import Tensor, nn

from worker.bundle import layout
from worker.bundle.open import make_shared
from worker.engine.offload import Streamed, measure_unit, stream_from_host

# Layers as large as those of the published text encoder in 4bit: 120 MB each.
LAYERS, WIDTH = 12, 7744


@pytest.mark.parametrize("precision", ["bf16", "8bit", "4bit"])
@pytest.mark.parametrize("name", ["tiny-image", "tiny-edit", FLUX])
def test_pictures_are_those_of_an_encoder_that_is_on_the_device(
    studio: Studio, figures: Figures, name: str, precision: str
) -> None:
    """To the last bit, and again; neither has an adapter in its weights."""
    model = studio.open(name, precision, LIGHTNING_MERGE="off")
    folder, opener = studio.find_bundle(name, precision), find_opener(name)
    parts = opener.open_bundle(
        folder,
        studio.device,
        verify="sizes",
        waiting=torch.device("cpu"),
        share=make_shared(),
        compiled_batch=0,
        spare=None,
    )
    waiting = opener.build(parts, model.served, layout.read_bundle(folder), None)
    assert isinstance(waiting, Drawing)
    wishes = make_wishes(name)
    expected = [make_images(model, [wish])[0].tobytes() for wish in wishes]
    equal = [make_images(waiting, [wish])[0].tobytes() for wish in wishes]
    figures.put(equal=sum(one == other for one, other in zip(expected, equal, strict=True)))
    assert equal == expected
    assert [make_images(waiting, [wish])[0].tobytes() for wish in wishes] == expected


class Tower(nn.Module):
    """Layers after each other."""

    def __init__(self, make: Callable[[], Iterator[nn.Module]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(make())

    def forward(self, x: Tensor) -> Tensor:
        """Run them all."""
        for layer in self.layers:
            x = layer(x)
        return x


def make_layers(device: torch.device) -> Iterator[nn.Module]:
    """Yield the same layers each time."""
    made = torch.Generator().manual_seed(0)
    for _ in range(LAYERS):
        layer = nn.Linear(WIDTH, WIDTH, bias=False, device="meta")
        weight = torch.randn(WIDTH, WIDTH, generator=made).mul_(WIDTH**-0.5)
        layer.weight = nn.Parameter(weight.to(device, torch.bfloat16), requires_grad=False)
        yield layer


@pytest.mark.cuda
@torch.inference_mode()
def test_layers_of_the_published_size_pass_at_the_speed_of_the_bus(
    figures: Figures, device: torch.device
) -> None:
    """Equal to the last bit each time, in memory for two, and without a wait of the host."""
    x = torch.randn(4096, WIDTH, device=device, dtype=torch.bfloat16)
    resident = Tower(lambda: make_layers(device))
    expected = resident(x)
    del resident
    tower = Tower(lambda: make_layers(torch.device("cpu")))
    stream_from_host(tower, Streamed(tower, list(tower.layers)), device)
    tower(x)
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [tower(x) for _ in range(5)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize(device)
    equal = sum(torch.equal(one, expected) for one in found)
    unit = measure_unit(list(tower.layers[0].parameters()))
    peak = torch.cuda.max_memory_allocated(device) - before
    start = time.perf_counter()
    tower(x)
    torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    rate = LAYERS * unit / seconds / 1e9
    figures.put(equal=equal, of=len(found), peak_mb=peak >> 20, unit_mb=unit >> 20, gb_per_s=rate)
    assert equal == len(found)
    assert peak < 2 * unit + 12 * x.nbytes
    assert rate > 3
