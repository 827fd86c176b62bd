"""Our sampler gives what the stock FLUX.2 pipelines give, to the last bit, in fp32."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from worlds.small_flux import Kind
from worlds.stock_flux import FluxPair, references
from worlds.wishes import WISH, drawing

CFG = {"negative_prompt": "", "true_cfg_scale": 4.0}
WIDE = {"width": 128, "height": 64}


@pytest.fixture(scope="module")
def pairs(publish: Callable[[Kind], Path]) -> Callable[[Kind], FluxPair]:
    """Return what opens a small model of a kind twice, once."""
    found: dict[Kind, FluxPair] = {}

    def find(kind: Kind) -> FluxPair:
        if kind not in found:
            found[kind] = FluxPair(publish(kind), kind)
        return found[kind]

    return find


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        pytest.param("klein", {}, id="klein"),
        pytest.param("klein", WIDE, id="klein-wide"),
        pytest.param("klein", {"steps": 50}, id="klein-50-steps"),
        pytest.param("klein", {"references": references(1)}, id="klein-one"),
        pytest.param("klein", {"references": (drawing(151, 91, 5),)}, id="klein-odd"),
        pytest.param("klein", {"references": references(3)}, id="klein-three"),
        pytest.param("klein", {"references": references(3), **WIDE}, id="klein-three-wide"),
        pytest.param("base", {"steps": 50, **CFG}, id="base-cfg-50-steps"),
        pytest.param("base", {"references": references(3), **WIDE, **CFG}, id="base-three-cfg"),
        pytest.param("dev", {"guidance": 4.0}, id="dev"),
        pytest.param("dev", {"guidance": 2.5, "steps": 50, **WIDE}, id="dev-50-steps"),
        pytest.param("dev", {"guidance": 4.0, "references": references(3)}, id="dev-three"),
    ],
)
def test_latents_equal_the_stock_pipeline_s(
    pairs: Callable[[Kind], FluxPair], kind: Kind, changes: Any
) -> None:
    pair, wish = pairs(kind), replace(WISH, **changes)
    assert torch.equal(pair.our_latents(wish), pair.stock_latents(wish))
