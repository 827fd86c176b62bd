"""LoRAs give what the stock pipeline gives with them, in each form that trainers write."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from worker.errors import LoraRefused
from worker.loras.ready import ReadyLora
from worlds.small_flux import Kind
from worlds.stock_flux import FluxPair
from worlds.wishes import WISH

RANK = 4
DIM = 64
# The publisher's names of one block's Linears with their inputs and outputs.
SHAPES = {
    "double_blocks.0.img_attn.qkv": (DIM, 3 * DIM),
    "double_blocks.0.img_attn.proj": (DIM, DIM),
    "double_blocks.0.txt_attn.qkv": (DIM, 3 * DIM),
    "double_blocks.0.txt_attn.proj": (DIM, DIM),
    "double_blocks.0.img_mlp.0": (DIM, 6 * DIM),
    "double_blocks.0.img_mlp.2": (3 * DIM, DIM),
    "double_blocks.0.txt_mlp.0": (DIM, 6 * DIM),
    "double_blocks.0.txt_mlp.2": (3 * DIM, DIM),
    "single_blocks.1.linear1": (DIM, 9 * DIM),
    "single_blocks.1.linear2": (4 * DIM, DIM),
}
OURS = {
    "transformer_blocks.0.attn.to_k": (DIM, DIM),
    "transformer_blocks.0.ff_context.linear_out": (3 * DIM, DIM),
    "single_transformer_blocks.0.attn.to_qkv_mlp_proj": (DIM, 9 * DIM),
    "single_transformer_blocks.1.attn.to_out": (4 * DIM, DIM),
}


def pairs(shapes: Mapping[str, tuple[int, int]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A and B of each module, strong enough to be seen."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: (
            torch.randn(RANK, into, generator=generator) * 0.2,
            torch.randn(out, RANK, generator=generator) * 0.2,
        )
        for name, (into, out) in shapes.items()
    }


def written(form: str) -> dict[str, Tensor]:
    """Return a LoRA as a trainer writes it."""
    theirs, state = pairs(SHAPES), dict[str, Tensor]()
    if form == "diffusers":
        for name, (down, up) in pairs(OURS).items():
            state[f"transformer.{name}.lora_A.weight"] = down
            state[f"transformer.{name}.lora_B.weight"] = up
    for name, (down, up) in theirs.items():
        flat = name.replace(".", "_")
        if form == "ai-toolkit":
            state[f"diffusion_model.{name}.lora_A.weight"] = down
            state[f"diffusion_model.{name}.lora_B.weight"] = up
        elif form == "kohya":
            state[f"lora_unet_{flat}.lora_down.weight"] = down
            state[f"lora_unet_{flat}.lora_up.weight"] = up
            state[f"lora_unet_{flat}.alpha"] = torch.tensor(2.0)
        elif form == "peft":
            state[f"base_model.model.{name}.lora_A.weight"] = down
            state[f"base_model.model.{name}.lora_B.weight"] = up
    return state


def lora_in(folder: Path, state: Mapping[str, Tensor], scale: float = 1.0) -> ReadyLora:
    path = folder / "lora.safetensors"
    save_file(dict(state), path)
    return ReadyLora("lora", f"sha256:{path}", scale, path, None, is_callers=True)


@pytest.fixture
def pair(publish: Callable[[Kind], Path]) -> FluxPair:
    """A klein, open twice, without adapters."""
    return FluxPair(publish("klein"), "klein")


@pytest.mark.parametrize("form", ["diffusers", "ai-toolkit", "kohya"])
def test_a_lora_gives_what_the_stock_pipeline_gives(
    pair: FluxPair, tmp_path: Path, form: str
) -> None:
    """To the last bit, each key in its place; and without it everything is as before."""
    state = written(form)
    wish = replace(WISH, width=64, height=64, steps=2)
    plain = pair.our_latents(wish)
    lora = lora_in(tmp_path, state, 0.7)
    found = pair.our_latents(replace(wish, loras=(lora,)))
    (counted,) = pair.ours._loras.count((lora,))
    # the query, key and value of two streams are three modules each
    assert counted.modules == (len(OURS) if form == "diffusers" else len(SHAPES) + 4)
    pair.stock.load_lora_weights({key: t.clone() for key, t in state.items()}, adapter_name="x")
    pair.stock.set_adapters(["x"], [0.7])
    assert torch.equal(found, pair.stock_latents(wish))
    assert not torch.allclose(found, plain, atol=1e-3)
    assert torch.equal(pair.our_latents(wish), plain)


def test_the_publisher_s_names_reach_what_peft_s_do(pair: FluxPair, tmp_path: Path) -> None:
    """Under a peft prefix too, which the stock pipelines do not read in this form."""
    wish = replace(WISH, width=64, height=64, steps=2)
    forms = []
    for form in ("peft", "ai-toolkit"):
        folder = tmp_path / form
        folder.mkdir()
        forms.append(pair.our_latents(replace(wish, loras=(lora_in(folder, written(form)),))))
    assert torch.equal(*forms)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"diffusion_model.double_blocks.0.img_attn.qkv.lokr_w1": torch.ones(2, 2)},
            "LoKr, which is not served",
        ),
        (
            {
                "diffusion_model.double_blocks.7.img_mlp.0.lora_A.weight": torch.ones(4, DIM),
                "diffusion_model.double_blocks.7.img_mlp.0.lora_B.weight": torch.ones(384, 4),
            },
            "names a module that the model lacks",
        ),
        (
            {
                "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": torch.ones(4, DIM),
                "diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight": torch.ones(100, 4),
            },
            "has 100 outputs, which are not those of 3 modules",
        ),
        (
            {
                **{
                    f"double_blocks.0.img_attn.proj.lora_{s}.weight": torch.ones(DIM, DIM)
                    for s in "AB"
                },
                **{
                    f"transformer_blocks.0.attn.to_out.0.lora_{s}.weight": torch.ones(DIM, DIM)
                    for s in "AB"
                },
            },
            "twice, by two of its names",
        ),
        (
            {f"single_blocks.0.linear2.lora_{s}.weight": torch.ones(4, 4) for s in "AB"},
            "maps 256 to 64, the LoRA 4 to 4",
        ),
    ],
)
def test_what_cannot_be_applied_is_refused_by_name(
    pair: FluxPair, tmp_path: Path, state: Any, message: str
) -> None:
    lora = lora_in(tmp_path, state)
    with pytest.raises(LoraRefused, match=message):
        pair.our_latents(replace(WISH, loras=(lora,)))
