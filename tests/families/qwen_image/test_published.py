"""The reference for bundles: what it attaches is checked as preparing checks it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from worker.engine.lora import Adapters
from worker.errors import LoraNotApplied
from worker.families.qwen_image.lightning import list_lightning_modules
from worker.families.qwen_image.published import attach_lightning
from worlds.loras import published_lora, small_transformer


@pytest.mark.parametrize("missing", [0, 1])
def test_a_lightning_lora_reaches_each_of_its_modules_or_is_refused(
    missing: int, tmp_path: Path
) -> None:
    model = small_transformer()
    blocks = len(model.transformer_blocks)
    reached = list_lightning_modules(blocks)[missing:]
    save_file(published_lora(model, 1, modules=reached), tmp_path / "a.safetensors")
    parts: Any = SimpleNamespace(device=torch.device("cpu"), dtype=torch.bfloat16)
    adapters, files = Adapters(model), {"lightning_8": tmp_path / "a.safetensors"}
    if missing:
        with pytest.raises(LoraNotApplied):
            attach_lightning(adapters, files, blocks=blocks, parts=parts)
        assert list(adapters.attached) == []
    else:
        attach_lightning(adapters, files, blocks=blocks, parts=parts)
        assert list(adapters.attached) == ["lightning_8"]
