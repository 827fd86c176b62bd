"""Weights of references, guidance, and what models without CFG refuse."""

from typing import Any

import pytest

from worker import settings
from worker.errors import InvalidInput
from worker.seam import Served
from worker.tasks.picture import PictureWish
from worker.tasks.request import Request, parse
from worlds.published import EDIT, IMAGE, KLEIN, offering

A, B = "https://example.com/a.png", "https://example.com/b.png"
DEV = offering(KLEIN, guidance=4.0, steps=50)
BASE = offering(KLEIN, takes_cfg=True, true_cfg_scale=4.0, steps=50)


def requested(given: dict[str, Any], model: Served = KLEIN) -> Request:
    found = parse({"prompt": "a", **given}, [model], settings.read({}))
    assert isinstance(found, Request)
    return found


def wished(given: dict[str, Any], model: Served = KLEIN) -> PictureWish:
    draft: PictureWish = requested(given, model).asked.draft
    return draft


def refused(given: dict[str, Any], model: Served = KLEIN) -> list[tuple[str, str]]:
    with pytest.raises(InvalidInput) as found:
        requested(given, model)
    return [(detail.field, detail.message) for detail in found.value.details]


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        ({"images": [A, B]}, ()),
        ({"images": [A, B], "reference_weights": [2, 0.5]}, (2.0, 0.5)),
        ({"images": A, "reference_weights": 0}, (0.0,)),
        ({"image": A, "image_2": B, "reference_weights": ["1", 4]}, (1.0, 4.0)),
        ({"reference_images": [{"image": A, "weight": 2}, B]}, (2.0, 1.0)),
        ({"images": [{"url": A, "weight": "0.5"}, {"url": B, "weight": 0}]}, (0.5, 0.0)),
        ({"images": [{"url": A, "weight": None}]}, ()),
        ({"images": [A, B], "mask": A, "reference_weights": [1, 2]}, (1.0, 2.0)),
    ],
)
def test_each_reference_has_its_weight(given: dict[str, Any], weights: tuple[float, ...]) -> None:
    wish = wished(given)
    assert wish.reference_weights == weights
    assert all(isinstance(weight, float) for weight in wish.reference_weights)
    assert requested(given).warnings == ()


@pytest.mark.parametrize("weight", [-0.1, 4.1, True, "much", "nan", [1], float("nan")])
def test_a_weight_next_to_a_picture_is_0_to_4(weight: Any) -> None:
    ((field, message),) = refused({"images": [A, {"url": B, "weight": weight}]})
    assert field == "images[1]"
    assert message.startswith("its weight must be 0 to 4 (got ")


def test_there_is_a_weight_for_each_reference() -> None:
    assert refused({"images": [A, B], "reference_weights": [1]}) == [
        ("reference_weights", "must be one for each of 2 (got 1)")
    ]
    both = {"images": [{"url": A, "weight": 1}], "reference_weights": [1]}
    assert refused(both) == [("reference_weights", "cannot be combined with weights in images")]


def test_weights_are_for_tasks_with_references() -> None:
    """A picture that another is begun from has none, nor has a mask."""
    for given, task in (
        ({"reference_weights": [1]}, "text-to-image"),
        ({"image": A, "strength": 0.5, "reference_weights": [1]}, "img2img"),
    ):
        message = f"is for edit, inpaint and outpaint, not {task}"
        assert ("reference_weights", message) in refused(given)
    weighed = {"image": {"url": A, "weight": 1}}
    assert refused({**weighed, "strength": 0.5}) == [("image", "have no weights in img2img")]
    warned = requested({"image": A, "mask": {"url": B, "weight": 1}}).warnings
    assert warned == ("mask.weight: is not a known field",)


def test_a_model_that_weighs_nothing_takes_weights_of_one_alone() -> None:
    assert wished({"images": [A, B], "reference_weights": [1, 1]}, EDIT).reference_weights == (1, 1)
    for given in (
        {"images": [A, B], "reference_weights": [1, 0.99]},
        {"images": [{"url": A, "weight": 2}]},
    ):
        ((field, message),) = refused(given, EDIT)
        assert field in ("images", "reference_weights")
        assert message.startswith(f"must be 1 for {EDIT.id}: its prompt has seen the references")


@pytest.mark.parametrize(
    ("workflow", "more", "task"),
    [
        ("txt2img", {}, "text-to-image"),
        ("img2img", {"init_image": A, "strength": 0.8}, "img2img"),
        ("multi_reference", {"reference_images": [A, B], "reference_weights": [1, 0.5]}, "edit"),
        ("edit", {"image": A}, "edit"),
    ],
)
def test_the_words_of_a_workflow_are_tasks(workflow: str, more: dict[str, Any], task: str) -> None:
    found = requested({"workflow": workflow, **more})
    assert (found.task.name, found.warnings) == (task, ())


def test_a_model_without_cfg_takes_no_negative_prompt() -> None:
    assert refused({"negative_prompt": "blurry"}) == [
        ("negative_prompt", "this model runs without CFG and takes none")
    ]
    for empty in ("", " "):
        wish = wished({"negative_prompt": empty})
        assert (wish.negative_prompt, wish.true_cfg_scale, wish.guidance) == (None, 1.0, None)
    assert requested({"guidance_scale": 1}).warnings == ()
    found = requested({"guidance_scale": 3.5})
    assert found.asked.draft.true_cfg_scale == 1.0
    assert found.warnings == ("guidance_scale: set to 1.0: this model runs without CFG (got 3.5)",)


def test_guidance_is_an_input_of_a_model_that_takes_it() -> None:
    for given, guidance in (({}, 4.0), ({"guidance_scale": 2.5}, 2.5), ({"guidance": 1}, 1.0)):
        wish = wished(given, DEV)
        assert (wish.guidance, wish.true_cfg_scale, wish.negative_prompt) == (guidance, 1.0, None)
        assert requested(given, DEV).warnings == ()
    assert refused({"negative_prompt": "x"}, DEV)[0][0] == "negative_prompt"


def test_a_base_model_has_true_cfg() -> None:
    wish = wished({}, BASE)
    assert (wish.true_cfg_scale, wish.negative_prompt, wish.guidance) == (4.0, "", None)
    wish = wished({"negative_prompt": "blurry", "guidance": 2}, BASE)
    assert (wish.true_cfg_scale, wish.negative_prompt) == (2.0, "blurry")


def test_a_model_takes_as_many_references_as_its_row_says() -> None:
    assert len(requested({"images": [A, B, A, B]}).asked.sources) == 4
    assert refused({"images": [A, B, A, B]}, EDIT) == [
        ("images", f"must be at most 3 for {EDIT.id} (got 4)")
    ]


def test_one_model_does_text_and_edits_by_what_is_given() -> None:
    for given, task in (({}, "text-to-image"), ({"image": A}, "edit")):
        assert requested(given).task.name == task
    assert requested({}, IMAGE).task.name == "text-to-image"


def test_capabilities_name_what_a_model_weighs_and_is_guided_by() -> None:
    given = settings.read({})
    for model, guided, weighed in ((KLEIN, False, True), (DEV, True, True), (EDIT, False, False)):
        described = next(iter(model.offers.values())).describe(given)
        assert (described.get("guidance") == 4.0) == guided
        assert (described.get("max_reference_weight") == 4) == weighed
