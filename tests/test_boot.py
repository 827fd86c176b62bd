"""What a worker says of its models follows from the catalogue, the settings and the device."""

import pytest

from worker import settings
from worker.errors import InvalidSettings
from worker.families.describe import describe
from worker.weights.catalog import TABLE, lightning_steps

SPECS = {spec.name: spec for spec in TABLE}
GB = 1 << 30


def lightning(name: str, **environ: str) -> tuple[int, ...]:
    """Return the step counts that a worker with this environment holds."""
    return lightning_steps(SPECS[name], settings.read(environ))


def test_eight_steps_are_held_unless_told_otherwise() -> None:
    """Published models hold one LoRA by default, the embedded pair both; the first is default."""
    assert lightning("qwen-image") == (8,)
    assert lightning("tiny-edit") == (8, 4)
    assert lightning("qwen-image", LIGHTNING_STEPS="4,8") == (4, 8)
    assert lightning("tiny-edit", LIGHTNING_STEPS="4") == (4,)
    assert lightning("qwen-image", USE_LIGHTNING_LORA="false") == ()


def test_a_count_without_a_lora_is_a_wrong_setting() -> None:
    """The message names what the model has."""
    with pytest.raises(InvalidSettings, match=r"LIGHTNING_STEPS: qwen-image.* 6 steps.* 8, 4"):
        lightning("qwen-image", LIGHTNING_STEPS="6")


@pytest.mark.parametrize(
    ("memory", "side"),
    [
        (16 * GB, 1328),
        ((22 << 30) - 1, 1328),
        (22 << 30, 1536),
        (24 * GB, 1536),
        ((40 << 30) - 1, 1536),
        (40 << 30, 2048),
        (80 * GB, 2048),
        (None, 1328),
    ],
)
def test_the_largest_picture_follows_the_memory(memory: int | None, side: int) -> None:
    """And MAX_PIXELS overrules it."""
    spec = SPECS["qwen-image"]
    facts = {"revision": "0", "precision": "4bit", "lightning": (8,), "memory": memory}
    assert describe(spec, settings.read({}), **facts).max_pixels == side * side  # type: ignore[arg-type] # mypy cannot type a **dict
    asked = settings.read({"MAX_PIXELS": "1000000"})
    assert describe(spec, asked, **facts).max_pixels == 1_000_000  # type: ignore[arg-type] # the same


def test_a_model_takes_as_many_references_as_it_and_the_settings_allow() -> None:
    spec = SPECS["qwen-image-edit-2511"]
    for most, told in (("1", 1), ("2", 2), ("3", 3)):
        given = describe(
            spec,
            settings.read({"MAX_INPUT_IMAGES": most}),
            revision="abc",
            precision="8bit",
            lightning=(4, 8),
            memory=80 * GB,
        )
        assert given.max_references == told
    first = describe(
        SPECS["qwen-image-edit"],
        settings.read({}),
        revision="0",
        precision="bf16",
        lightning=(),
        memory=None,
    )
    assert first.max_references == 1
    assert (given.id, given.repository) == (spec.name, spec.repository)
    assert (given.revision, given.precision, given.lightning_steps) == ("abc", "8bit", (4, 8))
    assert (given.licence, given.tasks, given.sizes) == (spec.licence, spec.tasks, spec.sizes)
    assert (given.steps, given.true_cfg_scale) == (spec.steps, spec.true_cfg_scale)
    assert (given.area, given.negative_prompt) == (spec.area, spec.negative_prompt)


def test_a_small_model_makes_no_large_pictures() -> None:
    """At most four times the area that the embedded model was trained at."""
    given = describe(
        SPECS["tiny-image"],
        settings.read({}),
        revision="0",
        precision="bf16",
        lightning=(),
        memory=None,
    )
    assert given.max_pixels == 4 * 96 * 96
