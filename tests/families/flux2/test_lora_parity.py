"""LoRAs give what the stock pipeline gives with them, in each form that trainers write."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinPipeline
from safetensors.torch import save_file
from torch import Tensor

from worker.bundle.prepare import prepare
from worker.engine.quantise import Precision
from worker.errors import LoraRefused
from worker.families.flux2.opening import open_bundle
from worker.loras.ready import ReadyLora
from worlds.small_flux import Kind
from worlds.stock_flux import CPU, FluxPair, latents_of, model_of, order_of
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


@pytest.mark.parametrize(
    ("names", "bound"),
    [
        pytest.param(
            (
                "time_guidance_embed.timestep_embedder.linear_1",
                "double_stream_modulation_img.linear",
                "double_stream_modulation_txt.linear",
                "single_stream_modulation.linear",
                "context_embedder",
                "norm_out.linear",
                "proj_out",
            ),
            0.0,
            id="to-the-last-bit",
        ),
        # the stock pipeline's latents lie otherwise in memory, which a product of rank 4 notices
        pytest.param(("x_embedder",), 1e-5, id="x_embedder"),
    ],
)
def test_a_lora_reaches_what_is_around_the_blocks(
    pair: FluxPair, tmp_path: Path, names: tuple[str, ...], bound: float
) -> None:
    wish = replace(WISH, width=64, height=64, steps=2)
    plain = pair.our_latents(wish)
    linears = [pair.stock.transformer.get_submodule(name) for name in names]
    sides = [(linear.in_features, linear.out_features) for linear in linears]
    state: dict[str, Tensor] = {}
    for name, (down, up) in pairs(dict(zip(names, sides, strict=True))).items():
        state[f"transformer.{name}.lora_A.weight"] = down
        state[f"transformer.{name}.lora_B.weight"] = up
    found = pair.our_latents(replace(wish, loras=(lora_in(tmp_path, state),)))
    pair.stock.load_lora_weights({key: t.clone() for key, t in state.items()}, adapter_name="x")
    assert float((found - pair.stock_latents(wish)).abs().max()) <= bound
    assert not torch.allclose(found, plain, atol=1e-2)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_two_at_once_give_what_the_stock_pipeline_gives(pair: FluxPair, tmp_path: Path) -> None:
    """One of them against its direction; to the last bit."""
    wish = replace(WISH, width=64, height=64, steps=2)
    scales = {"diffusers": 0.7, "kohya": -0.3}
    loras = []
    for form, scale in scales.items():
        folder = tmp_path / form
        folder.mkdir()
        loras.append(lora_in(folder, written(form), scale))
        state = {key: tensor.clone() for key, tensor in written(form).items()}
        pair.stock.load_lora_weights(state, adapter_name=form)
    pair.stock.set_adapters(list(scales), list(scales.values()))
    expected = pair.stock_latents(wish)
    assert torch.equal(pair.our_latents(replace(wish, loras=tuple(loras))), expected)
    alone = pair.our_latents(replace(wish, loras=(loras[0],)))
    assert not torch.allclose(alone, expected, atol=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "8bit", "4bit"])
def test_a_lora_on_a_bundle_gives_what_peft_gives_next_to_the_same_weights(
    publish: Callable[[Kind], Path], tmp_path: Path, precision: Precision
) -> None:
    """To the last bit, at every precision; then as if there had been none."""
    folder = prepare(order_of(publish("klein"), tmp_path / "home", precision))
    ours, theirs = (model_of(open_bundle(folder, CPU), "klein") for _ in range(2))
    wish = replace(WISH, width=64, height=64, steps=2)
    plain = latents_of(ours, wish)
    found = latents_of(ours, replace(wish, loras=(lora_in(tmp_path, written("ai-toolkit"), 0.7),)))
    stated = Flux2KleinPipeline.lora_state_dict(written("ai-toolkit"))
    state = {key.removeprefix("transformer."): tensor.bfloat16() for key, tensor in stated.items()}
    transformer: Any = theirs._parts.transformer
    transformer.load_lora_adapter(state, prefix=None, adapter_name="x")
    for key, parameter in transformer.named_parameters():
        if ".lora_" in key:  # next to int8 weights peft makes them float32
            parameter.data = parameter.data.bfloat16()
    transformer.set_adapters(["x"], [0.7])
    assert torch.equal(found, latents_of(theirs, wish))
    assert not torch.allclose(found.float(), plain.float(), atol=1e-2)
    assert torch.equal(latents_of(ours, wish), plain)


def test_a_phase_without_memory_leaves_no_lora_that_is_not_in_use(
    pair: FluxPair, tmp_path: Path
) -> None:
    wish = replace(WISH, width=64, height=64, steps=2)
    lora = lora_in(tmp_path, written("diffusers"))
    full = [True]

    def run_out(_frugal: bool) -> None:
        if full.pop():
            full.append(False)
            raise torch.OutOfMemoryError

    for loras in ((lora,), ()):
        pair.our_latents(replace(wish, loras=loras))
        assert pair.ours._loras._guests.attached == (repr(lora.identity),)
    pair.ours._phases.run("text", "here alone", run_out)
    assert pair.ours._loras._guests.attached == ()


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
