"""A configuration counts for the LoRA that it is about, and for no other."""

import pytest

from worker.loras.configuration import is_about


@pytest.mark.parametrize(
    ("name", "beside", "expected"),
    [
        ("style.safetensors", ["adapter_config.json", "style.safetensors", "README.md"], True),
        ("style.safetensors", ["adapter_config.json"], True),
        ("style.safetensors", ["other.safetensors", "style.safetensors"], False),
        ("style.safetensors", ["adapter_model.safetensors", "style.safetensors"], False),
        ("adapter_model.safetensors", ["adapter_model.safetensors", "style.safetensors"], True),
        ("adapter_model.safetensors", ["style.safetensors"], True),
    ],
)
def test_it_is_about_pefts_own_name_and_about_the_only_lora_there(
    name: str, beside: list[str], *, expected: bool
) -> None:
    assert is_about(name, beside) is expected
