"""The code of a compiled block stays within its budget; what inductor generates needs no GPU."""

import re
from dataclasses import replace

import pytest
from torch import Tensor, nn
from torch.utils import _triton as triton_of_torch

from tools.pretend.inductor import (
    Generated,
    Kind,
    find_budget,
    generate,
    generate_code,
    list_excesses,
    make,
)
from worker.families.flux2.normalising import normalise


def test_an_edit_with_a_lora_is_compiled_to_no_more_than_its_budget() -> None:
    """The most that a block has. What torch says of the machine, before and after, stays true."""
    before = triton_of_torch.has_triton()
    kind = Kind(is_edit=True, has_lora=True)
    found = generate(kind)
    assert list_excesses(found, find_budget(kind)) == []
    assert found.code.count(".run(") == found.kernels
    # all sizes share the code: what it allocates has this picture's tokens nowhere
    allocated = re.findall(r"empty_strided_cuda\(\(([^)]*)\)", found.code)
    assert allocated
    assert not any("8192" in sizes.split(", ") for sizes in allocated)
    assert triton_of_torch.has_triton() is before


@pytest.mark.parametrize(("side", "channels"), [(1024, 128), (128, 512)])
def test_a_norm_of_the_vae_reads_its_frame_twice_and_writes_it_once(
    side: int, channels: int
) -> None:
    """In three kernels, of which the one between has the sums of rows; nothing is transposed."""

    def make_given() -> tuple[nn.Module, Tensor]:
        norm = nn.GroupNorm(32, channels, eps=1e-6, device="meta")
        for name in ("weight", "bias"):
            setattr(norm, name, nn.Parameter(make(channels), requires_grad=False))
        return norm, make(side, side, channels)

    found = generate_code(normalise, make_given)
    assert (found.kernels, found.products) == (3, 0)
    assert found.moved < 3.1 * side * side * channels * 2


@pytest.mark.parametrize("name", ["kernels", "products", "moved"])
def test_one_more_than_the_budget_is_an_excess(name: str) -> None:
    budget = Generated(14, 36, 1_000_000)
    assert list_excesses(budget, budget) == []
    more = replace(budget, **{name: getattr(budget, name) + 1})
    (excess,) = list_excesses(more, budget)
    assert f"{getattr(budget, name) + 1:,}" in excess
    assert list_excesses(budget, more) == []
