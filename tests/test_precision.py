"""The precision follows from computed sizes, free memory and the GPU, with a reason or advice."""

import pytest

from worker.engine.precision import GB, Mode, Need, choose
from worker.engine.quantise import Precision
from worker.errors import InvalidSettings

# Qwen-Image with one Lightning LoRA, computed from its parameter counts.
NEED: dict[Precision, Need] = {
    "4bit": Need(14 * GB, 8 * GB),
    "8bit": Need(24 * GB, 15 * GB),
    "bf16": Need(44 * GB, 29 * GB),
}
AMPERE, TURING = (8, 6), (7, 5)


@pytest.mark.parametrize(
    ("free", "precision", "offload"),
    [
        (79, "bf16", False),
        (48, "bf16", False),
        (47, "8bit", False),
        (31, "8bit", False),
        (24, "4bit", False),
        (16, "4bit", True),
        (12, "4bit", True),
    ],
)
def test_auto_takes_the_most_exact_that_fits(
    free: int, precision: Precision, offload: bool
) -> None:
    choice = choose("auto", NEED, free=free * GB, capability=AMPERE)
    assert (choice.precision, choice.offload) == (precision, offload)
    assert f"{free}.0 GB" in choice.reason


def test_auto_says_which_pool_when_nothing_fits() -> None:
    with pytest.raises(InvalidSettings, match=r"at least 12\.0 GB"):
        choose("auto", NEED, free=8 * GB, capability=AMPERE)


@pytest.mark.parametrize("mode", ["auto", "4bit", "8bit", "bf16"])
def test_a_gpu_without_bf16_is_refused_rather_than_served_in_fp16(mode: Mode) -> None:
    with pytest.raises(InvalidSettings, match=r"7\.5 .* Ampere"):
        choose(mode, NEED, free=80 * GB, capability=TURING)


def test_a_precision_that_was_asked_for_is_kept_even_where_a_better_one_fits() -> None:
    assert choose("4bit", NEED, free=80 * GB, capability=AMPERE).precision == "4bit"


def test_a_precision_that_does_not_fit_is_an_error_that_names_the_one_that_does() -> None:
    with pytest.raises(InvalidSettings, match="PRECISION_MODE=8bit"):
        choose("bf16", NEED, free=30 * GB, capability=AMPERE)
    with pytest.raises(InvalidSettings, match="PRECISION_MODE=4bit"):
        choose("8bit", NEED, free=14 * GB, capability=AMPERE)


def test_a_precision_that_fits_without_the_text_encoder_offloads_it() -> None:
    choice = choose("bf16", NEED, free=40 * GB, capability=AMPERE)
    assert (choice.precision, choice.offload) == ("bf16", True)


def test_without_a_gpu_the_choice_is_bf16_unless_another_was_asked_for() -> None:
    assert choose("auto", NEED, free=None, capability=None).precision == "bf16"
    assert choose("4bit", NEED, free=None, capability=None).precision == "4bit"
