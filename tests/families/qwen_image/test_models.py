"""The rows of the published models agree with their publishers' files, and so does what is none."""

import inspect
import re
from typing import Any

import pytest
from diffusers import QwenImageImg2ImgPipeline, QwenImagePipeline

from worker.families.family import Sizes
from worker.families.qwen_image import models
from worker.weights.spec import ModelSpec

ROWS = [row for row in models.TABLE if row.embedded is None]


@pytest.mark.parametrize(
    "sizes", [models.PUBLISHED_SIZES, models.TINY_SIZES], ids=["published", ""]
)
def test_a_size_is_near_its_aspect_in_whole_tokens(sizes: Sizes) -> None:
    """Of 16 x 16 pixels each."""
    for ratio, (width, height) in sizes.items():
        across, down = map(int, ratio.split(":"))
        assert width % 16 == height % 16 == 0
        assert width / height == pytest.approx(across / down, rel=0.13)
    areas = [width * height for width, height in sizes.values()]
    assert max(areas) / min(areas) < 1.2


def test_defaults_are_those_of_the_stock_pipelines() -> None:
    def default(pipeline: Any, name: str) -> Any:
        return inspect.signature(pipeline.__call__).parameters[name].default

    for row in ROWS:
        assert row.defaults.true_cfg_scale == default(QwenImagePipeline, "true_cfg_scale")
        assert row.defaults.strength == default(QwenImageImg2ImgPipeline, "strength")
        assert row.defaults.sizes == models.PUBLISHED_SIZES
    steps = {row.name: row.defaults.steps for row in ROWS if row.defaults.max_references < 2}
    assert set(steps.values()) == {default(QwenImagePipeline, "num_inference_steps")}


def test_what_no_stock_pipeline_says_is_as_the_model_cards_have_it() -> None:
    """Steps and references of the later edits, and a negative prompt, which is Chinese or a space.

    The embedded models take as many steps.
    """
    for row in models.TABLE:
        if row.defaults.max_references > 1 or row.embedded:
            assert row.defaults.steps == 40
            assert row.defaults.max_references in (0, 3)
        assert re.fullmatch(r" |低分.*扭曲。", row.defaults.negative_prompt)
    chinese = [row.name for row in ROWS if row.defaults.negative_prompt != " "]
    assert chinese == ["qwen-image-2512"]


@pytest.mark.parametrize("row", models.TABLE, ids=lambda row: row.name)
def test_lightning_of_a_row_is_of_its_own_model_and_step_count(row: ModelSpec) -> None:
    """Each count has a file of its own, in the publisher's repository or beside the model."""
    assert list(row.lightning) == [8, 4]
    for steps, file in row.lightning.items():
        assert f"-{steps}steps" in file.filename
        assert re.fullmatch(r"[A-Za-z0-9./-]+", file.filename), "words with hyphens between"
        if row.embedded is None:
            assert file.repository in {"lightx2v/Qwen-Image-Lightning", f"lightx2v/{own(row)}"}
            assert own(row).removesuffix("-Lightning") in file.filename.rsplit("/", 1)[-1]
        else:
            assert (file.repository, row.needs_gpu) == (None, False)


def own(row: ModelSpec) -> str:
    """Name the repository of a model's own LoRAs."""
    return f"{row.repository.removeprefix('Qwen/')}-Lightning"


@pytest.mark.parametrize("pipeline", models.PIPELINES)
@pytest.mark.parametrize(
    ("about", "area"),
    [
        ({"area": 1}, 1),
        ({"area": 96 * 96}, 96 * 96),
        ({"area": 0}, None),
        ({"area": "1"}, None),
        ({}, None),
    ],
)
def test_what_is_no_row_has_what_its_class_has_and_an_area_of_its_own(
    pipeline: str, about: dict[str, Any], area: int | None
) -> None:
    known = models.PIPELINES[pipeline]
    bare = ModelSpec("mine", "someone/mine", pipeline)
    spec = models.FAMILY.classes[pipeline](bare, about)
    assert (spec.family, spec.tasks, spec.parts) == (models.MODULE, known.tasks, models.PARTS)
    assert spec.defaults.area == (area or 1024 * 1024)
    small = area == 96 * 96
    assert spec.defaults.sizes == (models.TINY_SIZES if small else models.PUBLISHED_SIZES)
    assert (spec.defaults.steps, spec.defaults.max_references) == (
        known.defaults.steps,
        known.defaults.max_references,
    )
