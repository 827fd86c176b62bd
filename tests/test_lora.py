"""Adapters reach every module they must, or fail; active ones give what peft gives, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from worker.engine.lora import Adapters, canonical, fused, lightning_modules
from worker.errors import LoraNotApplied

BLOCKS, DIM, RANK = 2, 64, 4


def small_transformer() -> Any:
    """Make a transformer of two blocks with weights from a fixed seed."""
    torch.manual_seed(0)
    return QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=BLOCKS,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(8, 12, 12),
    ).eval()


def published_lora(transformer: Any, seed: int, alpha: float = 2.0) -> dict[str, Tensor]:
    """Make a LoRA with the published keys for every module that Lightning reaches."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name in lightning_modules(BLOCKS):
        linear = transformer.get_submodule(name)
        state[f"{name}.lora_down.weight"] = torch.randn(
            RANK, linear.in_features, generator=generator
        )
        state[f"{name}.lora_up.weight"] = torch.randn(
            linear.out_features, RANK, generator=generator
        )
        state[f"{name}.alpha"] = torch.tensor(alpha)
    return state


def predict(transformer: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """Run one forward on fixed inputs."""
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        output: Tensor = transformer(
            hidden_states=torch.randn(1, 16, 16, generator=generator).to(dtype),
            encoder_hidden_states=torch.randn(1, 5, 32, generator=generator).to(dtype),
            timestep=torch.tensor([0.5]).to(dtype),
            img_shapes=[[(1, 4, 4)]],
            return_dict=False,
        )[0]
    return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_active_adapter_gives_what_peft_gives(tmp_path: Path, dtype: torch.dtype) -> None:
    """Ours and diffusers' load_lora_adapter through peft agree to the last bit."""
    stock, ours = small_transformer().to(dtype), small_transformer().to(dtype)
    state = {k: v.to(dtype) for k, v in published_lora(stock, 3).items()}
    save_file(state, tmp_path / "lora.safetensors")
    stock.load_lora_adapter(canonical(state), prefix=None, adapter_name="a")
    adapters = Adapters(ours)
    adapters.attach("a", canonical(load_file(tmp_path / "lora.safetensors")))
    adapters.use("a")
    assert torch.equal(predict(ours, dtype), predict(stock, dtype))


def test_switching_off_gives_the_base_back() -> None:
    """A transformer with its adapters off equals one that never had any."""
    plain, ours = small_transformer(), small_transformer()
    adapters = Adapters(ours)
    adapters.attach("a", canonical(published_lora(plain, 3)))
    adapters.attach("b", canonical(published_lora(plain, 4)))
    outputs: dict[str | None, Tensor] = {}
    for name in ("a", "b", None, "a"):
        adapters.use(name)
        output = predict(ours)
        assert torch.equal(outputs.setdefault(name, output), output)
    assert torch.equal(outputs[None], predict(plain))
    assert not torch.equal(outputs["a"], outputs["b"])


def test_every_module_of_lightning_is_counted() -> None:
    """Twelve modules a block, so 720 in the published 60 blocks."""
    transformer = small_transformer()
    state = canonical(published_lora(transformer, 3))
    expected = lightning_modules(BLOCKS)
    assert Adapters(transformer).attach("a", state, expected=expected) == 24
    assert len(lightning_modules(60)) == 720


def test_keys_under_a_prefix_are_the_same_lora() -> None:
    """`diffusion_model.` before every key changes nothing."""
    state = published_lora(small_transformer(), 3)
    prefixed = {f"diffusion_model.{key}": tensor for key, tensor in state.items()}
    plain = canonical(state)
    assert plain.keys() == canonical(prefixed).keys()
    assert all(torch.equal(plain[key], tensor) for key, tensor in canonical(prefixed).items())


def _without(state: dict[str, Tensor], ending: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if not key.endswith(ending)}


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda s: _without(s, "1.attn.to_q.lora_up.weight"), id="half-a-pair"),
        pytest.param(
            lambda s: {k: v for k, v in s.items() if ".1.attn.to_q." not in k}, id="module-missing"
        ),
        pytest.param(
            lambda s: {k.replace("s.1.", "s.7."): v for k, v in s.items()}, id="no-such-block"
        ),
        pytest.param(
            lambda s: {k: v[:, :-1] if "down" in k else v for k, v in s.items()}, id="wrong-shape"
        ),
        pytest.param(lambda s: {**s, "img_in.dora_scale": torch.ones(1)}, id="unknown-key"),
        pytest.param(lambda _: {}, id="empty"),
    ],
)
def test_any_miss_is_an_error_and_attaches_nothing(broken: Any) -> None:
    """A LoRA that does not reach exactly its modules is LORA_NOT_APPLIED, not a warning."""
    transformer = small_transformer()
    before = predict(transformer)
    adapters = Adapters(transformer)
    with pytest.raises(LoraNotApplied):
        adapters.attach(
            "a",
            canonical(broken(published_lora(transformer, 3))),
            expected=lightning_modules(BLOCKS),
        )
    assert adapters.held == ()
    assert torch.equal(predict(transformer), before)


def test_an_adapter_that_is_not_held_cannot_be_used() -> None:
    """Asking for one is LORA_NOT_APPLIED, never a silent base picture."""
    with pytest.raises(LoraNotApplied):
        Adapters(small_transformer()).use("lightning_8")


def test_fusing_adds_the_product_in_float32() -> None:
    """A fused bf16 weight is the rounded exact sum."""
    weight = torch.randn(8, 8).to(torch.bfloat16)
    down, up = torch.randn(2, 8).to(torch.bfloat16), torch.randn(8, 2).to(torch.bfloat16)
    exact = weight.double() + up.double() @ down.double()
    assert torch.allclose(fused(weight, down, up).double(), exact, rtol=2**-7)
