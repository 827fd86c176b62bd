"""Our decoder is SNAC's, and what it makes piece by piece is what it makes at once."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from worker.bundle.fill import fill, make_empty
from worker.families.orpheus.codec import SnacDecoder, Snake, fold, name_tensor
from worker.families.orpheus.windows import (
    CONTEXT,
    GRID,
    Decoding,
    derive_seed,
    find_end,
    make_noise,
)
from worlds.speaking import CODEC, make_snac

CPU = torch.device("cpu")


def open_ours(published: Any, **changes: Any) -> SnacDecoder:
    """Return our decoder with the weights of the package's model."""
    with make_empty():
        ours = SnacDecoder({**CODEC, **changes})
    kept = {name_tensor(name): tensor for name, tensor in published.state_dict().items()}
    fill(ours, {name: t for name, t in kept.items() if name}, "bf16", CPU)
    return fold(ours)


@pytest.fixture(scope="module")
def published() -> Any:
    return make_snac()


@pytest.fixture(scope="module")
def codec(published: Any) -> SnacDecoder:
    return open_ours(published)


def make_frames(count: int, codes: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, codes, (count, 7), generator=generator)


def split_levels(frames: Tensor) -> list[Tensor]:
    """Return the codes of SNAC's three codebooks, written out slot by slot."""
    first = [frame[0] for frame in frames.tolist()]
    second = [frame[n] for frame in frames.tolist() for n in (1, 4)]
    third = [frame[n] for frame in frames.tolist() for n in (2, 3, 5, 6)]
    return [torch.tensor([level]) for level in (first, second, third)]


def silence(codec: SnacDecoder, count: int) -> list[Tensor]:
    return [torch.zeros(span * count) for span in codec.spans]


@pytest.mark.parametrize(
    ("changes", "stride"),
    [
        ({}, 2048),
        ({"depthwise": False}, 2048),
        ({"noise": False}, 2048),
        ({"latent_dim": 96}, 2048),
        ({"decoder_rates": [8, 8, 2, 2, 2]}, 2048),
        ({"decoder_rates": [5, 3, 2, 4]}, 480),
    ],
)
def test_without_noise_it_is_the_packages_decoder(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], stride: int
) -> None:
    published = make_snac(**changes)
    ours = open_ours(published, **changes)
    frames = make_frames(5)
    monkeypatch.setattr(torch, "randn", torch.zeros)  # of its four blocks of noise
    with torch.inference_mode():
        theirs = published.decode(split_levels(frames))[0, 0]
        samples = ours(frames, silence(ours, 5))
    assert samples.shape == (5 * ours.stride,)
    assert ours.stride == stride
    torch.testing.assert_close(samples, theirs, rtol=0, atol=1e-6)


def test_with_the_same_noise_it_is_the_packages_decoder_too(
    published: Any, codec: SnacDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = make_frames(3)
    noise = [torch.randn(span * 3) for span in codec.spans]
    left = iter(noise)
    monkeypatch.setattr(torch, "randn", lambda shape, **_: next(left).view(shape))
    with torch.inference_mode():
        theirs = published.decode(split_levels(frames))[0, 0]
        ours = codec(frames, noise)
        quiet = codec(frames, silence(codec, 3))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert float((ours - quiet).abs().max()) > 1e-3


@pytest.mark.parametrize("said", [{}, {"noise": True, "depthwise": True}])
def test_a_codec_has_noise_and_is_depthwise_unless_its_configuration_says_otherwise(
    said: dict[str, Any],
) -> None:
    """As the package's class takes it: the published weights are of such a one."""
    bare = {name: value for name, value in CODEC.items() if name not in ("noise", "depthwise")}
    with make_empty():
        ours = SnacDecoder({**bare, **said})
    kept = {name_tensor(name) for name in make_snac().state_dict()} - {None}
    assert {name for name, _ in ours.named_parameters()} == kept
    assert ours.spans == (32, 256, 1024, 2048)


def test_a_codec_without_noise_takes_none() -> None:
    with make_empty():
        ours = SnacDecoder({**CODEC, "noise": False})
    assert ours.spans == (0, 0, 0, 0)


@pytest.mark.parametrize("alpha", [0.0, 1e-9])
def test_a_snake_of_almost_no_frequency_changes_nothing(alpha: float) -> None:
    """What it divides by is never 0."""
    snake, samples = Snake(2), torch.tensor([[[1.0, -2.0], [3.0, 0.0]]])
    snake.alpha.data.fill_(alpha)
    assert torch.equal(snake(samples), samples)


def test_folding_the_norms_changes_no_bit(published: Any, codec: SnacDecoder) -> None:
    weights = dict(codec.named_parameters())
    assert not any(name.endswith(("norm", "direction")) for name in weights)
    assert not any(weight.requires_grad for weight in weights.values())
    for name, module in published.decoder.named_modules():
        if hasattr(module, "parametrizations"):
            assert torch.equal(weights[f"decoder.{name}.weight"], module.weight)


def test_the_names_of_older_files_are_known() -> None:
    assert name_tensor("encoder.block.0.bias") is None
    assert name_tensor("quantizer.quantizers.1.in_proj.bias") is None
    for names in (
        ("weight_g", "weight_v"),
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ):
        found = [name_tensor(f"decoder.model.0.{name}") for name in names]
        assert found == ["decoder.model.0.norm", "decoder.model.0.direction"]


@pytest.mark.parametrize(
    "changes", [{"attn_window_size": 32}, {"vq_strides": [8, 4, 2, 1]}, {"vq_strides": [2, 1]}]
)
def test_another_layout_is_not_built(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"attention|vq_strides"):
        SnacDecoder({**CODEC, **changes})


def decode(codec: SnacDecoder, frames: list[list[int]], *, seed: int = 1) -> list[Tensor]:
    return list(Decoding(codec, seed, CPU).decode_ready(frames, is_end=True))


@pytest.mark.parametrize("count", [1, 3, 4, 5, 11, 12, 29, 70])
def test_windows_are_the_whole_to_a_rounding(codec: SnacDecoder, count: int) -> None:
    frames = make_frames(count)
    rows = [make_noise(1, frame, codec.spans) for frame in range(count)]
    with torch.inference_mode():
        whole = codec(frames, [torch.cat(parts) for parts in zip(*rows, strict=True)])
    pieces = torch.cat(decode(codec, frames.tolist()))
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-5)


def test_a_stream_is_the_whole_whenever_its_frames_come(codec: SnacDecoder) -> None:
    frames = make_frames(41).tolist()
    decoding, streamed, first = Decoding(codec, 1, CPU), [], None
    for count in range(1, 42):
        ready = list(decoding.decode_ready(frames[:count], is_end=False))
        if ready and first is None:
            first = count
        streamed += ready
    streamed += decoding.decode_ready(frames, is_end=True)
    assert first == GRID[0] + CONTEXT
    assert [len(piece) // codec.stride for piece in streamed] == [4, 8, 16, 13]
    assert all(map(torch.equal, streamed, decode(codec, frames)))
    assert list(decoding.decode_ready(frames, is_end=True)) == []


def test_the_grid_is_the_same_from_every_window_on() -> None:
    starts = [0]
    while starts[-1] < 120:
        starts.append(find_end(starts[-1]))
    assert starts == [0, 4, 12, 28, 60, 92, 124]


def test_noise_is_of_its_seed_level_and_frame_alone() -> None:
    spans = (32, 256)
    first = make_noise(7, 3, spans)
    assert [len(one) for one in first] == [32, 256]
    assert all(map(torch.equal, first, make_noise(7, 3, spans)))
    assert not torch.equal(first[0], first[1][:32])
    for other in (make_noise(8, 3, spans), make_noise(7, 4, spans)):
        assert not torch.equal(first[0], other[0])
    assert abs(float(torch.cat(make_noise(1, 1, (4000,))).std()) - 1) < 0.05


def test_seeds_that_are_derived_differ_and_have_63_bits() -> None:
    found = [derive_seed(*key) for key in itertools.product((0, 1, 2**63 - 1), range(9), range(9))]
    assert len(set(found)) == len(found)
    assert 2**62 < max(found) < 2**63


def test_another_seed_is_another_sound(codec: SnacDecoder) -> None:
    frames = make_frames(4).tolist()
    (one,), (two,), (again,) = (decode(codec, frames, seed=seed) for seed in (1, 2, 1))
    assert torch.equal(one, again)
    assert not np.array_equal(one.numpy(), two.numpy())
