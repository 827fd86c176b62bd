"""A LoRA in one product: the sum is bitsandbytes' weight plus B @ A, kept or made in one kernel."""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from bitsandbytes import functional as bnb
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager

from worker.engine import combine, nf4_kernel
from worker.engine import compiled as compiled_module
from worker.engine.combine import (
    add_nf4,
    combine_nf4,
    count_merged_bytes,
    count_wrong,
    merge,
    try_nf4,
)
from worker.engine.compiled import Compiled
from worker.engine.lora import Adapters, LoraLinear, fuse
from worker.engine.quantise import make_linear, quantise
from worlds.loras import predict, published_lora, small_transformer

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep 4-bit weights packed, as on a GPU: small ones are unpacked on a CPU."""
    monkeypatch.setattr("worker.engine.quantise.SMALL_WEIGHT", 0)


def packed_linear(rows: int, columns: int, *, has_bias: bool = False) -> nn.Linear:
    """Return a 4-bit Linear of random weights."""
    weight = torch.randn(rows, columns).bfloat16() * 0.05
    bias = torch.randn(rows).bfloat16() if has_bias else None
    return make_linear(quantise(weight, "4bit", CPU), bias, "4bit", CPU)


def sides(
    linear: nn.Linear, rank: int, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor]:
    """Return A and B of a LoRA for it."""
    down, up = torch.randn(rank, linear.in_features), torch.randn(linear.out_features, rank)
    return (down * 0.1).to(dtype), (up * 0.1).to(dtype)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The kernel's module as Triton's interpreter runs it, on the CPU."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    yield importlib.reload(nf4_kernel)
    monkeypatch.delenv("TRITON_INTERPRET")
    importlib.reload(nf4_kernel)


def unpacked(module: Any, linear: Any, down: Tensor, up: Tensor, **how: bool) -> Tensor:
    """Run the kernel, its products in float32: the interpreter's of bf16 are wrong."""
    state = linear.weight.quant_state
    found: Tensor = module.unpack_sum(
        linear.weight.data,
        state.absmax,
        state.state2.code,
        state.state2.absmax,
        state.offset,
        state.code,
        down,
        up,
        **({"widen": True} | how),
    )
    return found


# rows that fill no tile, ranks that are no power of two, more blocks than one of the second kind
SHAPES = [(96, 128, 4), (160, 192, 64), (32, 64, 24), (128, 576, 16)]


@pytest.mark.parametrize(("rows", "columns", "rank"), SHAPES)
@pytest.mark.parametrize(
    ("dtype", "unit"), [(torch.float32, 2**-20), (torch.float16, 2**-10)], ids=["fp32", "fp16"]
)
def test_the_kernel_adds_the_product_to_the_weights_that_bitsandbytes_unpacks(
    interpreted: Any, rows: int, columns: int, rank: int, dtype: torch.dtype, unit: float
) -> None:
    """In float32 and rounded once; and within one step of bf16 of bitsandbytes plus addmm."""
    linear: Any = packed_linear(rows, columns)
    down, up = sides(linear, rank, dtype)
    found = unpacked(interpreted, linear, down, up)
    state = linear.weight.quant_state
    assert found.dtype == dtype
    plain = bnb.dequantize_4bit(linear.weight.data, state).float()
    step = torch.maximum(plain.abs(), found.float().abs()) * 2**-7
    reference = torch.addmm(plain, up.float(), down.float())
    # beside it, of terms that cancel: float32's roundings, and half of the least that fp16 can add
    lost = rank * 2**-24 * (up.float().abs() @ down.float().abs()) + 2**-25
    assert ((found.float() - reference).abs() <= step + lost).all()
    state.dtype = torch.float32  # bitsandbytes' values before they are rounded to bf16
    exact = torch.addmm(bnb.dequantize_4bit(linear.weight.data, state), up.float(), down.float())
    torch.testing.assert_close(
        found.float(), exact, rtol=unit, atol=unit * float(exact.abs().max())
    )


def test_factors_that_are_wide_need_not_be_widened(interpreted: Any) -> None:
    """As they are multiplied on a GPU, where nothing is widened."""
    linear: Any = packed_linear(96, 128)
    down, up = sides(linear, 24, torch.float32)
    expected = unpacked(interpreted, linear, down, up)
    found = unpacked(interpreted, linear, down, up, widen=False)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(found, up @ down, atol=1e-3)


def test_a_lora_of_zeros_leaves_the_unpacked_weights(interpreted: Any) -> None:
    linear: Any = packed_linear(64, 128)
    down, up = torch.zeros(4, 128), torch.zeros(64, 4)
    state = linear.weight.quant_state
    state.dtype = torch.float32
    expected = bnb.dequantize_4bit(linear.weight.data, state)
    assert torch.equal(unpacked(interpreted, linear, down, up), expected)


def test_sums_are_right_within_their_roundings() -> None:
    """One for the weight, one for the product, two for the sums; and a little where all cancels."""
    plain = torch.tensor([1.0, 1.0, 0.0, 0.0])
    expected = torch.tensor([-0.5, -0.5, 1e-9, 1e-9])
    most = (2 * 1.0 + 3 * 0.5) * 2**-8 + 0.5 * 2**-20
    inside = torch.tensor([-0.5 + 0.99 * most, -0.5, 1e-9 + 0.4 * 2**-20, 1e-9])
    outside = torch.tensor([-0.5 + 1.01 * most, -0.5 - 1.01 * most, 1e-9, 1e-9 + 0.6 * 2**-20])
    assert count_wrong(inside, expected, plain) == 0
    assert count_wrong(outside, expected, plain) == 3
    nothing = torch.zeros(4)
    assert count_wrong(nothing, nothing, nothing) == 0


@pytest.mark.parametrize("capability", [80, 89, 90])
def test_the_kernel_compiles_for_the_tensor_cores_of_every_gpu_that_is_served(
    capability: int,
) -> None:
    """Only compiled: that it is right there needs a GPU, which `try_nf4` asks at every start."""
    triton: Any = importlib.import_module("triton")
    compiler: Any = importlib.import_module("triton.compiler")
    target: Any = importlib.import_module("triton.backends.compiler").GPUTarget
    kernel: Any = nf4_kernel._unpack_tile
    kinds = dict.fromkeys(("packed", "nested"), "*u8") | dict.fromkeys(
        ("nested_levels", "nested_maxima", "offset", "levels"), "*fp32"
    )
    kinds |= dict.fromkeys(("down", "up", "out"), "*bf16")
    kinds |= dict.fromkeys(("rows", "columns", "rank"), "i32")
    constants = {
        "tile_rows": nf4_kernel.TILE_ROWS,
        "tile_rank": 64,
        "block": 64,
        "nested_block": 256,
        "widen": False,
    }
    source = compiler.ASTSource(
        fn=kernel,
        signature={name: kinds.get(name, "constexpr") for name in kernel.arg_names},
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
    )
    made = triton.compile(source, target=target("cuda", capability, 32))
    assert "mma" in made.asm["ptx"]
    assert made.metadata.shared < 48 << 10  # bytes, what every GPU has without asking


def test_a_kernel_that_fails_or_is_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU Triton has nothing to run it on."""
    assert try_nf4(CPU)
    monkeypatch.setattr(combine, "combine_nf4", lambda *given: add_nf4(*given) * 1.03)
    assert "weights are wrong" in try_nf4(CPU)
    monkeypatch.setattr(combine, "combine_nf4", lambda *given: add_nf4(*given) * 1.002)
    assert try_nf4(CPU) == ""


def test_what_a_kernel_fails_by_is_told_in_one_line_and_the_random_state_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A try at a start must not change what is drawn later."""
    state = torch.get_rng_state()
    assert "\n" not in try_nf4(CPU)
    monkeypatch.setattr(combine, "combine_nf4", fail_at_length)
    assert try_nf4(CPU) == "ValueError: no kernel"
    assert torch.equal(torch.get_rng_state(), state)


def fail_at_length(*_given: Any) -> Tensor:
    raise ValueError("no kernel\nand why\nat length")


def test_the_compiler_knows_what_the_kernel_returns() -> None:
    with torch._subclasses.fake_tensor.FakeTensorMode():
        down, up = (torch.empty(*size, dtype=torch.bfloat16) for size in ((8, 128), (96, 8)))
        made = torch.ops.worker.unpack_sum(*[torch.empty(1)] * 6, down, up)
    assert made.shape == (96, 128)
    assert made.dtype == torch.bfloat16


def test_a_combined_weight_gives_what_the_side_products_give() -> None:
    """Bias and all, and for its adapter alone: a caller's LoRA stays beside the weights."""
    base = packed_linear(96, 128, has_bias=True)
    wrapped, plain = LoraLinear(base), LoraLinear(base)
    for added in ("lightning", "caller"):
        pair = sides(base, 8)
        for one in (wrapped, plain):
            one.add(added, *pair)
    calls = []

    def add(*given: Any) -> Tensor:
        calls.append(given)
        return add_nf4(*given)

    wrapped.combine("lightning", add)
    x = torch.randn(7, 128).bfloat16()
    names: tuple[str | None, ...] = ("lightning", "caller", None, "lightning")
    for name in names:
        wrapped.active = plain.active = name
        found, expected = wrapped(x).float(), plain(x).float()
        assert (found - expected).norm() < 0.02 * expected.norm()
        assert name == "lightning" or torch.equal(found, expected)
    assert len(calls) == 2
    wrapped.active = "caller"
    wrapped.combine("lightning", lambda *_: torch.zeros(96, 128).bfloat16())
    assert torch.equal(wrapped(x), expected_of(plain, "caller", x))
    wrapped.active = "lightning"
    assert torch.equal(wrapped(x), base.bias.expand(7, -1))
    wrapped.combine("lightning", add)  # while it is active
    wrapped(x)
    assert len(calls) == 3


def expected_of(plain: LoraLinear, name: str, x: Tensor) -> Tensor:
    """Return what the side products give with one adapter."""
    plain.active = name
    made: Tensor = plain(x)
    return made


def test_a_merged_adapter_is_one_product_and_the_base_stays() -> None:
    plain, ours = small_transformer(), small_transformer()
    states = [published_lora(plain, seed) for seed in (1, 2)]
    adapters, beside = Adapters(ours), Adapters(plain)
    for attached, state in zip("ab", states, strict=True):
        adapters.attach(attached, state)
        beside.attach(attached, state)
    before = predict(ours)
    adapters.use("a")
    merge(adapters, "a")
    beside.use("a")
    torch.testing.assert_close(predict(ours), predict(plain), rtol=1e-3, atol=1e-3)
    assert not torch.equal(predict(ours), before)
    wrapped = ours.transformer_blocks[0].attn.to_q
    assert torch.equal(wrapped.kept, fuse(wrapped.base.weight, *wrapped.find_sides("a")))
    merge(adapters, "b")  # which is not active: what is stays
    assert torch.equal(wrapped.kept, fuse(wrapped.base.weight, *wrapped.find_sides("a")))
    beside.use("b")
    merge(beside, "b")
    others: tuple[str | None, ...] = ("b", None)
    for name in others:
        adapters.use(name)
        beside.use(name)
        assert torch.equal(predict(ours), predict(plain))
    assert torch.equal(predict(ours), before)


def test_the_bytes_of_a_merge_are_those_of_the_plain_weights_that_it_reaches() -> None:
    ours = small_transformer()
    adapters = Adapters(ours)
    adapters.attach("a", published_lora(ours, 1, modules=["img_in", "proj_out"]))
    assert count_merged_bytes(adapters, "a") == 4 * (16 * 64 + 64 * 16)
    ours.proj_out.base = packed_linear(32, 64)
    assert count_merged_bytes(adapters, "a") == 4 * 16 * 64
    merge(adapters, "a")
    assert ours.proj_out._buffers.get("a_kept") is None
    assert ours.img_in._buffers.get("a_kept") is not None


def test_a_compiled_function_calls_the_kernel_within_its_one_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Triton's part is replaced by the product alone: there is no GPU to run it on."""
    monkeypatch.setattr(nf4_kernel, "unpack_sum", lambda *given: given[-1] @ given[-2])
    wrapped = LoraLinear(packed_linear(96, 128))
    wrapped.add("a", *sides(packed_linear(96, 128), 8))
    wrapped.combine("a", combine_nf4)
    wrapped.active = "a"
    graphs = []

    def keep(graph: Any, _inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled_module, "compile_for_device", keep)
    compiled = Compiled(lambda module, x: (module(x) + 1,))
    for rows in (5, 7):
        x = torch.randn(rows, 128).bfloat16()
        assert torch.equal(compiled(wrapped, x)[0], wrapped(x) + 1)
    assert len(graphs) == compiled.graphs == 1
    assert "unpack_sum" in str(graphs[0].graph)


@pytest.mark.parametrize("has_bias", [False, True])
def test_an_8bit_linear_is_one_graph(monkeypatch: pytest.MonkeyPatch, *, has_bias: bool) -> None:
    """For any number of tokens, although it writes to a tensor of its own."""
    monkeypatch.setattr(compiled_module, "compile_for_device", aot_eager)
    bias = torch.randn(96).bfloat16() if has_bias else None
    parts = quantise(torch.randn(96, 128).bfloat16(), "8bit", CPU)
    linear = make_linear(parts, bias, "8bit", CPU)
    compiled = Compiled(lambda module, x: (module(x) + 1,))
    for tokens in (5, 7, 9):
        x = torch.randn(1, tokens, 128).bfloat16()
        assert torch.equal(compiled(linear, x)[0], linear(x) + 1)
    assert (compiled.graphs, compiled.is_active) == (1, True)


@pytest.mark.parametrize(
    "error", [RuntimeError("Triton Error [CUDA]: out of memory"), torch.AcceleratorError("lost")]
)
def test_what_the_device_raises_is_no_fault_of_the_kernel(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_given: Any) -> Tensor:
        raise error

    monkeypatch.setattr(combine, "combine_nf4", fail)
    with pytest.raises(type(error)):
        try_nf4(CPU)


def test_nothing_is_written_beyond_the_last_row_or_read_beyond_the_rank(
    interpreted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where rows fill no tile, and factors no product: what lies there is another tensor's."""
    rows, columns, rank = 96, 128, 4
    linear: Any = packed_linear(rows, columns)
    down, up = sides(linear, rank, torch.float32)
    expected = unpacked(interpreted, linear, down, up)
    around = torch.full((rows + 32, columns), 7.0)
    monkeypatch.setattr(interpreted.torch, "empty", lambda *_size, **_how: around[:rows])
    wide, high = torch.full((rank + 28, columns), 5.0), torch.full((rows + 32, rank), 5.0)
    wide[:rank], high[:rows] = down, up
    assert torch.equal(unpacked(interpreted, linear, wide[:rank], high[:rows]), expected)
    assert (around[rows:] == 7).all()
