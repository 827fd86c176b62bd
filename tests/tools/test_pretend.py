"""The worker's own code on the pretend device: nothing is wrong with it, and faults are found."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import pools
from bench.real_shapes import shapes
from tools.pretend import flux, report
from tools.pretend.__main__ import RESULTS
from tools.pretend.cases import EDIT_PLUS, LONG, Case, Opened, list_cases
from tools.pretend.cuda import pretend
from tools.pretend.device import PretendDevice
from tools.pretend.model import shorten
from tools.pretend.run import Seen, open_model, run, run_cases
from worker.driver import CONTEXT_BYTES
from worker.engine.offload import ALIGNMENT
from worker.errors import CudaOutOfMemory
from worker.families.catalogue import CATALOGUE
from worker.families.flux2 import arranging
from worker.families.qwen_image import block
from worker.families.qwen_image.model import QwenImage
from worker.families.qwen_image.modulation import RowModulation
from worker.families.qwen_image.planning import MOST_STEPS
from worker.families.qwen_image.working import PASSING, count_frame_bytes
from worker.tasks.picture_input import PictureInput

# The computed need is at most so much more than the peak.
SLACK = 1.15
# Full widths, few blocks: the peaks beside the weights are those of all sixty.
THIN = shorten(shapes.full(), blocks=2, layers=2)
EDIT = Case(opened=Opened(pipeline=EDIT_PLUS, precision="bf16"), side=128, references=1)


@cache
def records() -> list[dict[str, Any]]:
    """Return what `make pretend-gpu` wrote of the published sizes."""
    found: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


@cache
def opened() -> tuple[PretendDevice, QwenImage]:
    """Return a model for edits that is opened once, on its device."""
    device = PretendDevice()
    return device, open_model(device, THIN, EDIT.opened)


def see(case: Case = EDIT) -> Seen:
    """Run a case of that model."""
    return run(*opened(), case)


THIN_CASES = [
    Case(opened=Opened()),
    Case(opened=Opened(pipeline=EDIT_PLUS, precision="8bit"), references=1),
    Case(opened=Opened(pipeline=EDIT_PLUS, precision="bf16"), references=1, batch=2),
    Case(opened=Opened(pipeline=EDIT_PLUS, precision="bf16", is_fused=True), references=1),
    Case(opened=Opened(pipeline=EDIT_PLUS, precision="bf16", is_offloaded=True), references=1),
]


def test_layers_that_pass_through_the_device_let_the_host_wait_no_more_than_those_there() -> None:
    """Two are there at once, and only while the text is encoded."""
    offloaded = THIN_CASES[-1]
    there = replace(offloaded, opened=replace(offloaded.opened, is_offloaded=False))
    found = {case: seen for case in (offloaded, there) for seen in run_cases([case], THIN)}
    waits = [
        sorted((event.phase, event.what, count) for event, count in seen.ledger.waits.items())
        for seen in found.values()
    ]
    assert waits[0] == waits[1]
    peaks = [seen.peaks for seen in found.values()]
    passing = peaks[0]["text"] - peaks[1]["text"]
    assert PASSING["bf16"] - (1 << 20) < passing <= PASSING["bf16"]
    assert abs(peaks[0]["denoise"] - peaks[1]["denoise"]) < ALIGNMENT
    weights = [seen.weights for seen in found.values()]
    assert weights[1] - weights[0] > passing


@pytest.mark.parametrize("case", THIN_CASES, ids=lambda case: case.name)
def test_no_phase_takes_more_than_is_computed_and_the_largest_nearly_as_much(case: Case) -> None:
    """With full widths at published sizes; and nothing else is wrong."""
    (seen,) = run_cases([case], THIN)
    computed = report.estimate(case)
    assert all(seen.peaks[phase] <= computed[phase] for phase in computed)
    assert max(computed.values()) <= SLACK * seen.working
    assert report.find_faults(seen) == []


def test_the_recorded_peaks_are_within_what_is_computed() -> None:
    """Of every case, with all blocks; and no case had a fault."""
    cases = {case.name: case for case in list_cases()}
    assert [record["case"] for record in records()] == list(cases)
    for record in records():
        computed, peaks = report.estimate(cases[record["case"]]), record["peaks"]
        assert all(peaks[phase] <= computed[phase] for phase in computed), record["case"]
        assert max(computed.values()) <= SLACK * max(peaks.values()), record["case"]
        assert record["faults"] == []


ROOMS = [
    ("A4000", "one", Case(opened=Opened(pipeline=EDIT_PLUS), references=3, steps=8, words=LONG)),
    ("A5000, 4090", "both", Case(opened=Opened(), side=1536, steps=8, words=LONG)),
]


@pytest.mark.parametrize(("card", "models", "case"), ROOMS)
def test_what_is_said_to_fit_a_card_is_made_in_what_its_weights_leave(
    card: str, models: str, case: Case
) -> None:
    """In one piece: 16 GB hold an edit without offload, 24 GB hold both models."""
    found = pools.compute(pools.CARDS[card])
    weights = pools.read_weights()["4bit"]
    assert found["offload"] is False
    if models == "both":
        assert (found["both"], found["both_image"]) == ("4bit", case.side)
    taken = weights.both if models == "both" else weights.whole
    room = (pools.CARDS[card] << 20) - CONTEXT_BYTES - taken
    (seen,) = run_cases([replace(case, room=room)], THIN)
    assert seen.working <= room
    assert seen.peaks["decode"] > 0.95 * count_frame_bytes(case.side**2)


def test_every_task_of_every_family_has_cases() -> None:
    """And every class that a model of the catalogue is published as."""
    cases = list_cases()
    rows = [row for row in CATALOGUE.rows if "speech" not in row.tasks]  # tools/pretend/speech.py
    assert {case.task for case in cases} == {t for row in rows for t in row.tasks}
    pipelines = {case.opened.pipeline for case in cases}
    pipelines |= {case.pipeline for case in flux.list_cases()}
    assert pipelines == {row.pipeline for row in rows}
    assert len({case.name for case in cases}) == len(cases)


@pytest.fixture
def linears(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Tensor], Tensor]], None]:
    """Return what plants something into the product of every plain Linear."""
    stock = nn.Linear.forward

    def plant(change: Callable[[Tensor], Tensor]) -> None:
        monkeypatch.setattr(nn.Linear, "forward", lambda self, x: change(stock(self, x)))

    return plant


Plant = Callable[[Callable[[Tensor], Tensor]], None]


def test_nothing_is_wrong_where_nothing_is_planted() -> None:
    seen = see()
    assert report.find_faults(seen) == []
    assert seen.ledger.kernels["denoise"] > 0
    assert {"text", "reference", "denoise", "decode"} <= set(seen.peaks)
    row = report.make_row(report.make_record(seen))
    assert len(row) == len(report.HEADER)
    assert (row[0], row[-1]) == ("`edit-128-1-bf16`", "0")


def test_a_value_that_the_host_reads_in_every_step_is_found(linears: Plant) -> None:
    linears(lambda y: y * float(y.abs().max()))
    found = report.find_faults(see())
    assert any("waits in every step: read by the host" in fault for fault in found)


def test_an_operand_on_the_cpu_is_found(linears: Plant) -> None:
    linears(lambda y: y + torch.ones(y.shape[-1], dtype=y.dtype))
    found = report.find_faults(see())
    assert found
    assert all("two devices: add" in fault for fault in found)


def test_statistics_that_were_left_on_the_cpu_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened()[1]._vae, "_mean", torch.zeros(1, 16, 1, 1, dtype=torch.bfloat16))
    found = report.find_faults(see())
    assert any("two devices" in fault and "vae.py" in fault for fault in found)


def test_rows_that_go_through_the_host_in_every_step_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stock = RowModulation.select

    def select(self: Any, step: int) -> None:
        self._loaded = self._loaded.cpu().to("cuda")
        stock(self, step)

    monkeypatch.setattr(RowModulation, "select", select)
    found = report.find_faults(see())
    assert any("every step: copy to the host" in fault for fault in found)
    assert any("every step: copy to the device" in fault for fault in found)


def test_a_mask_that_reaches_the_transformer_s_attention_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Masking:
        """Attention with a mask of ones."""

        def __getattr__(self, name: str) -> Any:
            return getattr(torch.nn.functional, name)

        def scaled_dot_product_attention(self, q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
            mask = torch.ones(1, 1, 1, k.shape[2], dtype=torch.bool, device=q.device)
            attend = torch.nn.functional.scaled_dot_product_attention
            return attend(q, k, v, attn_mask=mask)

    monkeypatch.setattr(block, "functional", Masking())
    found = report.find_faults(see())
    assert found
    assert all("a mask reaches attention" in fault for fault in found)


def test_activations_that_are_kept_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor per block stays alive: the peak is over what is computed."""
    stock, kept = block.run_block, list[Any]()

    def run_block(*given: Any) -> Any:
        kept.append(stock(*given))
        return kept[-1]

    monkeypatch.setattr("worker.families.qwen_image.forward.run_block", run_block)
    (fault,) = report.find_faults(see(replace(EDIT, side=512)))
    assert " bytes beside the weights, computed " in fault


@pytest.mark.parametrize(
    ("dtype", "layout", "copied"),
    [
        (torch.bfloat16, torch.contiguous_format, 1),
        (torch.bfloat16, torch.channels_last, 0),
        (torch.float32, torch.contiguous_format, 0),
    ],
)
def test_a_convolution_with_the_channels_first_copies_what_it_takes_and_gives(
    dtype: torch.dtype, layout: torch.memory_format, copied: int
) -> None:
    """In 16 bits, as cuDNN does."""
    device = PretendDevice()
    with pretend(device):
        frame = device.make((1, 64, 32, 32), dtype).contiguous(memory_format=layout)
        weight = device.make((128, 64, 3, 3), dtype)
        before = device.memory.live
        device.memory.reset()
        made = torch.nn.functional.conv2d(frame, weight, padding=1)
    size = made.numel() * made.element_size()
    assert device.memory.peak - before == size + copied * (size + size // 2)


def test_a_vae_with_its_channels_first_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes more than is computed, both ways."""
    monkeypatch.setattr(arranging, "is_best_last", lambda _: False)
    (seen,) = flux.run_cases([flux.FluxCase(side=256, references=1, is_thin=True)])
    found = flux.find_faults(seen)
    assert [fault.split()[1] for fault in found] == ["decode", "reference"]


def test_a_known_fault_must_be_there(linears: Plant) -> None:
    """While it is, nothing is reported; once it is gone, its listing is."""
    known = replace(EDIT, known="read by the host")
    assert [fault for fault in report.find_faults(see(known)) if "must not be listed" in fault]
    linears(lambda y: y * float(y.abs().max()))
    assert report.find_faults(see(known)) == []


def test_a_device_with_too_little_memory_runs_out_of_it() -> None:
    """After a second attempt with less: the error is the worker's own."""
    with pytest.raises(CudaOutOfMemory):
        see(replace(EDIT, room=100_000))


def test_a_plan_counts_on_the_most_steps_that_a_job_may_request() -> None:
    schema = PictureInput.model_json_schema(by_alias=False)["properties"]["num_inference_steps"]
    assert {one["le"] for one in schema["anyOf"] if "le" in one} == {MOST_STEPS}
