"""The published VAEs on the device: near diffusers', and within the memory that is computed."""

import copy
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLFlux2, AutoencoderKLQwenImage
from gpu.figures import Figures
from torch import Tensor

from worker.families.flux2 import arranging
from worker.families.flux2 import working as flux_working
from worker.families.flux2.arranging import arrange, compile_activated, list_activated
from worker.families.flux2.compiling import compile_norms
from worker.families.qwen_image import working
from worker.families.qwen_image.frame_vae import FrameVae
from worker.families.qwen_image.published import PublishedVae

# Both are rounded to bf16: on a CPU they differ by 0.023, and each by 0.020 from float32.
FLUX_FAR = 0.04
RUNS = 5  # of which the median is taken
FAR = 0.03  # bf16 has 8 bits, and cuDNN sums in another order per layout


def make_stock(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return diffusers' VAE, the published configuration with random weights, norms too."""
    torch.manual_seed(0)
    with torch.device(device):
        made: Any = AutoencoderKLQwenImage()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1 or parameter.shape[1:].numel() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    # the exact reference has the same rounded weights
    return made.to(torch.bfloat16).to(device, dtype).eval()


@pytest.fixture(scope="module")
def ours(device: torch.device) -> FrameVae:
    """The VAE as the worker runs it."""
    return FrameVae(make_stock(device))


@pytest.fixture(scope="module")
def theirs(device: torch.device) -> PublishedVae:
    """The published VAE with the same weights."""
    return PublishedVae(make_stock(device))


@pytest.fixture(scope="module")
def exact(device: torch.device) -> PublishedVae:
    """The same in float32."""
    return PublishedVae(make_stock(device, torch.float32))


def make_frames(device: torch.device, channels: int, height: int, width: int) -> Tensor:
    made = torch.Generator().manual_seed(1)
    frames = torch.rand(1, channels, height, width, generator=made) * 2 - 1
    return frames.to(device, torch.bfloat16)


def differ(found: Tensor, expected: Tensor) -> float:
    """Return |found - expected| / |expected|."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("tiled", [False, True])
@torch.inference_mode()
def test_a_frame_is_what_it_is_by_diffusers(
    figures: Figures,
    device: torch.device,
    ours: FrameVae,
    theirs: PublishedVae,
    exact: PublishedVae,
    *,
    tiled: bool,
) -> None:
    """Both are compared with diffusers' in float32: ours is no further from it."""
    height, width = (512, 384) if device.type == "cuda" else (64, 48)
    pixels = make_frames(device, 3, height, width)
    latents = make_frames(device, 16, height // 8, width // 8) * 3
    found: dict[str, float] = {}
    for word, given in (("encode", pixels), ("decode", latents)):
        mine = getattr(ours, word)(given, tiled=tiled)
        stock = getattr(theirs, word)(given, tiled=tiled)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            true = getattr(exact, word)(given.float(), tiled=tiled)
        if word == "decode":
            stock, true = stock.clamp(-1, 1), true.clamp(-1, 1)
        assert torch.isfinite(mine).all()
        found[word] = differ(mine, stock)
        found[f"{word}_ours_to_exact"] = differ(mine, true)
        found[f"{word}_stock_to_exact"] = differ(stock, true)
    figures.put(**{key: float(f"{value:.3g}") for key, value in found.items()})
    for word in ("encode", "decode"):
        assert found[word] < FAR
        assert found[f"{word}_ours_to_exact"] <= 1.5 * found[f"{word}_stock_to_exact"] + 1e-4


@pytest.mark.cuda
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("word", ["encode", "decode"])
@pytest.mark.parametrize(("width", "height"), [(1024, 1024), (1328, 1328), (1664, 928)])
@torch.inference_mode()
def test_a_frame_takes_no_more_than_is_computed(
    figures: Figures,
    device: torch.device,
    ours: FrameVae,
    word: str,
    width: int,
    height: int,
    *,
    tiled: bool,
) -> None:
    """Beside its input; of torch's allocator, cuDNN's workspaces among it."""
    pixels = width * height
    given = (
        make_frames(device, 3, height, width)
        if word == "encode"
        else make_frames(device, 16, height // 8, width // 8)
    )
    run: Any = getattr(ours, word)
    peaks = []
    for _ in range(2):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        kept = run(given, tiled=tiled)
        torch.cuda.synchronize(device)
        peaks.append(torch.cuda.max_memory_allocated(device) - before)
        del kept
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    run(given, tiled=tiled)
    ended.record()
    ended.synchronize()
    frame = working.count_frame_bytes(pixels)
    if tiled:
        frame = working.count_frame_bytes(working.TILE_PIXELS) + working.TILED_FRAME * pixels
    computed = frame + working.PICTURE * pixels
    figures.put(
        peak_mb=round(max(peaks) / 1e6),
        computed_mb=round(computed / 1e6),
        share=round(max(peaks) / computed, 3),
        ms=round(begun.elapsed_time(ended), 1),
    )
    assert max(peaks) <= computed, "more than the computed bytes"


class FluxVaes:
    """FLUX.2's VAE in its published size with random weights: stock, arranged, and compiled."""

    def __init__(self, device: torch.device) -> None:
        torch.manual_seed(0)
        with torch.device(device):
            made: Any = AutoencoderKLFlux2()
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        self.stock = made.to(device, torch.bfloat16).eval().requires_grad_(requires_grad=False)
        self.exact = copy.deepcopy(self.stock).float()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(arranging, "is_best_last", lambda _: True)
            self.plain = arrange(copy.deepcopy(self.stock))
            self.compiled = arrange(copy.deepcopy(self.stock))

    def compile_norms(self) -> Any:
        """Compile the norms as a worker does before its first job."""
        shared = compile_activated(self.compiled)
        compile_norms(self.compiled)
        return shared


@pytest.fixture(scope="module")
def flux_vaes(device: torch.device) -> FluxVaes:
    """The VAEs of these weights."""
    return FluxVaes(device)


def run_flux(vae: Any, word: str, given: Tensor, *, is_last: bool) -> Tensor:
    """Encode or decode as the worker does, or as the stock pipeline does."""
    layout = torch.channels_last if is_last else torch.contiguous_format
    placed = given.contiguous(memory_format=layout)
    if word == "encode":
        return torch.as_tensor(vae.encode(placed).latent_dist.mode())
    return torch.as_tensor(vae.decode(placed, return_dict=False)[0])


def measure_peak(run: Callable[[], Tensor], device: torch.device) -> int:
    """Return the most bytes that a run takes in addition to what is there."""
    run()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def measure_ms(run: Callable[[], Tensor]) -> float:
    """Return the median of the milliseconds of some runs."""
    spent: list[float] = []
    for _ in range(RUNS):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        run()
        ended.record()
        ended.synchronize()
        spent.append(begun.elapsed_time(ended))
    return round(statistics.median(spent), 1)


@pytest.mark.parametrize("word", ["encode", "decode"])
@pytest.mark.parametrize("way", ["plain", pytest.param("compiled", marks=pytest.mark.cuda)])
@torch.inference_mode()
def test_flux_s_vae_is_near_the_stock_one_and_within_its_memory(
    figures: Figures, device: torch.device, flux_vaes: FluxVaes, word: str, way: str
) -> None:
    """At 1024 x 1024; the milliseconds and the peak are beside those of the stock one."""
    is_cuda = device.type == "cuda"
    side = 1024 if is_cuda else 64
    shape = (3, side, side) if word == "encode" else (32, side // 8, side // 8)
    given = make_frames(device, *shape)
    vae = getattr(flux_vaes, way)
    shared = flux_vaes.compile_norms() if way == "compiled" else None

    def run() -> Tensor:
        return run_flux(vae, word, given, is_last=True)

    def run_stock() -> Tensor:
        return run_flux(flux_vaes.stock, word, given, is_last=False)

    found, stock = run(), run_stock()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        true = run_flux(flux_vaes.exact, word, given.float(), is_last=False)
    far = {
        "to_stock": differ(found, stock),
        "to_exact": differ(found, true),
        "stock_to_exact": differ(stock, true),
    }
    del found, stock, true
    figures.put(**{name: float(f"{value:.3g}") for name, value in far.items()})
    assert far["to_stock"] < FLUX_FAR
    assert far["to_exact"] <= 1.5 * far["stock_to_exact"] + 1e-4
    if shared is not None:
        channels = {module.num_channels for module in list_activated(vae)}
        figures.put(graphs=shared.graphs, active=shared.is_active)
        assert shared.is_active
        assert shared.graphs == len(channels), "a picture compiled something"
    if not is_cuda:
        return
    computed = flux_working.count_frame_bytes(side * side)
    if word == "encode":
        computed = int(flux_working.ENCODED_CHANNEL * flux_working.BASE_WIDTH * side * side)
    peak = measure_peak(run, device)
    figures.put(
        ms=measure_ms(run),
        stock_ms=measure_ms(run_stock),
        peak_mb=round(peak / 1e6),
        stock_peak_mb=round(measure_peak(run_stock, device) / 1e6),
        computed_mb=round(computed / 1e6),
    )
    assert peak <= computed, "more than the computed bytes"
