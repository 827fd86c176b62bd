"""A token's norm by one kernel is the module's, but for where it rounds."""

import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from worker.families.orpheus.language import _normalise, normalise_at_once


def test_a_norm_at_once_is_the_module_s() -> None:
    """Of states so small that what is added to the variance counts."""
    generator = torch.Generator().manual_seed(0)
    norm = LlamaRMSNorm(64, eps=1e-2)
    norm.weight.data = torch.randn(64, generator=generator)
    states = 0.1 * torch.randn(2, 3, 64, generator=generator)
    assert torch.allclose(normalise_at_once(norm, states), norm(states), rtol=1e-6, atol=1e-7)
    short, whole = norm.bfloat16()(states.bfloat16()), normalise_at_once(norm, states.bfloat16())
    assert torch.allclose(whole.float(), short.float(), rtol=1e-2)


def test_without_a_gpu_a_norm_rounds_where_the_module_does() -> None:
    generator = torch.Generator().manual_seed(0)
    norm = LlamaRMSNorm(64).bfloat16()
    norm.weight.data = torch.randn(64, generator=generator).bfloat16()
    states = torch.randn(2, 30, 64, generator=generator).bfloat16()
    assert torch.equal(_normalise(norm, states), norm(states))
    assert not torch.equal(normalise_at_once(norm, states), norm(states))
