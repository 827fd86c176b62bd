"""The published VAE on single frames, on the device: near diffusers', and within its memory."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from gpu.figures import Figures
from torch import Tensor

from worker.families.qwen_image import working
from worker.families.qwen_image.frame_vae import FrameVae
from worker.families.qwen_image.published import PublishedVae

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
