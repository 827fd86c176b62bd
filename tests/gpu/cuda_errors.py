"""What a real device raises when it fails becomes our errors, and the worker's next step is right.

Each case has a process of its own (failing.py).
"""

import pytest
from gpu.children import Child
from gpu.figures import Figures

pytestmark = pytest.mark.cuda
LOST = ("lose-text-1", "lose-denoise-1", "lose-denoise-3", "lose-denoise-4")
Children = dict[str, Child]


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Children:
    """All cases that can run next to each other, started at once."""
    cases = (*LOST, "serve", "memory")
    return {
        case: Child(["-m", "gpu.failing", case, str(tmp_path_factory.mktemp(case))])
        for case in cases
    }


@pytest.mark.parametrize("case", LOST)
def test_a_device_side_assert_is_a_lost_device(
    children: Children, figures: Figures, case: str
) -> None:
    """Wherever it is noticed; the next picture ends the same way."""
    found = children[case].find()
    figures.put(**found)
    assert found["code"] == "DEVICE_LOST"
    assert found["again"] == "DEVICE_LOST"
    assert found["free_memory"] in ("", "DEVICE_LOST")


def test_a_worker_whose_device_is_lost_answers_and_is_replaced(
    children: Children, figures: Figures
) -> None:
    found = children["serve"].find()
    figures.put(**found)
    assert found["codes"] == ["DEVICE_LOST", "WORKER_NOT_READY"]
    assert found["fatal"] == "DEVICE_LOST"


def test_only_the_phase_that_ran_out_of_memory_runs_again(
    children: Children, figures: Figures
) -> None:
    """In tiles; that is remembered, and the next job finds everything as it was."""
    found = children["memory"].find()
    figures.put(**found)
    assert found["first"]["code"] == ""
    assert found["failures"] > 0
    assert found["heard"], "a phase that had not failed ran again"
    assert [one.split()[0] for one in found["scarce"]] == ["decode"]
    assert found["second"]["code"] == ""
    assert found["second_failures"] == 0
    assert found["small_after"]
    assert found["hopeless"]["code"] == "CUDA_OUT_OF_MEMORY"
    assert found["after"]
    assert found["other_after"] == ""


def test_what_cublas_finds_no_memory_for_is_out_of_memory(
    children: Children, figures: Figures, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After all others: it takes the device's memory."""
    for child in children.values():
        child.read()
    home = str(tmp_path_factory.mktemp("full"))
    found = Child(["-m", "gpu.failing", "full", home]).find()
    figures.put(**found)
    assert found["code"] == "CUDA_OUT_OF_MEMORY"
    assert found["after"] == 64
