"""What inductor makes of one full-size block for a GPU, on a machine without one: kernels, bytes.

    python -m tools.pretend.inductor

All is inductor's own up to the code of the kernels, for the graph that all sizes share; an H100's
properties are given, and nothing is compiled by Triton or launched. It prints one line per kind of
block, and ends with 1 where one is over its budget.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import torch
import torch._dynamo.device_interface as interfaces
import torch.utils._triton as triton_of_torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn
from torch._guards import TracingContext, tracing
from torch._inductor import config
from torch._inductor.compile_fx import compile_fx
from torch._inductor.exc import InductorError
from torch._inductor.fx_passes import joint_graph
from torch._inductor.graph import GraphLowering
from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional

from bench.real_shapes import shapes
from tools.pretend.model import RANK
from worker.engine.compiled import configure_compiler
from worker.engine.lora import LoraLinear
from worker.families.qwen_image.block import run_block
from worker.families.qwen_image.lightning import list_lightning_modules
from worker.families.qwen_image.modulation import _Rows

# Tokens of a prompt of usual length, and of a picture of 1024 x 1024.
TEXT_TOKENS: Final = 121
PICTURE_TOKENS: Final = 4096
# What inductor asks about a device.
H100: Final = SimpleNamespace(
    name="NVIDIA H100",
    type="cuda",
    major=9,
    minor=0,
    total_memory=80 << 30,
    multi_processor_count=132,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    regs_per_multiprocessor=65536,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 << 20,
    warp_size=32,
    clock_rate=1_980_000,
    memory_clock_rate=2_619_000,
    memory_bus_width=5120,
    gcnArchName="",
    is_integrated=False,
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A block: of an edit with one reference and zero_cond_t, or not; with a LoRA, or without.

    The LoRA is beside the weights, or merged into a copy of them.
    """

    is_edit: bool
    has_lora: bool
    is_merged: bool = False

    def __str__(self) -> str:
        way = f", LoRA {'merged' if self.is_merged else 'beside'}" if self.has_lora else ""
        return f"{'edit' if self.is_edit else 'image'}{way}"


@dataclass(frozen=True, slots=True)
class Generated:
    """The code of one block: kernels that inductor wrote, products, and bytes.

    `moved` are the bytes that its own kernels read and write. Attention is neither.
    """

    kernels: int
    products: int
    moved: int
    code: str = ""


# What each image's torch generates for a block with a LoRA beside its weights and without one; one
# in the weights is none.
BESIDE: Final = {
    "2.10": {False: Generated(14, 36, 938_000_000), True: Generated(14, 36, 1_848_000_000)},
    "2.13": {False: Generated(13, 36, 1_067_000_000), True: Generated(13, 36, 2_053_000_000)},
}
WITHOUT: Final = {
    "2.10": {False: Generated(13, 12, 808_000_000), True: Generated(13, 12, 1_593_000_000)},
    "2.13": {False: Generated(11, 12, 601_000_000), True: Generated(11, 12, 1_184_000_000)},
}
KINDS: Final = [
    Kind(is_edit, has_lora, is_merged)
    for is_edit in (False, True)
    for has_lora, is_merged in ((True, False), (True, True), (False, False))
]


def find_budget(kind: Kind, version: str = torch.__version__) -> Generated:
    """Return the most that a block may cost with a version of torch; KeyError for another one."""
    budgets = BESIDE if kind.has_lora and not kind.is_merged else WITHOUT
    return budgets[".".join(version.split(".")[:2])][kind.is_edit]


def list_excesses(found: Generated, budget: Generated) -> list[str]:
    """Return what of the code is over its budget."""
    return [
        f"{getattr(found, name):,} {what} instead of {getattr(budget, name):,}"
        for name, what in (("kernels", "kernels"), ("products", "products"), ("moved", "bytes"))
        if getattr(found, name) > getattr(budget, name)
    ]


def generate(kind: Kind) -> Generated:
    """Return what inductor generates for a block, as the worker's forward calls it."""
    return generate_code(run_block, lambda: make_arguments(kind))


def generate_code(
    function: Callable[..., Any], make_given: Callable[[], Iterable[Any]]
) -> Generated:
    """Return what inductor generates for a function of what is made on the device."""
    found: list[Generated] = []

    def stop(lowering: GraphLowering) -> None:
        found.append(count(lowering))
        raise NotImplementedError("there is no device to load the code on")

    def compile_traced(graph: Any, _inputs: list[Any]) -> Any:
        # the tensors that torch traced with have sizes that may differ, as those of a device have
        traced = [node.meta["example_value"] for node in graph.graph.find_nodes(op="placeholder")]
        mode = next(one.fake_mode for one in traced if isinstance(one, FakeTensor))
        with tracing(TracingContext(mode)):
            return compile_fx(graph, traced)

    configure_compiler()
    with pretend_gpu(), torch.no_grad(), patch.object(GraphLowering, "compile_to_module", stop):
        with FakeTensorMode():
            given = make_given()
        run = torch.compile(function, backend=compile_traced, fullgraph=True, dynamic=True)
        try:
            run(*given)
        except InductorError:
            if not found:
                raise
    return found[0]


def count(lowering: GraphLowering) -> Generated:
    """Generate the code of a graph and count what it launches."""
    code, *_ = lowering.codegen()
    kernels = products = moved = 0
    for node in lowering.scheduler.nodes:
        if isinstance(node, ExternKernelSchedulerNode):
            products += "mm" in str(getattr(node.node, "python_kernel_name", ""))
        elif not isinstance(node, NopKernelSchedulerNode):
            kernels += 1
            moved += node.get_read_write_buffers_sizes()
    return Generated(kernels, products, moved, str(getattr(code, "value", code)))


@contextmanager
def pretend_gpu() -> Iterator[None]:
    """Let inductor see a GPU with the properties of an H100."""
    with ExitStack() as stack:
        stack.callback(forget_answers)  # last, when the machine itself answers again

        def put(owner: Any, **values: Any) -> None:
            for name, value in values.items():
                stack.enter_context(patch.object(owner, name, value))

        put(
            torch.cuda,
            _lazy_init=lambda: None,
            _exchange_device=lambda *_: 0,
            _maybe_exchange_device=lambda *_: 0,
            is_available=lambda: True,
            is_bf16_supported=lambda *_, **__: True,
            device_count=lambda: 1,
            current_device=lambda: 0,
            synchronize=lambda *_: None,
            get_rng_state=lambda *_: torch.zeros(16, dtype=torch.uint8),
            set_rng_state=lambda *_: None,
            get_device_properties=lambda *_: H100,
            get_device_capability=lambda *_: (H100.major, H100.minor),
        )
        properties = staticmethod(lambda *_: H100)
        put(
            interfaces.CudaInterface,
            get_device_properties=properties,
            get_compute_capability=staticmethod(lambda *_: 10 * H100.major + H100.minor),
        )
        put(interfaces.CudaInterface.Worker, get_device_properties=properties)
        put(fake_tensor, init_gpu_context=lambda *_: None)
        put(triton_of_torch, triton_hash_with_backend=lambda: "none")
        # its patterns of attention are traced on the device; ours is one call
        put(joint_graph, lazy_init=lambda *_: None)
        put(functional, scaled_dot_product_attention=attend)
        put(config, compile_threads=1, fx_graph_cache=False)
        torch._C._ensureCUDADeviceGuardSet()  # noqa: SLF001 - as FakeTensorMode does
        forget_answers()
        yield


def forget_answers() -> None:
    """Let torch ask again what Triton and the device can do: it keeps answers for the process."""
    for answer in vars(triton_of_torch).values():
        if hasattr(answer, "cache_clear"):
            answer.cache_clear()


def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Compute attention as flash does, which torch chooses on that GPU; there is no mask."""
    del attn_mask
    flash: Any = torch.ops.aten._scaled_dot_product_flash_attention  # noqa: SLF001 - its only name
    attended: Tensor = flash(query, key, value)[0]
    return attended


def make_arguments(kind: Kind) -> tuple[Any, ...]:
    """Return the arguments of `run_block` at 1024 x 1024, on the device and without values."""
    settings = shapes.full().transformer_config(edit=kind.is_edit) | {"num_layers": 1}
    with torch.device("meta"):
        model: Any = QwenImageTransformer2DModel(**settings)
    block = build_block(model.transformer_blocks[0], model.inner_dim, kind)
    tokens = PICTURE_TOKENS * (2 if kind.is_edit else 1)
    channels = settings["attention_head_dim"]
    tables = tuple(make(2, n, 1, channels, dtype=torch.float32) for n in (tokens, TEXT_TOKENS))
    dim = model.inner_dim
    streams = make(1, tokens, dim), make(1, TEXT_TOKENS, dim)
    return (block, *streams, make(1 + kind.is_edit, dim), tables, None, PICTURE_TOKENS)


def build_block(block: nn.Module, dim: int, kind: Kind) -> nn.Module:
    """Put a block on the device, its modulation as rows, a LoRA where Lightning's reaches."""
    block.img_mod = _Rows(make(1 + kind.is_edit, 6 * dim))
    block.txt_mod = _Rows(make(1, 6 * dim))
    for module in block.eval().modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(make(*parameter.shape), requires_grad=False))
    for name in list_lightning_modules(1) if kind.has_lora else ():
        place, _, leaf = name.removeprefix("transformer_blocks.0.").rpartition(".")
        parent = block.get_submodule(place)
        linear = getattr(parent, leaf)
        wrapped = LoraLinear(linear)
        wrapped.add("a", make(RANK, linear.in_features), make(linear.out_features, RANK))
        if kind.is_merged:
            wrapped.keep_sum("a", make(linear.out_features, linear.in_features))
        wrapped.active = "a"
        setattr(parent, leaf, wrapped)
    return block


def make(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return an empty tensor on the device."""
    return torch.empty(shape, dtype=dtype, device="cuda")


def main() -> int:
    """Print what each kind of block is compiled to; return 1 where one is over its budget."""
    excesses = []
    for kind in KINDS:
        found = generate(kind)
        shown = f"{found.kernels} kernels, {found.products} products, {found.moved / 1e9:.2f} GB"
        print(f"{kind}: {shown}")
        excesses += [f"{kind}: {excess}" for excess in list_excesses(found, find_budget(kind))]
    print(*excesses, sep="\n")
    return 1 if excesses else 0


if __name__ == "__main__":
    sys.exit(main())
