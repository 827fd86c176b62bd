"""The VAE on single frames gives what diffusers' VAE for video gives.

Which sums a convolution adds up first depends on the processor: in fp32 nothing else may differ.
"""

import copy
import functools
import inspect
import weakref
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders import autoencoder_kl_qwenimage as published
from torch import Tensor, nn

from worker.families.qwen_image import frame_vae, working
from worker.families.qwen_image.frame_vae import FrameVae
from worker.families.qwen_image.published import PublishedVae
from worlds import prepared

SMALL: dict[str, Any] = {"base_dim": 16, "num_res_blocks": 1}
# what no published configuration has
OTHER: dict[str, Any] = {**SMALL, "num_res_blocks": 2, "dim_mult": [1, 1, 3, 2], "dropout": 0.3}


def make_vae(dtype: torch.dtype = torch.bfloat16, **config: Any) -> Any:
    """Return a VAE with random weights, its norms and biases too."""
    made: Any = AutoencoderKLQwenImage(**config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1 or parameter.shape[1:].numel() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.to(dtype).eval()


def make_frames(channels: int, height: int, width: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, channels, height, width).to(torch.bfloat16) * 2 - 1


def check(stock: Any, run: str, given: Tensor) -> Tensor:
    """Check that ours computes what diffusers' does, and return what it gives in fp32.

    In fp32 but for the order of sums; in bf16 as near to that as diffusers' own.
    """
    wide = copy.deepcopy(stock).float()
    expected, found, ours, theirs = (
        _shown(run, getattr(vae, run)(pixels))
        for vae, pixels in (
            (PublishedVae(wide), given.float()),
            (FrameVae(wide), given.float()),
            (FrameVae(stock), given),
            (PublishedVae(stock), given),
        )
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    wrong, allowed = ((made - expected).square().mean() for made in (ours, theirs))
    assert wrong <= 1.5 * allowed
    return found


def _shown(run: str, made: Tensor) -> Tensor:
    """Return pixels as they are shown: diffusers' decoding leaves the limits to who shows them."""
    return made.clamp(-1, 1) if run == "decode" else made


@pytest.mark.parametrize(
    "config",
    [pytest.param(SMALL, id="small"), pytest.param(OTHER, id="other"), pytest.param({}, id="full")],
)
@torch.inference_mode()
def test_a_frame_is_encoded_and_decoded_as_by_diffusers(config: dict[str, Any]) -> None:
    """At sizes that are no square, and from a picture, whose pixels have their channels last."""
    stock = make_vae(**config)
    for height, width in ((48, 32),) if not config else ((64, 64), (96, 40)):
        pixels = make_frames(3, height, width)
        encoded = check(stock, "encode", pixels)
        shown = pixels.contiguous(memory_format=torch.channels_last)
        assert torch.equal(check(stock, "encode", shown), encoded)
        made = check(stock, "decode", make_frames(16, height // 8, width // 8) * 3)
        assert made.shape == (1, 3, height, width)
        assert len(torch.unique(made)) > 100


@torch.inference_mode()
def test_the_embedded_weights_give_the_same_pictures() -> None:
    stock = prepared.published("tiny-edit").vae
    assert isinstance(stock, PublishedVae)
    pixels = make_frames(3, 96, 96)
    check(stock.vae, "encode", pixels)
    check(stock.vae, "decode", stock.encode(pixels))


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@torch.inference_mode()
def test_a_norm_is_that_of_diffusers_to_the_last_bit(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    """Of planes of any size, in every layout, a batch and values of all sizes too."""
    for batch, channels, height, width in ((1, 32, 96, 96), (2, 5, 32, 32), (1, 7, 31, 33)):
        source: Any = published.QwenImageRMS_norm(channels, images=False).to(dtype)
        source.gamma.data.uniform_(-2, 2)
        x = torch.randn(batch, channels, height, width) * torch.logspace(-6, 6, width)
        x = x.to(dtype).to(memory_format=layout)
        x[..., 3] = 0
        expected = source(x[:, :, None])[:, :, 0]
        found = frame_vae._Norm(source)(x.clone(memory_format=layout), torch.empty_like(x))
        if dtype == torch.bfloat16:
            assert torch.equal(found, expected)
        else:
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("height", "width"), [(256, 256), (264, 200), (384, 520), (200, 392), (608, 256)]
)
@torch.inference_mode()
def test_tiles_and_their_blending_are_those_of_diffusers(height: int, width: int) -> None:
    """Where the last tiles are narrower than the overlap too."""
    stock = make_vae(torch.float32, **SMALL)
    ours, theirs = FrameVae(stock), PublishedVae(stock)
    pixels = make_frames(3, height, width).float()
    latents = make_frames(16, height // 8, width // 8).float()
    encoded, decoded = ours.encode(pixels, tiled=True), ours.decode(latents, tiled=True)
    near = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-5)
    near(encoded, theirs.encode(pixels, tiled=True))
    near(decoded, theirs.decode(latents, tiled=True).clamp(-1, 1))
    one_tile = max(height, width) <= 256
    assert torch.equal(encoded, ours.encode(pixels)) == one_tile
    assert torch.equal(decoded, ours.decode(latents)) == one_tile
    if (height, width) == (264, 200):  # after tiles, whole again
        near(ours.encode(pixels), theirs.encode(pixels))
        near(ours.decode(latents), theirs.decode(latents).clamp(-1, 1))


def test_memory_is_planned_for_the_published_channels_and_tiles() -> None:
    published_channels = inspect.signature(AutoencoderKLQwenImage.__init__).parameters["base_dim"]
    assert published_channels.default == working.BASE_DIM
    assert working.TILE_PIXELS == frame_vae.TILE**2


@pytest.mark.parametrize("tiled", [False, True])
@torch.inference_mode()
def test_a_batch_changes_no_frame(*, tiled: bool) -> None:
    ours = FrameVae(make_vae(**SMALL))
    pixels, latents = make_frames(3, 264, 64, batch=3), make_frames(16, 33, 8, batch=3)
    for run, frames in ((ours.encode, pixels), (ours.decode, latents)):
        singles = [run(frame[None], tiled=tiled) for frame in frames]
        assert torch.equal(run(frames, tiled=tiled), torch.cat(singles))


@torch.inference_mode()
def test_what_is_given_is_not_overwritten() -> None:
    """Activations are, inputs are not: a second try starts from the same latents."""
    ours = FrameVae(make_vae(**SMALL))
    pixels, latents = make_frames(3, 64, 64), make_frames(16, 8, 8)
    kept = pixels.clone(), latents.clone()
    for tiled in (False, True):
        ours.encode(pixels, tiled=tiled)
        ours.decode(latents, tiled=tiled)
    assert torch.equal(pixels, kept[0])
    assert torch.equal(latents, kept[1])


def test_only_what_meets_a_frame_is_kept() -> None:
    """The last temporal slice of each kernel, and no convolution in time."""
    stock = make_vae(**SMALL)
    expected = sum(
        weight[:, :, -1].numel() if weight.dim() == 5 else weight.numel()
        for name, weight in stock.named_parameters()
        if ".time_conv." not in name
    )
    ours, dropped = FrameVae(stock), weakref.ref(stock.decoder.conv_in.weight)
    del stock
    assert dropped() is None
    weights = [weight.untyped_storage().nbytes() for weight in ours.parameters()]
    assert sum(weights) == 2 * expected
    assert not any(weight.requires_grad for weight in ours.parameters())
    assert (ours.dtype, ours.device) == (torch.bfloat16, torch.device("cpu"))


@torch.inference_mode()
def test_on_a_gpu_weights_and_frames_lie_as_its_kernels_want_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    last = torch.channels_last
    assert [frame_vae._choose_layout(one) for one in (cuda, cpu)] == [last, torch.contiguous_format]
    stock, pixels = make_vae(**SMALL), make_frames(3, 64, 48)
    expected = FrameVae(stock).encode(pixels)
    monkeypatch.setattr(frame_vae, "_choose_layout", lambda _: last)
    ours: Any = FrameVae(stock)
    kernels = [weight for weight in ours.parameters() if weight.dim() == 4]
    assert all(kernel.is_contiguous(memory_format=last) for kernel in kernels)
    shown: list[bool] = []
    ours.encoder[0].register_forward_pre_hook(
        lambda _, given: shown.append(given[0].is_contiguous(memory_format=last))
    )
    torch.testing.assert_close(ours.encode(pixels), expected, rtol=0.05, atol=0.05)
    assert shown == [True]


def test_a_module_that_is_not_known_is_refused() -> None:
    """A library that changes its VAE is noticed before a wrong picture is made."""
    stock = make_vae(**SMALL)
    stock.decoder.up_blocks[0].resnets.append(nn.Tanh())
    with pytest.raises(TypeError, match="Tanh"):
        FrameVae(stock)
