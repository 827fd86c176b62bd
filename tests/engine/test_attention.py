"""The kernel that is named beforehand is the one that runs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

from worker.engine.attention import find_backend

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
