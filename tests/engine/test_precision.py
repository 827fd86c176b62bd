"""The precision follows from computed sizes, free memory and the GPU, with a reason or advice."""

import pytest

from worker.engine import precision as choosing
from worker.engine.precision import GIGABYTE, Choice, Mode, Need
from worker.engine.quantise import Precision
from worker.errors import UnfitHost

# Qwen-Image with one Lightning LoRA, computed from its parameter counts.
NEED: dict[Precision, Need] = {
    "4bit": Need(14 * GIGABYTE, 8 * GIGABYTE),
    "8bit": Need(24 * GIGABYTE, 15 * GIGABYTE),
    "bf16": Need(44 * GIGABYTE, 29 * GIGABYTE),
}
AMPERE, TURING = (8, 6), (7, 5)


def choose(
    mode: Mode,
    need: dict[Precision, Need],
    *,
    free: int | None,
    capability: tuple[int, int] | None,
    working: int = 4 * GIGABYTE,
) -> Choice:
    """Choose for jobs that take as much at every precision."""
    return choosing.choose(
        mode,
        need,
        free=free,
        capability=capability,
        working=lambda _: working,
        offloaded=lambda _: working,
    )


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
    choice = choose("auto", NEED, free=free * GIGABYTE, capability=AMPERE)
    assert (choice.precision, choice.offload) == (precision, offload)
    assert f"{free}.0 GB" in choice.reason


def test_auto_says_which_pool_when_nothing_fits() -> None:
    with pytest.raises(UnfitHost, match=r"at least 12\.0 GB"):
        choose("auto", NEED, free=8 * GIGABYTE, capability=AMPERE)


@pytest.mark.parametrize("mode", ["auto", "4bit", "8bit", "bf16"])
def test_a_gpu_without_bf16_is_refused_rather_than_served_in_fp16(mode: Mode) -> None:
    with pytest.raises(UnfitHost, match=r"7\.5 .* Ampere"):
        choose(mode, NEED, free=80 * GIGABYTE, capability=TURING)


def test_a_precision_that_was_asked_for_is_kept_even_where_a_better_one_fits() -> None:
    assert choose("4bit", NEED, free=80 * GIGABYTE, capability=AMPERE).precision == "4bit"


def test_a_precision_that_does_not_fit_is_an_error_that_names_the_one_that_does() -> None:
    with pytest.raises(UnfitHost, match="PRECISION_MODE=8bit"):
        choose("bf16", NEED, free=30 * GIGABYTE, capability=AMPERE)
    with pytest.raises(UnfitHost, match="PRECISION_MODE=4bit"):
        choose("8bit", NEED, free=14 * GIGABYTE, capability=AMPERE)


def test_a_precision_that_fits_without_the_text_encoder_offloads_it() -> None:
    choice = choose("bf16", NEED, free=40 * GIGABYTE, capability=AMPERE)
    assert (choice.precision, choice.offload) == ("bf16", True)


def test_without_a_gpu_the_choice_is_bf16_unless_another_was_asked_for() -> None:
    assert choose("auto", NEED, free=None, capability=None).precision == "bf16"
    assert choose("4bit", NEED, free=None, capability=None).precision == "4bit"


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
def test_every_gpu_with_bf16_is_served(capability: tuple[int, int]) -> None:
    assert choose("auto", NEED, free=80 * GIGABYTE, capability=capability).precision == "bf16"


@pytest.mark.parametrize("capability", [(7, 0), (7, 9), (6, 1)])
def test_no_gpu_without_bf16_is(capability: tuple[int, int]) -> None:
    with pytest.raises(UnfitHost, match="Ampere"):
        choose("auto", NEED, free=80 * GIGABYTE, capability=capability)


def test_what_a_job_takes_depends_on_the_precision() -> None:
    """8bit needs 5 GB here where bf16 and 4bit need 1."""
    working: dict[Precision, int] = {"bf16": GIGABYTE, "8bit": 5 * GIGABYTE, "4bit": GIGABYTE}

    def find(free: int, mode: Mode = "auto") -> Choice:
        return choosing.choose(
            mode,
            NEED,
            free=free * GIGABYTE,
            capability=AMPERE,
            working=working.__getitem__,
            offloaded=working.__getitem__,
        )

    chosen = {free: find(free).precision for free in (45, 44, 29, 28, 15)}
    assert chosen == {45: "bf16", 44: "8bit", 29: "8bit", 28: "4bit", 15: "4bit"}
    assert (find(20, "8bit").offload, find(9).offload) == (True, True)
    with pytest.raises(UnfitHost, match=r"24\.0 GB at 8bit and 5\.0 GB .* PRECISION_MODE=4bit"):
        find(19, "8bit")
    with pytest.raises(UnfitHost, match=r"14\.0 GB at 4bit and 1\.0 GB .* at least 9\.0 GB"):
        find(8)


def test_a_gigabyte_has_a_thousand_million_bytes_and_all_that_a_job_takes_is_left_free() -> None:
    need: dict[Precision, Need] = {"bf16": Need(44_000_000_000, 29_000_000_000)}
    for free, offload in ((48_000_000_000, False), (47_999_999_999, True), (33_000_000_000, True)):
        assert choose("auto", need, free=free, capability=AMPERE).offload is offload
    for free, shown in ((48_250_000_000, "48.2 GB"), (48_750_000_000, "48.8 GB")):
        assert shown in choose("auto", need, free=free, capability=AMPERE).reason
    with pytest.raises(UnfitHost, match=r"at least 33\.0 GB"):
        choose("auto", need, free=32_999_999_999, capability=AMPERE)
    assert choose("bf16", need, free=44_000_000_007, capability=AMPERE, working=7).offload is False


def test_only_what_can_be_had_is_chosen() -> None:
    """A model that comes in 4 bits alone is never served in 16."""
    some: dict[Precision, Need] = {"4bit": NEED["4bit"], "8bit": NEED["8bit"]}
    assert choose("auto", some, free=80 * GIGABYTE, capability=AMPERE).precision == "8bit"
    least: dict[Precision, Need] = {"8bit": NEED["8bit"]}
    with pytest.raises(UnfitHost, match=r"takes 24\.0 GB at 8bit .* at least 19\.0 GB"):
        choose("auto", least, free=18 * GIGABYTE, capability=AMPERE)


def test_advice_names_what_the_weights_take_and_the_most_exact_that_fits() -> None:
    message = (
        r"^the GPU has 19\.0 GB free and the model takes 44\.0 GB at bf16 and 4\.0 GB to work in"
    )
    with pytest.raises(UnfitHost, match=f"{message}: set PRECISION_MODE=8bit$"):
        choose("bf16", NEED, free=19 * GIGABYTE, capability=AMPERE)
    with pytest.raises(UnfitHost, match=r"set PRECISION_MODE=4bit$"):
        choose("bf16", NEED, free=19 * GIGABYTE - 1, capability=AMPERE)
    message = r"takes 14\.0 GB at 4bit and 4\.0 GB to work in: choose a pool with at least 12\.0 GB"
    with pytest.raises(UnfitHost, match=message):
        choose("auto", NEED, free=11 * GIGABYTE, capability=AMPERE)


@pytest.mark.parametrize(
    ("free", "capability"), [(None, AMPERE), (80 * GIGABYTE, None), (None, TURING)]
)
def test_half_of_what_a_gpu_tells_is_no_gpu(
    free: int | None, capability: tuple[int, int] | None
) -> None:
    assert choose("auto", NEED, free=free, capability=capability).precision == "bf16"
    choice = choose("8bit", NEED, free=free, capability=capability)
    assert (choice.precision, choice.offload) == ("8bit", False)


def test_what_passes_through_the_device_counts_where_the_part_waits_on_the_host() -> None:
    """A job takes 1 GB with all weights on the device, and 3 GB while some of them pass."""

    def find(free: int, mode: Mode = "4bit") -> Choice:
        return choosing.choose(
            mode,
            NEED,
            free=free * GIGABYTE,
            capability=AMPERE,
            working=lambda _: GIGABYTE,
            offloaded=lambda _: 3 * GIGABYTE,
        )

    assert [find(free).offload for free in (15, 14, 11)] == [False, True, True]
    assert "8.0 GB of weights and 3.0 GB to work in" in find(11).reason
    with pytest.raises(UnfitHost, match=r"at least 11\.0 GB"):
        find(10)
    with pytest.raises(UnfitHost, match="PRECISION_MODE=4bit"):
        find(17, "8bit")
    assert find(18, "8bit").offload
