"""The VAE with its channels last, as on CUDA: near the stock one, and nothing is copied for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLFlux2
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from tools.pretend.cuda import pretend
from tools.pretend.device import PretendDevice
from worker.engine import compiled
from worker.engine.compiled import Compiled
from worker.families.flux2 import arranging
from worker.families.flux2.arranging import arrange, compile_activated, is_arranged, list_activated
from worker.families.flux2.compiling import compile_norms
from worker.families.flux2.normalising import Activated, normalise
from worker.families.flux2.vae import LatentVae
from worlds.compilers import run_as_traced
from worlds.wishes import drawing

LAST = torch.channels_last
ROUNDING = 2.0**-8  # of one value in bf16
STEEPEST = 1.1  # the derivative of SiLU
SIZES = [(96, 80), (112, 64)]
# Operators that copy a tensor as it is.
COPIES = ("aten.clone.default", "aten._to_copy.default", "aten.copy_.default")


def make_norm(groups: int, channels: int) -> nn.GroupNorm:
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, channels, eps=1e-6)
    nn.init.normal_(norm.weight, 1.0, 0.3)
    nn.init.normal_(norm.bias)
    return norm.to(torch.bfloat16).requires_grad_(requires_grad=False)


@pytest.mark.parametrize(("groups", "channels"), [(4, 8), (4, 16), (32, 128), (32, 512)])
@pytest.mark.parametrize(("height", "width"), [(13, 17), (31, 5)])
def test_a_norm_is_group_norm_and_silu_within_their_roundings(
    groups: int, channels: int, height: int, width: int
) -> None:
    """Of two frames whose channels and rows are far from zero, each by its own statistics."""
    norm = make_norm(groups, channels)
    frames = torch.randn(2, channels, height, width) + 5 * torch.randn(2, channels, height, 1)
    given = frames.bfloat16().contiguous(memory_format=LAST)
    wide = functional.group_norm(
        given.double(), groups, norm.weight.double(), norm.bias.double(), norm.eps
    )
    exact = functional.silu(wide)
    found = Activated(norm)(given)
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=LAST)
    bound = ROUNDING * (STEEPEST * wide.abs() + exact.abs()) + 1e-5
    assert ((found - exact).abs() <= bound).all()
    alone = Activated(norm)(given[1:])
    assert alone.stride() == (channels * height * width, 1, channels * width, channels)
    assert torch.equal(alone, found[1:])


def test_a_frame_of_one_colour_is_what_the_bias_makes_of_it() -> None:
    """Its variance is rounding alone, which must not be less than none."""
    norm = make_norm(4, 16)
    found = Activated(norm)(torch.full((1, 16, 9, 7), 171.0, dtype=torch.bfloat16))
    expected = functional.silu(norm.bias).view(1, -1, 1, 1).expand_as(found)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


def test_a_norm_makes_nothing_of_a_frame_s_size_but_its_result() -> None:
    """On CUDA, where the sums and the product convert as they read."""
    device = PretendDevice()
    with pretend(device):
        norm = make_norm(32, 128)
        for name in ("weight", "bias"):
            setattr(norm, name, nn.Parameter(device.make((128,), torch.bfloat16)))
        with torch.inference_mode():
            frame = device.make((64, 96, 128), torch.bfloat16)
            before = device.memory.live
            device.memory.reset()
            (made,) = normalise(norm, frame)
    assert device.memory.peak - before < 1.3 * made.numel() * made.element_size()


class Copies(TorchDispatchMode):
    """The shapes of what is copied as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if str(func) in COPIES:
            self.shapes.append(tuple(args[0].shape))
        if func is torch.ops.aten.cat.default and len(args[0]) == 1:
            self.shapes.append(tuple(args[0][0].shape))
        return func(*args, **(kwargs or {}))


Open = Callable[..., Any]


@pytest.fixture
def reopen(publish: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Open:
    """Return what opens a small VAE, as CUDA has it or as it is."""
    folder = publish("klein") / "vae"

    def find(*, is_last: bool, dtype: torch.dtype = torch.float32) -> Any:
        monkeypatch.setattr(arranging, "is_best_last", lambda _: is_last)
        return arrange(AutoencoderKLFlux2.from_pretrained(folder, dtype=dtype).eval())

    return find


def differ(found: Tensor, expected: Tensor) -> float:
    """Return |found - expected| / |expected|."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_pictures_are_near_those_of_the_stock_vae(
    reopen: Open, dtype: torch.dtype, far: float
) -> None:
    """Sizes of different sides, both ways, in one piece and in tiles."""
    ours, stock = (LatentVae(reopen(is_last=is_last, dtype=dtype)) for is_last in (True, False))
    for width, height in SIZES:
        picture = drawing(width, height, 4)
        latents = [vae.encode(picture, width, height) for vae in (ours, stock)]
        assert latents[0].shape == latents[1].shape
        assert differ(*latents) < far
        for tiled in (False, True):
            shown = [vae.decode(latents[1], width, height, tiled=tiled) for vae in (ours, stock)]
            assert shown[0].shape == shown[1].shape == (1, 3, height, width)
            assert differ(*shown) < far


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_the_channels_stay_last_and_no_frame_is_copied(reopen: Open, way: str) -> None:
    """Through every convolution; what is given is copied once, and by the attention its tokens."""
    vae = reopen(is_last=True, dtype=torch.bfloat16)
    seen: list[bool] = []

    def look(module: Any, given: tuple[Tensor, ...], made: Tensor) -> None:
        parts = (given[0], made, module.weight)
        seen.append(all(one.is_contiguous(memory_format=LAST) for one in parts))

    convolutions = [one for one in vae.modules() if isinstance(one, nn.Conv2d)]
    for one in convolutions:
        one.register_forward_hook(look)
    ours, size = LatentVae(vae), (96, 80)
    tokens = torch.randn(1, 30, 32).bfloat16()
    with Copies() as copies:
        if way == "encode":
            ours.encode(drawing(*size, 1), *size)
        else:
            ours.decode(tokens, *size)
    assert len(seen) > len(convolutions) // 3
    assert all(seen)
    # [1, channels, height, width] or the channels last, larger than the latents
    frames = [shape for shape in copies.shapes if len(shape) == 4 and shape[1] > 3]
    assert [shape for shape in frames if shape[2] * shape[3] > 12 * 10] == []


def test_a_vae_that_is_open_twice_is_arranged_and_compiled_once(reopen: Open) -> None:
    vae = reopen(is_last=True)
    before = [*vae.modules()]
    assert arrange(vae) is vae
    assert [*vae.modules()] == before
    assert not any(m.weight.requires_grad for m in before if isinstance(m, nn.Conv2d))
    shared = compile_activated(vae)
    assert isinstance(shared, Compiled)
    assert {id(module.run) for module in list_activated(vae)} == {id(shared)}
    assert compile_activated(vae) is shared


def test_every_norm_before_a_silu_is_ours(reopen: Open) -> None:
    """What is left is the attention's, one in each half, which no SiLU follows."""
    vae = reopen(is_last=True)
    left = [name for name, module in vae.named_modules() if type(module) is nn.GroupNorm]
    assert left == [f"{half}.mid_block.attentions.0.group_norm" for half in ("encoder", "decoder")]


def test_norms_run_before_the_first_job_only_where_they_are_compiled(
    reopen: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "compile_for_device", run_as_traced)
    vae = reopen(is_last=True)
    ran: list[Tensor] = []
    for module in list_activated(vae):
        module.register_forward_hook(lambda _, given, __: ran.append(given[0]))
    compile_norms(vae)
    assert ran == []
    compile_activated(vae)
    compile_norms(vae)
    counts = sorted({module.num_channels for module in list_activated(vae)})
    assert sorted(frame.shape[1] for frame in ran) == counts
    first = ran.copy()
    ran.clear()
    compile_norms(vae)
    assert all(map(torch.equal, ran, first))  # a graph that is wrong is wrong at every start


def test_on_a_cpu_a_vae_is_the_stock_one(reopen: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """As is one with another activation anywhere."""
    best = arranging.is_best_last
    vae = reopen(is_last=False)
    assert [best(torch.device(name)) for name in ("cpu", "cuda")] == [False, True]
    assert not is_arranged(vae)
    assert compile_activated(vae) is None
    monkeypatch.setattr(arranging, "is_best_last", lambda _: True)
    vae.register_to_config(act_fn="gelu")
    assert not is_arranged(arrange(vae))
    vae.register_to_config(act_fn="swish")  # SiLU by its other name
    assert is_arranged(arrange(vae))
