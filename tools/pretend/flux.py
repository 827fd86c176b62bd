"""A FLUX.2 on the pretend device: `python -m tools.pretend.flux`, a JSON line each.

The worker's own modules in their published sizes. --thin leaves one block of each kind and four
layers of the text encoder, of which seconds remain: what a picture takes in addition to the
weights is then the same but for LoRAs and the hidden states of the text encoder. --write keeps
what was seen of all blocks in bench/results/pretend_flux.json.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image

from bench.real_shapes import shapes
from bench.real_shapes.klein import describe_parts
from tools.pretend.cuda import pretend
from tools.pretend.device import PretendDevice
from tools.pretend.ledger import Ledger
from tools.pretend.model import RANK, make_pair
from tools.pretend.run import Follow, follow_phases
from tools.pretend.stored import store
from worker import log
from worker.engine.lora import Adapters, ScaledLora
from worker.engine.quantise import Precision
from worker.families.flux2 import working
from worker.families.flux2.components import Flux2Parts
from worker.families.flux2.model import Flux2
from worker.families.flux2.models import DEV, KLEIN
from worker.families.flux2.recipe import RECIPE
from worker.families.flux2.working import (
    LARGE_EDITION,
    SMALL_EDITION,
    Edition,
    FluxLoad,
    estimate_phases,
)
from worker.loras.ready import ReadyLora
from worker.seam import Served, take_made
from worker.tasks.picture import PictureOffer, PictureWish

RESULTS: Final = Path(__file__).resolve().parents[2] / "bench" / "results" / "pretend_flux.json"
GIGABYTE: Final = 1e9


EDITIONS: Final[Mapping[str, Edition]] = {
    "klein-4b": SMALL_EDITION,
    "klein-9b": LARGE_EDITION,
    "dev": working.DEV_EDITION,
}


@dataclass(frozen=True, slots=True)
class FluxCase:
    """A job of an edition: a square picture, from references that count 1, 2, 3 ... times."""

    edition: str = "klein-4b"
    precision: Precision = "bf16"
    side: int = 1024
    references: int = 0
    is_weighed: bool = False
    batch: int = 1
    begins: bool = False
    guided: bool = False
    is_offloaded: bool = False
    room: int | None = None
    is_thin: bool = False
    loras: int = 0

    @property
    def sizes(self) -> Edition:
        """Its edition's sizes; a thin one has one block of each kind and four layers."""
        edition = EDITIONS[self.edition]
        return replace(edition, double=1, single=1, layers=4) if self.is_thin else edition

    @property
    def pipeline(self) -> str:
        """Name diffusers' class that it is published as."""
        return DEV if self.edition == "dev" else KLEIN

    @property
    def name(self) -> str:
        """Name it by what is in it."""
        parts = [self.edition, self.precision, str(self.side), f"{self.references}"]
        flags = {"weighed": self.is_weighed, "begins": self.begins, "cfg": self.guided}
        flags |= {"offload": self.is_offloaded, "tiled": self.room is not None}
        parts += [word for word, is_set in flags.items() if is_set]
        parts += [f"loras{self.loras}"] if self.loras else []
        return "-".join([*parts, *([f"batch{self.batch}"] if self.batch > 1 else [])])


def list_cases() -> list[FluxCase]:
    """Return every case, those of one model next to each other."""
    klein = FluxCase()
    found = [
        klein,
        replace(klein, side=1536),
        replace(klein, side=2048),
        replace(klein, references=1),
        replace(klein, references=4),
        replace(klein, references=2, is_weighed=True),
        replace(klein, references=1, begins=True),
        replace(klein, batch=4),
        replace(klein, loras=3),
        replace(klein, references=4, loras=3),
        replace(klein, guided=True),
        replace(klein, room=700_000_000),
    ]
    for precision in ("8bit", "4bit"):
        given: Any = precision
        found += [
            replace(klein, precision=given),
            replace(klein, precision=given, references=4),
            replace(klein, precision=given, is_offloaded=True),
        ]
    for edition in ("klein-9b", "dev"):
        for each in ("bf16", "4bit"):
            other: Any = each
            found.append(replace(klein, edition=edition, precision=other, references=1))
    return found


def build(device: PretendDevice, case: FluxCase) -> Flux2:
    """Return a model opened on the device, which must be entered."""
    configs = describe_parts(case.sizes, is_dev=case.edition == "dev")

    def fill(role: str) -> Any:
        part = RECIPE.find_part(role)
        modules = part.modules.bare(part.modules.stock(configs[role]))
        is_offloaded = case.is_offloaded and role == RECIPE.waiting
        return store(device, part, modules, case.precision, is_offloaded=is_offloaded)

    transformer = fill("transformer")
    parts = Flux2Parts(
        transformer=transformer,
        text_encoder=fill("text_encoder"),
        vae=fill("vae"),
        tokenizer=shapes.tokenizer(),
        scheduler={"use_dynamic_shifting": True, "shift": 3.0},
        adapters=Adapters(transformer),
        device=torch.device("cuda"),
        dtype=torch.bfloat16,
    )
    offer = PictureOffer(
        steps=4,
        true_cfg_scale=1.0,
        negative_prompt="",
        lightning_steps=(),
        area=1024 * 1024,
        max_pixels=4 * 1024 * 1024,
        max_references=4,
        sizes={},
    )
    served = Served(case.edition, "pretend", "none", case.precision, "none", {"edit": offer})
    return Flux2(parts, served, case.pipeline)


def bring_loras(device: PretendDevice, model: Flux2, count: int) -> tuple[ReadyLora, ...]:
    """Attach LoRAs of every Linear of every block to a model, as jobs would that brought them."""
    loras: Any = model._loras  # noqa: SLF001 - a worker reads them from files
    transformer: Any = model._parts.transformer  # noqa: SLF001 - the same
    part = RECIPE.find_part("transformer")
    assert part.quantised is not None
    reached = [
        (name, module)
        for name, module in transformer.named_modules()
        if part.quantised.fullmatch(f"{name}.weight") and hasattr(module, "in_features")
    ]
    found = []
    for number in range(count):
        lora = ReadyLora("lora", str(number), 1.0, Path(), None, is_callers=True)
        tensors: dict[str, torch.Tensor] = {}
        for name, module in reached:
            tensors |= make_pair(device, name, module)
        scaled = ScaledLora(tensors, {name: 1.0 for name, _ in reached})
        loras._guests.attach(repr(lora.identity), scaled)  # noqa: SLF001 - the same
        loras._sizes[lora.identity] = 0  # noqa: SLF001 - the same
        found.append(lora)
    return tuple(found)


def make_wish(case: FluxCase, number: int) -> PictureWish:
    """Return one picture of a case."""
    side = case.side
    grey = [Image.new("RGB", (side, side), (n, number, 0)) for n in range(case.references)]
    return PictureWish(
        prompt=f"a picture {number}",
        negative_prompt="" if case.guided else None,
        task="img2img" if case.begins else "edit",
        seed=number,
        steps=4,
        true_cfg_scale=4.0 if case.guided else 1.0,
        lightning=False,
        references=tuple(grey),
        width=side,
        height=side,
        source=Image.new("RGB", (side, side)) if case.begins else None,
        strength=0.9 if case.begins else None,
        reference_weights=tuple(float(n + 1) for n in range(case.references))
        if case.is_weighed
        else (),
        guidance=4.0 if case.edition == "dev" else None,
    )


def estimate(case: FluxCase) -> dict[str, int]:
    """Return what the worker computes for a case: bytes beside the weights, by phase."""
    return estimate_phases(
        FluxLoad(
            case.side**2,
            case.references,
            case.batch,
            case.precision,
            case.sizes,
            ranks=case.loras * RANK,
            begins=case.begins,
            guided=case.guided,
            tiled=case.room is not None,
            passing=case.is_offloaded,
        )
    )


def run_cases(cases: list[FluxCase]) -> Iterator[dict[str, Any]]:
    """Make the pictures of each case and yield what was seen, as JSON."""
    for case in cases:
        device = PretendDevice()
        with pretend(device):
            model = build(device, case)
        weights = device.memory.live
        ledger = device.ledger = Ledger()
        device.memory.reset()
        device.memory.room = None if case.room is None else weights + case.room
        with pretend(device), follow_phases(device):
            device.enter_phase("between")
            loras = bring_loras(device, model, case.loras)
            wishes = [replace(make_wish(case, n), loras=loras) for n in range(case.batch)]
            for outcome in model.make(wishes, [Follow(ledger)] * case.batch):
                take_made(outcome)
        peaks = {phase: peak - weights for phase, peak in device.memory.peaks.items()}
        masked = [f"{event}" for event in ledger.masked if event.phase == "denoise"]
        yield {
            "case": case.name,
            "weights": weights,
            "peaks": peaks,
            "computed": estimate(case),
            "kernels_per_forward": ledger.kernels["denoise"] // (4 * (2 if case.guided else 1)),
            "waits_in_loop": [str(event) for event in ledger.list_repeated()],
            "mixed": [str(event) for event in ledger.mixed],
            "masked": masked,
        }


def find_faults(record: Mapping[str, Any]) -> list[str]:
    """Return what a GPU would trip over, in words."""
    found = [*record["waits_in_loop"], *record["mixed"], *record["masked"]]
    for phase, most in record["computed"].items():
        if (peak := record["peaks"].get(phase, 0)) > most:
            found.append(f"{phase} takes {peak} bytes beside the weights, computed {most}")
    return [f"{record['case']}: {fault}" for fault in found]


def main() -> int:
    """Run the cases and return the exit status."""
    parser = argparse.ArgumentParser(description="FLUX.2 on a pretend CUDA device")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--thin", action="store_true", help="one block of each kind")
    parser.add_argument("--write", action="store_true", help=f"keep the records in {RESULTS.name}")
    given = parser.parse_args()
    log.configure("ERROR")
    torch.set_num_threads(1)
    if given.write and (given.thin or given.only):
        parser.error("what is kept is of every case, in its published size")
    chosen = [case for case in list_cases() if not given.only or case.name in given.only]
    cases = [replace(case, is_thin=given.thin) for case in chosen]
    records = []
    for record in run_cases(cases):
        records.append(record)
        print(json.dumps(record), flush=True)
    if given.write:
        RESULTS.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    faults = [fault for record in records for fault in find_faults(record)]
    print(*faults, sep="\n", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
