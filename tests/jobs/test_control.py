"""Progress counts all pictures and phases of a job as one, and never falls."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.jobs.control import JobControl, Stopped
from worker.media.sound import Sound
from worker.seam import Phase
from worker.tasks.picture_tasks import TEXT_TO_IMAGE

Report = tuple[Phase, int, int]
SPANS = TEXT_TO_IMAGE.spans


def updates_of(reports: list[list[Report]], steps: int = 1) -> list[dict[str, Any]]:
    """Return the updates of a job whose pictures make these reports, one list a picture."""
    updates: list[Any] = []
    control = JobControl(updates.append, SPANS, len(reports), steps)
    for picture, made in enumerate(reports):
        control.start(picture)
        for report in made:
            control.follow(picture).report(*report)
    return updates


def drawing(steps: int, *, references: bool = False, decode: bool = False) -> list[Report]:
    """Return what a family reports of one picture."""
    texts: list[Report] = [("text", 1, 1)]
    seen: list[Report] = [("reference", 1, 1)] if references else []
    denoise: list[Report] = [("denoise", step, steps) for step in range(1, steps + 1)]
    return [*texts, *seen, *denoise, *([("decode", 1, 1)] if decode else [])]


def test_one_picture_counts_its_denoising_steps() -> None:
    updates = updates_of([drawing(4, references=True, decode=True)], steps=4)
    assert updates == [
        {"step": 0, "steps": 4, "phase": "text", "percent": 4},
        {"step": 0, "steps": 4, "phase": "reference", "percent": 8},
        {"step": 1, "steps": 4, "phase": "denoise", "percent": 30},
        {"step": 2, "steps": 4, "phase": "denoise", "percent": 52},
        {"step": 3, "steps": 4, "phase": "denoise", "percent": 74},
        {"step": 4, "steps": 4, "phase": "denoise", "percent": 96},
        {"step": 4, "steps": 4, "phase": "decode", "percent": 100},
    ]


def test_a_task_without_steps_has_phases_alone() -> None:
    spans = [replace(span, steps=None) for span in SPANS]
    updates: list[Any] = []
    control = JobControl(updates.append, spans, 1, 1)
    control.start(0)
    for phase in ("text", "decode"):
        control.follow(0).report(phase, 1, 1)
    assert [(update["phase"], update["percent"]) for update in updates] == [
        ("text", 4),
        ("decode", 100),
    ]


@pytest.mark.parametrize(
    ("phase", "begin", "end"),
    [("text", 0, 4), ("reference", 4, 8), ("denoise", 8, 96), ("decode", 96, 100)],
)
def test_a_phase_fills_its_share_of_the_total_report_by_report(
    phase: Phase, begin: int, end: int
) -> None:
    """Rounded down, so that 100 is the end alone."""
    updates = updates_of([[(phase, n, 100) for n in range(1, 101)]])
    share = [begin + (end - begin) * n // 100 for n in range(1, 101)]
    assert [u["percent"] for u in updates] == share


def test_every_picture_fills_an_equal_share() -> None:
    assert [u["percent"] for u in updates_of([[("text", 1, 4)]] * 100)] == list(range(100))


def test_a_decoded_picture_has_all_its_steps_behind_it() -> None:
    third: list[Report] = [("denoise", 1, 8), ("decode", 1, 2), ("decode", 2, 2)]
    updates = updates_of([drawing(8), drawing(8), third])
    assert [u["step"] for u in updates[-3:]] == [17, 24, 24]


def test_what_is_reported_before_the_first_start_is_the_first_picture() -> None:
    updates: list[Any] = []
    JobControl(updates.append, SPANS, 2, 1).follow(0).report("denoise", 1, 4)
    assert updates == [{"step": 1, "steps": 8, "phase": "denoise", "percent": 15}]


def test_a_second_picture_goes_on_where_the_first_ended() -> None:
    updates = updates_of([drawing(2)] * 2, steps=2)
    assert [(u["phase"], u["step"], u["steps"], u["percent"]) for u in updates] == [
        ("text", 0, 4, 2),
        ("denoise", 1, 4, 26),
        ("denoise", 2, 4, 48),
        ("text", 2, 4, 52),
        ("denoise", 3, 4, 76),
        ("denoise", 4, 4, 98),
    ]


def test_a_picture_that_is_made_again_waits_until_it_is_as_far_again() -> None:
    failed = drawing(8)[:6]
    updates = updates_of([[*failed, *drawing(8)], drawing(8)], steps=8)
    again = updates[len(failed) : len(failed) + 7]
    assert {(u["step"], u["percent"]) for u in again[:6]} == {(5, updates[5]["percent"])}
    assert again[6]["step"] == 6
    assert updates[-1]["step"] == updates[-1]["steps"] == 16


def test_only_the_end_of_the_last_picture_is_all_of_it() -> None:
    updates = updates_of([drawing(3, decode=True)] * 3)
    assert [u["percent"] for u in updates].count(100) == 1
    assert updates[-1]["percent"] == 100


def test_the_steps_may_be_unknown_until_the_first_is_denoised() -> None:
    updates = updates_of([drawing(8)] * 2)
    assert updates[0] == {"step": 0, "steps": 2, "phase": "text", "percent": 2}
    assert {u["steps"] for u in updates[1:]} == {16}


@st.composite
def jobs(draw: st.DrawFn) -> tuple[list[list[Report]], int]:
    """Make any pictures, each tried up to three times and broken off anywhere but the last time."""
    steps = draw(st.integers(2, 100))
    pictures = []
    for _ in range(draw(st.integers(1, 4))):
        whole = drawing(steps, references=draw(st.booleans()), decode=draw(st.booleans()))
        whole[:1] = [("text", n, 5) for n in range(1, 6)] if draw(st.booleans()) else whole[:1]
        tries = draw(st.lists(st.integers(0, len(whole)), max_size=2))
        pictures.append([*(one for end in tries for one in whole[:end]), *whole])
    return pictures, steps


@given(job=jobs(), known=st.booleans())
def test_progress_never_falls_whatever_is_made_and_made_again(
    job: tuple[list[list[Report]], int], *, known: bool
) -> None:
    pictures, steps = job
    updates = updates_of(pictures, steps if known else 1)
    for before, after in pairwise(updates):
        assert before["step"] <= after["step"]
        assert before["percent"] <= after["percent"]
        assert before["step"] * after["steps"] <= after["step"] * before["steps"]
    for update in updates:
        assert 0 <= update["step"] <= update["steps"]
        assert 0 <= update["percent"] <= 100
        assert isinstance(update["percent"], int)
    assert updates[-1]["step"] == updates[-1]["steps"] == len(pictures) * steps
    assert not known or {u["steps"] for u in updates} == {len(pictures) * steps}
    decoded = ("decode", 1, 1) in pictures[-1]
    assert (updates[-1]["percent"] == 100) == decoded


@pytest.mark.parametrize("phase", ["text", "reference", "denoise", "decode"])
def test_a_report_after_a_stop_publishes_nothing_and_ends_the_work(phase: Phase) -> None:
    updates: list[Any] = []
    control = JobControl(updates.append, SPANS, 1, 1)
    control.stop()
    with pytest.raises(Stopped):
        control.follow(0).report(phase, 1, 1)
    with pytest.raises(Stopped):
        control.start(0)
    assert updates == []


def test_a_part_is_passed_on_where_the_job_has_it_sent_and_else_let_go() -> None:
    parts: list[Any] = []
    part = Sound(np.zeros(3, np.int16), 24_000)
    JobControl(lambda _: None, SPANS, 1, 1, hand_over=parts.append).follow(0).hand_over(part)
    assert parts == [part]
    JobControl(lambda _: None, SPANS, 1, 1).follow(0).hand_over(part)
    assert parts == [part]
