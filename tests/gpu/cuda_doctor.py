"""What the worker says of this machine before it starts."""

import json
from pathlib import Path

import pytest
import torch
from gpu.children import Child
from gpu.figures import Figures
from gpu.studio import Studio, find_gpu

from worker.families.catalogue import CATALOGUE

pytestmark = pytest.mark.cuda


def test_the_doctor_knows_this_machine(figures: Figures, tmp_path: Path) -> None:
    """Its driver, its GPU, its memory and its compiler."""
    given = {"MODEL": "qwen-image", "MODEL_DIR": str(tmp_path)}
    text = Child(["-m", "worker", "doctor", "--json"], **given).read()
    findings = json.JSONDecoder().raw_decode(text[text.index("{") :])[0]["findings"]
    by_name = {one["check"]: one for one in findings}
    figures.put(**{name: f"{one['level']}: {one['found']}" for name, one in by_name.items()})
    assert {by_name[name]["level"] for name in ("driver", "gpu", "vram")} == {"ok"}
    assert by_name["compiler"]["level"] in ("ok", "advice")
    assert by_name["attention"]["found"].partition(" ")[0] in ("cudnn", "flash")


def test_the_precision_is_chosen_by_what_fits(
    studio: Studio, figures: Figures, device: torch.device
) -> None:
    """Of an embedded model, which fits anywhere: as exact as there is, with a GPU named."""
    gpu = find_gpu(device)
    assert gpu is not None
    specs = CATALOGUE.resolve((), studio.read_settings("auto", device), has_gpu=True)
    ready = studio.make_ready("tiny-image", "auto")
    figures.put(
        default=[spec.name for spec in specs],
        precision=ready.served.precision,
        room_gb=round(gpu.room / 1e9, 1),
        facts=str(dict(ready.facts))[:300],
    )
    assert ready.served.precision == "bf16"
    assert all(spec.needs_gpu for spec in specs)
