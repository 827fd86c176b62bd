"""Pictures to latents and back as the stock pipelines do it; in tiles where memory is short."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

from worker.families.flux2 import vae
from worker.families.flux2.shift import compute_mu
from worker.families.flux2.working import TILE_PIXELS, count_frame_bytes
from worlds.small_flux import Kind
from worlds.stock_flux import FluxPair
from worlds.wishes import WISH, drawing


@pytest.fixture(scope="module")
def pair(publish: Callable[[Kind], Path]) -> FluxPair:
    """A klein, open twice."""
    return FluxPair(publish("klein"), "klein")


def test_latents_are_normalised_by_the_statistics_of_the_vae(pair: FluxPair) -> None:
    """As the stock pipeline encodes a reference, to the last bit; they are not those of a start."""
    picture = drawing(128, 96, 4)
    found = pair.ours._vae.encode(picture, 128, 96)
    pixels = pair.stock.image_processor.preprocess(picture, height=96, width=128)
    stock = pair.stock._encode_vae_image(pixels, None)
    assert torch.equal(found, pair.stock._pack_latents(stock))
    statistics = pair.stock.vae.bn
    assert not torch.allclose(statistics.running_mean, torch.zeros(32), atol=0.1)


def test_decoded_floats_equal_the_stock_pipeline(pair: FluxPair) -> None:
    """The decoded picture equals the stock one before it is rounded to 8 bits."""
    ours = pair.ours._vae.decode(pair.our_latents(WISH), 96, 96)
    stock = pair.stock(
        prompt=WISH.prompt,
        height=96,
        width=96,
        num_inference_steps=4,
        generator=torch.Generator("cpu").manual_seed(WISH.seed),
        output_type="np",
        text_encoder_out_layers=(1, 2, 3),
    ).images
    shown = (ours * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().numpy()
    assert np.array_equal(shown, stock)


def test_tiles_take_less_and_give_nearly_the_same(
    pair: FluxPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae, "TILE", 64)
    monkeypatch.setattr(vae, "TILE_STEP", 48)
    picture = drawing(128, 96, 4)
    whole, tiled = (pair.ours._vae.encode(picture, 128, 96, tiled=tiled) for tiled in (False, True))
    assert tiled.shape == whole.shape
    assert 0 < (tiled - whole).abs().mean() < 0.5 * whole.std()
    shown, pieced = (pair.ours._vae.decode(whole, 128, 96, tiled=tiled) for tiled in (False, True))
    assert pieced.shape == shown.shape == (1, 3, 96, 128)
    assert 0 < (pieced - shown).abs().mean() < 0.5 * shown.std()


def test_room_is_looked_for_before_a_picture_is_decoded(
    pair: FluxPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the channels that this VAE has at full size."""
    stock = pair.stock.vae
    described = SimpleNamespace(**{**stock.config, "block_out_channels": (8, 24, 16, 16)})
    other = SimpleNamespace(
        config=described, bn=stock.bn, decoder=stock.decoder, dtype=stock.dtype, device=stock.device
    )
    needed = count_frame_bytes(96 * 96, 8)
    for free, has_room in ((None, True), (needed, True), (needed - 1, False)):
        monkeypatch.setattr(vae, "count_free_bytes", lambda _device, free=free: free)
        for each in (pair.ours._vae, vae.LatentVae(other)):
            assert each.has_room(96 * 96) is has_room


def test_tiles_overlap_by_a_quarter_as_the_stock_vae_s_do(pair: FluxPair) -> None:
    assert vae.TILE * (1 - pair.stock.vae.tile_overlap_factor) == vae.TILE_STEP
    assert vae.TILE**2 == TILE_PIXELS  # of which the memory is computed


@pytest.mark.parametrize("steps", [1, 2, 4, 28, 50, 100, 200])
def test_the_shift_is_the_publisher_s(steps: int) -> None:
    """Also where it drops, a little over a million pixels."""
    for tokens in (16, 1024, 4096, 4300, 4301, 16384):
        assert compute_mu(tokens, steps) == compute_empirical_mu(tokens, steps)
