"""The kernel that unpacks NF4 weights with a LoRA added, at the published shapes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gpu.figures import Figures
from gpu.studio import Studio, make_image, make_wishes, measure_decibels, summarise
from torch import Tensor

from worker.engine.quantise import make_linear, quantise

pytestmark = pytest.mark.cuda
combine: Any = pytest.importorskip("worker.engine.combine", reason="no kernel to check")
SHAPES = ((3072, 3072), (12288, 3072), (3072, 12288), (18432, 3072))
RANK = 64
TOKENS = 4121
NEAR_DB = 25.0


def measure(work: Callable[[], Tensor], times: int = 20) -> float:
    """Return the milliseconds of one call, the mean of several after three."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        work()
    begun.record()
    for _ in range(times):
        work()
    ended.record()
    ended.synchronize()
    return round(float(begun.elapsed_time(ended)) / times, 4)


def make_sides(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the two sides of a LoRA of the published rank, as small as trained ones."""
    made = torch.Generator().manual_seed(1)
    down = torch.randn(RANK, columns, generator=made) / columns**0.5
    up = torch.randn(rows, RANK, generator=made) * 0.02
    return down.to(device, torch.bfloat16), up.to(device, torch.bfloat16)


def test_the_kernel_is_accepted_here(device: torch.device) -> None:
    assert combine.try_nf4(device) == ""


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@torch.inference_mode()
def test_every_weight_is_that_of_bitsandbytes_and_a_product(
    figures: Figures, device: torch.device, rows: int, columns: int
) -> None:
    """Within one step of bf16; how far both are from the exact sum, and how long they take."""
    made = torch.Generator().manual_seed(0)
    weight = (torch.randn(rows, columns, generator=made) * 0.03).bfloat16()
    base: Any = make_linear(quantise(weight, "4bit", device), None, "4bit", device)
    down, up = make_sides(rows, columns, device)
    found, expected = combine.combine_nf4(base, down, up), combine.add_nf4(base, down, up)
    plain = combine.add_nf4(base, torch.zeros_like(down), up)
    exact = plain.double() + up.double() @ down.double()
    wrong = combine.count_wrong(found, expected, plain)
    x = torch.randn(TOKENS, columns, device=device, dtype=torch.bfloat16)
    timed = {
        "kernel": measure(lambda: combine.combine_nf4(base, down, up)),
        "unpack_and_add": measure(lambda: combine.add_nf4(base, down, up)),
        "unpack": measure(lambda: unpack(base)),
        "product": measure(lambda: torch.nn.functional.linear(x, plain)),
    }
    figures.put(
        wrong=wrong,
        kernel_to_exact=float(f"{float((found - exact).norm() / exact.norm()):.3g}"),
        added_to_exact=float(f"{float((expected - exact).norm() / exact.norm()):.3g}"),
        ms=timed,
    )
    assert wrong == 0


@pytest.mark.parametrize("precision", ["bf16", "8bit", "4bit"])
@pytest.mark.parametrize("name", ["tiny-image", "tiny-edit"])
def test_pictures_with_an_adapter_in_the_weights_are_near_those_with_it_at_their_side(
    studio: Studio, figures: Figures, name: str, precision: str
) -> None:
    ours = studio.open(name, precision)
    theirs = studio.open(name, precision, LIGHTNING_MERGE="off")
    decibels = [
        measure_decibels(make_image(ours, wish), make_image(theirs, wish))
        for wish in make_wishes(name)
    ]
    figures.put(**summarise(decibels))
    assert sum(decibels) / len(decibels) > NEAR_DB


def unpack(base: Any) -> Tensor:
    """Return a 4-bit Linear's weight in bf16, by bitsandbytes."""
    from bitsandbytes import functional as bnb  # noqa: PLC0415 - only where there is a kernel

    unpacked: Tensor = bnb.dequantize_4bit(base.weight.data, base.weight.quant_state)
    return unpacked
