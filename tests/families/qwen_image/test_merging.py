"""On a GPU the LoRA is put into the weights where memory allows, and nowhere that it may not."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from worker import settings
from worker.bundle.open import FusedAdapter
from worker.driver import CONTEXT_BYTES, Gpu
from worker.engine.combine import combine_nf4, count_merged_bytes
from worker.families.opener import compute_spare
from worker.families.qwen_image import merging as module
from worker.families.qwen_image.components import Components
from worker.families.qwen_image.lightning import LIGHTNING_MODULES
from worker.families.qwen_image.merging import merge_adapters
from worlds import prepared

BLOCK = "transformer_blocks.0"


@pytest.fixture(autouse=True)
def packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep 4-bit weights packed, as on a GPU: small ones are unpacked on a CPU."""
    monkeypatch.setattr("worker.engine.quantise.SMALL_WEIGHT", 0)


def merged(parts: Components) -> list[str]:
    """Name the adapters that have a weight of their own."""
    wrapped = parts.transformer.get_submodule(f"{BLOCK}.attn.to_q")
    return [name for name in parts.adapters.attached if f"{name}_kept" in wrapped._buffers]


@pytest.mark.parametrize(
    ("copies", "less", "expected"),
    [
        (2, 0, ["lightning_8", "lightning_4"]),
        (2, 1, ["lightning_8"]),
        (1, 1, []),
        (0, 0, []),
    ],
    ids=["room for both", "for one", "a byte too few", "none"],
)
def test_adapters_are_merged_while_there_is_room(
    copies: int, less: int, expected: list[str]
) -> None:
    parts = prepared.published("tiny-image")
    assert not isinstance(parts.adapters, FusedAdapter)
    assert set(parts.adapters.attached) == {"lightning_8", "lightning_4"}
    each = count_merged_bytes(parts.adapters, "lightning_8")
    with structlog.testing.capture_logs() as lines:
        merge_adapters(parts, copies * each - less)
    assert merged(parts) == [name for name in parts.adapters.attached if name in expected]
    assert [line["adapter"] for line in lines if line["event"] == "adapter merged"] == expected
    assert len(lines) == 2


@pytest.mark.parametrize("reason", ["", "no such instruction"])
def test_packed_weights_of_the_pictures_add_their_lora_if_the_kernel_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reason: str
) -> None:
    monkeypatch.setattr(module, "try_nf4", lambda _device: reason)
    opened = prepared.opened("tiny-image", tmp_path, "4bit")
    with structlog.testing.capture_logs() as lines:
        merge_adapters(opened, 0)
    combined = {
        name: set(opened.transformer.get_submodule(f"{BLOCK}.{name}")._combine_of.values())
        for name in LIGHTNING_MODULES
    }
    of_text = {name for name in LIGHTNING_MODULES if "add" in name or "txt" in name}
    assert len(of_text) == 6
    on = set() if reason else {combine_nf4}
    assert combined == {name: set() if name in of_text else on for name in LIGHTNING_MODULES}
    # and nothing says that it was merged, which takes weights in bf16
    assert [line.get("reason") for line in lines] == ([reason] if reason else [])


def test_a_fused_adapter_is_in_the_weights_already() -> None:
    parts = prepared.published("tiny-image")
    adapters = parts.adapters
    assert not isinstance(adapters, FusedAdapter)
    fused = FusedAdapter(parts.transformer, "lightning_8")
    merge_adapters(replace(parts, adapters=fused), 1 << 40)
    assert merged(replace(parts, adapters=adapters)) == []


@pytest.mark.parametrize(
    ("given", "free", "expected"),
    [
        ({}, 100, 100 - 29 - 15),
        ({}, 40, 0),
        ({"MODEL": "qwen-image,qwen-image-edit"}, 100, 0),
        ({"LIGHTNING_MERGE": "Off"}, 100, None),
    ],
    ids=["room", "none", "of other models", "off"],
)
def test_what_weights_and_the_largest_job_leave_is_spare(
    given: dict[str, str], free: int, expected: int | None
) -> None:
    obtained: Any = SimpleNamespace(parts={"a": 9, "b": 20})
    served: Any = SimpleNamespace(working=15)
    gpu = Gpu("H100", (9, 0), 200, free + CONTEXT_BYTES)
    assert compute_spare(obtained, served, settings.read(given), gpu) == expected
    assert compute_spare(obtained, served, settings.read(given), None) is None
