"""What is the same LoRA is decided by its weights and their scale, not by its name."""

from dataclasses import replace
from pathlib import Path

from worker.loras.ready import ReadyLora, show_loras

LORA = ReadyLora("style", "sha256:1", 0.5, Path("a"), b"{}", is_callers=True)


def test_those_of_one_file_and_configuration_are_the_same() -> None:
    other = replace(LORA, name="x", scale=1.0, path=Path("b"), is_callers=False, modules=3)
    assert other.identity == LORA.identity
    assert {one.identity for one in (LORA, other)} == {LORA.identity}
    for changed in (replace(LORA, digest="sha256:2"), replace(LORA, configuration=None)):
        assert changed.identity != LORA.identity


def test_callers_see_what_was_used_and_never_where_it_is() -> None:
    assert show_loras([LORA, replace(LORA, name="x", modules=7)]) == [
        {"name": "style", "digest": "sha256:1", "scale": 0.5, "modules": None},
        {"name": "x", "digest": "sha256:1", "scale": 0.5, "modules": 7},
    ]
