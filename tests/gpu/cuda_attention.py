"""Which attention kernels run at the published lengths, how long they take, and which is chosen."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from gpu.children import Child
from gpu.figures import Figures
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

pytestmark = pytest.mark.cuda
HEADS, WIDTH = 24, 128
# tokens of a picture of 1024x1024 with a short prompt; of an edit of one with a reference
LENGTHS = (4121, 8420)
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# The first product of each of several lengths, in a new process.
FIRST_CALLS = """
import json, time, torch
from torch.nn.functional import scaled_dot_product_attention as attend
from torch.nn.attention import SDPBackend, sdpa_kernel
def run(length, kind):
    q = torch.randn(1, 24, length, 128, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()
    start = time.perf_counter()
    with sdpa_kernel(kind):
        attend(q, q, q)
    torch.cuda.synchronize()
    return round((time.perf_counter() - start) * 1000, 2)
found = {}
for name, kind in (
    ("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)
):
    lengths = (4121, 4130, 4200, 8420, 6000, 4121, 4130)
    try:
        found[name] = [(length, run(length, kind)) for length in lengths]
    except RuntimeError as error:
        found[name] = str(error)[:200]
print("FOUND " + json.dumps(found), flush=True)
"""


@contextlib.contextmanager
def use(backend: SDPBackend | None) -> Iterator[None]:
    """Allow one backend alone; all of them without one."""
    if backend is None:
        yield
        return
    with sdpa_kernel(backend):
        yield


def measure(inputs: tuple[Tensor, Tensor, Tensor], backend: SDPBackend | None) -> float:
    """Return the milliseconds of one call, the mean of ten after three."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with use(backend):
        for _ in range(3):
            scaled_dot_product_attention(*inputs)
        begun.record()
        for _ in range(10):
            scaled_dot_product_attention(*inputs)
        ended.record()
    ended.synchronize()
    return float(begun.elapsed_time(ended)) / 10


@pytest.mark.parametrize("length", LENGTHS)
@torch.inference_mode()
def test_the_fused_kernels_run_and_agree(
    figures: Figures, device: torch.device, length: int
) -> None:
    """The default is one of the fast ones: no more than a fifth slower than the fastest."""
    shape = (1, length, HEADS, WIDTH)
    # as the block gives them: heads and tokens exchanged by a view
    q, k, v = (
        torch.randn(shape, device=device, dtype=torch.bfloat16).transpose(1, 2) for _ in range(3)
    )
    found: dict[str, float] = {}
    failed: dict[str, str] = {}
    results: dict[str, Tensor] = {}
    for name, backend in BACKENDS.items():
        try:
            found[name] = round(measure((q, k, v), backend), 3)
            with use(backend):
                results[name] = scaled_dot_product_attention(q, k, v)
        except RuntimeError as error:
            failed[name] = str(error)[:120]
    found["default"] = round(measure((q, k, v), None), 3)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        scaled_dot_product_attention(q, k, v)
        torch.cuda.synchronize(device)
    kernels = [event.key[:120] for event in seen.key_averages()]
    differences = {
        name: float(f"{float((one - results['math']).norm() / results['math'].norm()):.2g}")
        for name, one in results.items()
        if "math" in results
    }
    flops = 4 * length**2 * HEADS * WIDTH
    rates = {name: round(flops / ms / 1e9) for name, ms in found.items()}
    figures.put(ms=found, tflops=rates, failed=failed, kernels=kernels, differences=differences)
    fast = [found[name] for name in ("flash", "cudnn", "efficient") if name in found]
    assert fast, failed
    assert found["default"] < 1.2 * min(fast)
    assert max(differences.values(), default=0.0) < 0.02


@torch.inference_mode()
def test_a_mask_and_its_kernel(figures: Figures, device: torch.device) -> None:
    """A batch of prompts of unequal length has a mask, which flash attention refuses."""
    length = LENGTHS[0]
    q, k, v = (
        torch.randn(2, HEADS, length, WIDTH, device=device, dtype=torch.bfloat16) for _ in range(3)
    )
    mask = torch.ones(2, 1, 1, length, dtype=torch.bool, device=device)
    mask[1, ..., :9] = False
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        masked = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        torch.cuda.synchronize(device)
    plain = scaled_dot_product_attention(q[1:], k[1:, :, 9:], v[1:, :, 9:])
    difference = float((masked[1:] - plain).norm() / plain.norm())
    figures.put(
        kernels=[event.key[:120] for event in seen.key_averages()],
        difference=float(f"{difference:.2g}"),
    )
    assert difference < 0.02


@pytest.mark.parametrize("avoid", ["0", "1"])
def test_the_first_call_of_each_length(figures: Figures, avoid: str) -> None:
    """What cuDNN compiles per length, with its cache of dynamic shapes and without."""
    found = Child(["-c", FIRST_CALLS], TORCH_CUDNN_SDPA_AVOID_RECOMPILE=avoid).find()
    figures.put(**found)
    assert found
