"""Quantised weights: which, how many bytes, and that they compute what they stand for."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from bitsandbytes import functional
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from safetensors.torch import load_file, save_file
from torch import nn

from worker.engine.quantise import (
    NF4_STATE,
    Linear8bit,
    Precision,
    count_stored_bytes,
    is_quantised,
    make_linear,
    quantise,
)
from worker.families.qwen_image.lightning import LIGHTNING_MODULES
from worker.families.qwen_image.parts import TEXT_ENCODER, TRANSFORMER, VAE

CPU = torch.device("cpu")


def weights(rows: int = 128, columns: int = 192) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randn(rows, columns).bfloat16() * 0.05, torch.randn(rows).bfloat16()


def error(precision: Precision, x: torch.Tensor) -> float:
    """Return the relative error of a quantised Linear against its bf16 weights."""
    weight, bias = weights()
    module = make_linear(quantise(weight, precision, CPU), bias, precision, CPU).eval()
    with torch.inference_mode():
        y = module(x).float()
        expected = torch.nn.functional.linear(x, weight, bias).float()
    assert y.isfinite().all()
    return float((y - expected).norm() / expected.norm())


def test_eight_bits_lie_between_four_and_sixteen() -> None:
    x = torch.randn(16, 192).bfloat16()
    assert 0.001 < error("8bit", x) < 0.02 < error("4bit", x) < 0.15
    sizes = [
        count_stored_bytes((3072, 12288), p) / (3072 * 12288) for p in ("4bit", "8bit", "bf16")
    ]
    assert sizes == pytest.approx([0.516, 1.0, 2.0], abs=0.001)


@pytest.mark.parametrize("precision", ["4bit", "8bit"])
@pytest.mark.parametrize("scale", [1e3, 1e5, 1e7])
def test_activations_beyond_the_range_of_fp16_stay_right(
    precision: Precision, scale: float
) -> None:
    x = torch.randn(16, 192).bfloat16()
    x[:, 5] *= scale
    assert error(precision, x) < 0.25


def test_llm_int8_without_a_threshold_fails_on_them_which_is_why_it_is_not_used() -> None:
    weight, _ = weights(128, 128)
    base = nn.Linear(128, 128, bias=False, dtype=torch.bfloat16)
    base.weight = nn.Parameter(weight, requires_grad=False)
    module = Linear8bitLt(128, 128, bias=False, has_fp16_weights=False, threshold=0.0).eval()
    module.load_state_dict(base.state_dict())
    x = torch.randn(4, 128).bfloat16()
    x[:, 5] *= 1e5
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not module.to(CPU)(x).isfinite().all()


@pytest.mark.parametrize("precision", ["4bit", "8bit"])
@pytest.mark.parametrize("shape", [(128, 192), (320, 64), (3072, 256)])
def test_the_bytes_are_those_that_were_computed(
    precision: Precision, shape: tuple[int, int]
) -> None:
    parts = quantise(weights(*shape)[0], precision, CPU)
    real = sum(t.numel() * t.element_size() for t in parts.values())
    if precision == "4bit":  # the number in its packed state has a varying count of digits
        packed = bytes(parts[f"weight.{NF4_STATE}"].tolist())
        facts = json.loads(packed)
        real += len(json.dumps({**facts, "nested_offset": 0.0})) - len(packed)
    assert real == count_stored_bytes(shape, precision)
    assert count_stored_bytes(shape, "bf16") == 2 * shape[0] * shape[1]


@pytest.mark.parametrize(
    ("small", "kind"), [(192 * 128, nn.Linear), (192 * 128 - 1, Linear4bit)], ids=["small", "large"]
)
def test_nf4_survives_a_file_and_gives_bitsandbytes_own_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: int, kind: type[nn.Linear]
) -> None:
    """Unpacked once where it is small, or for each product."""
    monkeypatch.setattr("worker.engine.quantise.SMALL_WEIGHT", small)
    weight, bias = weights()
    save_file(quantise(weight, "4bit", CPU), tmp_path / "w.safetensors")
    module = make_linear(load_file(tmp_path / "w.safetensors"), bias, "4bit", CPU).eval()
    stock = Linear4bit(192, 128, compute_dtype=torch.bfloat16, quant_type="nf4").eval()
    stock.load_state_dict({"weight": weight, "bias": bias})
    stock = stock.to(CPU)
    stock.support_avx512bf16_for_cpu = False  # another kernel for the same weights, on some CPUs
    x = torch.randn(9, 192).bfloat16()
    with torch.inference_mode():
        assert torch.equal(module(x), stock(x))
    assert type(module) is kind
    # or its first forward pass would repack the weight, on some CPUs
    assert not getattr(module, "support_avx512bf16_for_cpu", False)
    assert not any(p.is_meta for p in module.parameters())


@pytest.mark.parametrize("chunk", [192 * 50, 191])
def test_nf4_in_chunks_is_bitsandbytes_own_nf4(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Also where one row has more weights than a chunk."""
    monkeypatch.setattr("worker.engine.quantise.CHUNK_WEIGHTS", chunk)
    weight, _ = weights()
    packed, state = functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    parts = quantise(weight, "4bit", CPU)
    assert torch.equal(parts["weight"], packed)
    for key, value in state.as_dict(packed=True).items():
        assert torch.equal(parts[f"weight.{key}"], value), key


def test_a_row_of_zeros_stays_zero_in_eight_bits() -> None:
    weight, _ = weights()
    weight[3] = 0
    parts = quantise(weight, "8bit", CPU)
    module = Linear8bit(parts["weight"], parts["weight.scale"], None)
    y = module(torch.randn(2, 192).bfloat16())
    assert y.isfinite().all()
    assert (y[:, 3] == 0).all()


def test_only_block_linears_and_the_language_model_are_quantised() -> None:
    big = (3072, 3072)
    for module in LIGHTNING_MODULES:
        name = f"transformer_blocks.59.{module}.weight"
        assert is_quantised(TRANSFORMER.quantised, name, big, "4bit")
        assert not is_quantised(TRANSFORMER.quantised, name, big, "bf16")
    for name in (
        "img_in.weight",
        "txt_in.weight",
        "proj_out.weight",
        "norm_out.linear.weight",
        "time_text_embed.timestep_embedder.linear_1.weight",
        "transformer_blocks.0.img_mod.1.weight",
        "transformer_blocks.0.attn.norm_q.weight",
        "transformer_blocks.0.attn.to_q.bias",
    ):
        assert not is_quantised(TRANSFORMER.quantised, name, big, "4bit"), name
    layer = "model.language_model.layers.3."
    assert is_quantised(TEXT_ENCODER.quantised, layer + "mlp.down_proj.weight", big, "8bit")
    for name in (
        "lm_head.weight",
        "model.language_model.embed_tokens.weight",
        "model.visual.blocks.0.mlp.down_proj.weight",
        layer + "input_layernorm.weight",
    ):
        assert not is_quantised(TEXT_ENCODER.quantised, name, big, "4bit"), name
    assert not is_quantised(VAE.quantised, "decoder.mid_block.weight", big, "4bit")


def test_a_weight_that_bitsandbytes_refuses_on_some_cpus_stays_bf16() -> None:
    name = "transformer_blocks.0.attn.to_q.weight"
    assert not is_quantised(TRANSFORMER.quantised, name, (3072, 3420), "4bit")
    assert not is_quantised(TRANSFORMER.quantised, name, (48, 64), "4bit")
    for shape, fits in (
        ((32, 64), True),
        ((64, 32), False),
        ((31, 64), False),
        ((32, 65), False),
        ((33, 64), False),
        ((32, 63), False),
    ):
        assert is_quantised(TRANSFORMER.quantised, name, shape, "8bit") is fits


def test_bf16_is_no_quantisation() -> None:
    weight, bias = weights()
    with pytest.raises(ValueError, match="not quantised"):
        quantise(weight, "bf16", CPU)
    with pytest.raises(ValueError, match="not quantised"):
        make_linear({"weight": weight}, bias, "bf16", CPU)


def test_eight_bits_use_every_level_and_no_more() -> None:
    """The largest weight of a row is 127, whatever its sign and size."""
    weight, _ = weights()
    weight[5] *= 1e-30
    weight[6, 0] = -9
    parts = quantise(weight, "8bit", CPU)
    assert parts["weight"].dtype == torch.int8
    assert (parts["weight"].abs().amax(dim=1) == 127).all()
    assert parts["weight"][6, 0] == -127
    restored = parts["weight"].float() * parts["weight.scale"][:, None]
    assert ((restored - weight.float()).abs() <= parts["weight.scale"][:, None] * 0.501).all()


@pytest.mark.parametrize("precision", ["4bit", "8bit"])
def test_a_linear_without_a_bias_has_none(precision: Precision) -> None:
    weight, bias = weights()
    parts = quantise(weight, precision, CPU)
    x = torch.randn(3, 192).bfloat16()
    bare = make_linear(parts, None, precision, CPU)
    whole = make_linear(parts, bias, precision, CPU)
    assert "bias" not in dict(bare.named_parameters())
    assert not any(p.requires_grad for p in (*bare.parameters(), *whole.parameters()))
    assert (bare.in_features, bare.out_features) == (192, 128)
    with torch.inference_mode():
        torch.testing.assert_close(whole(x).float(), (bare(x) + bias).float(), rtol=0.02, atol=0.02)
        assert bare(x).dtype == whole(x).dtype == torch.bfloat16
