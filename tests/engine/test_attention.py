"""The kernel that is named beforehand is the one that runs."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from worker.engine.attention import PROBED, find_backend

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("allowed", "name", "operator"),
    [
        (SDPBackend.FLASH_ATTENTION, "flash", "aten::_scaled_dot_product_flash_attention_for_cpu"),
        (SDPBackend.MATH, "math", "aten::_scaled_dot_product_attention_math"),
    ],
)
def test_the_named_kernel_runs(allowed: SDPBackend, name: str, operator: str) -> None:
    shape = (1, 2, 9, 32)
    with sdpa_kernel(allowed):
        assert find_backend(CPU, shape) == name
        x = torch.rand(shape).bfloat16()
        with (
            profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen,
            torch.inference_mode(),
        ):
            scaled_dot_product_attention(x, x, x)
    assert operator in {event.key for event in seen.key_averages()}


def test_one_picture_of_the_published_transformer_is_asked_about() -> None:
    """Kernels differ in which numbers of heads and which widths they take."""
    published = {"num_attention_heads": 24, "attention_head_dim": 128}  # of every Qwen-Image
    batch, heads, tokens, width = PROBED
    assert (batch, heads, width) == (1, *published.values())
    assert tokens > (1024 // 16) ** 2


def test_it_is_asked_in_bf16_on_the_device_itself() -> None:
    """The meta device stands for one; what a number format may not have decides too."""
    asked: list[tuple[torch.dtype, str]] = []

    class Asking(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, _types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.aten._fused_sdp_choice.default:
                asked.append((args[0].dtype, args[0].device.type))
            return func(*args, **(kwargs or {}))

    with Asking():
        find_backend("meta", (1, 2, 9, 32))
    assert asked == [(torch.bfloat16, "meta")]
