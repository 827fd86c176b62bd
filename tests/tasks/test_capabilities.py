"""op=capabilities reports what may be requested, from the tables that check it."""

import json

from worker import settings
from worker.edge.reply import measure, read_worker_version
from worker.tasks import registry
from worker.tasks.capabilities import list_capabilities
from worker.tasks.picture import offer_of
from worker.tasks.picture_tasks import PICTURE_TASKS
from worlds.published import EDIT, IMAGE, offering


def test_every_model_is_reported_with_its_limits() -> None:
    chosen = settings.read({"MAX_INPUT_IMAGES": "2"})
    answer = list_capabilities((IMAGE, offering(EDIT, sizes={})), chosen, 1000)
    first, second = answer["models"]
    assert (first["id"], first["tasks"], first["max_images"]) == (
        IMAGE.id,
        ["text-to-image", "img2img", "inpaint", "outpaint"],
        1,
    )
    assert (first["strength"], "strength" in second) == (0.6, False)
    assert first["sizes"]["16:9"] == [1664, 928]
    assert first["lightning_steps"] == [8, 4]
    assert (first["negative_prompt"], second["negative_prompt"]) == (
        offer_of(IMAGE).negative_prompt,
        " ",
    )
    assert (second["max_images"], second["max_pixels"]) == (2, offer_of(EDIT).max_pixels)


def test_what_a_lora_takes_on_the_device_is_reported_where_it_is_known_and_may_be_brought() -> None:
    """Three of rank 64 take 3.5 GB of a published model's device."""
    known = offering(EDIT, rank_bytes=18_432_000)
    refusing = offering(EDIT, rank_bytes=18_432_000, no_loras="it takes none")
    answer = list_capabilities((known, EDIT, refusing), settings.read({}), 1000)
    found = [model.get("lora_bytes_per_rank") for model in answer["models"]]
    assert found == [18_432_000, None, None]
    assert [model["max_loras"] for model in answer["models"]] == [3, 3, 0]


def test_every_field_and_alias_is_reported() -> None:
    answer = list_capabilities((IMAGE,), settings.read({}), 1000)["input"]
    names = {name for row in answer for name in (row["field"], *row["aliases"])}
    assert names == set(registry.map_words())


def test_the_answer_is_plain_json_without_the_operators_secrets() -> None:
    environ = {"HF_TOKEN": "hf_topsecret", "MODEL_DIR": "/data/models"}
    answer = list_capabilities((IMAGE, EDIT), settings.read(environ), 5_000_000)
    assert measure(answer, 100_000)
    assert answer["limits"]["max_reply_bytes"] == 5_000_000
    assert "topsecret" not in json.dumps(answer)
    assert "/data" not in json.dumps(answer)


def test_a_model_is_reported_as_it_is() -> None:
    chosen = settings.read({"MAX_IMAGES_PER_REQUEST": "3", "MAX_IMAGE_BYTES": "7 MB"})
    answer = list_capabilities((EDIT,), chosen, 18_000_000)
    assert answer["loras"] == {
        "sources": ["names", "hub", "urls"],
        "names": [],
        "max_lora_bytes": 1_500_000_000,
    }
    assert answer["models"] == [
        {
            "id": EDIT.id,
            "repository": EDIT.repository,
            "revision": EDIT.revision,
            "precision": "4bit",
            "licence": "apache-2.0",
            "gated": False,
            "tasks": ["edit", "inpaint", "outpaint"],
            "steps": 40,
            "true_cfg_scale": 4.0,
            "negative_prompt": " ",
            "lightning_steps": [8, 4],
            "area": 1024 * 1024,
            "max_pixels": 2048 * 2048,
            "max_images": 3,
            "max_loras": 3,
            "sizes": {ratio: list(size) for ratio, size in offer_of(EDIT).sizes.items()},
            "presets": {
                "fast": {"num_inference_steps": 4, "true_cfg_scale": 1.0, "lightning": True},
                "balanced": {"num_inference_steps": 8, "true_cfg_scale": 1.0, "lightning": True},
                "quality": {"num_inference_steps": 40, "true_cfg_scale": 4.0, "lightning": False},
            },
        }
    ]
    assert answer["limits"] == {
        "max_images_per_request": 3,
        "max_image_bytes": 7_000_000,
        "max_reply_bytes": 18_000_000,
    }
    assert answer["worker_version"] == read_worker_version()
    assert set(answer) == {"models", "input", "loras", "limits", "worker_version"}
    row = next(row for row in answer["input"] if row["field"] == "num_images")
    assert row == {
        "field": "num_images",
        "aliases": ["n", "num_outputs", "num_images_per_prompt"],
        "accepts": "1-4; picture i has seed + i",
        "default": "1",
        "schema": {"type": "integer", "minimum": 1, "maximum": 4},
        "tasks": list(PICTURE_TASKS),
    }


def test_the_schemas_of_pictures_say_in_which_forms_and_how_many() -> None:
    """Forms are drawn from them: a media type is a place for a file."""
    words = ("image", "url", "data", "base64", "image_url", "b64_json")
    keys = {word: {"type": "string"} for word in words}

    def describe(**more: object) -> dict[str, object]:
        keyed = {"type": "object", "properties": {**keys, **more}}
        return {"anyOf": [{"type": "string"}, keyed], "contentMediaType": "image/*"}

    answer = list_capabilities((EDIT,), settings.read({}), 1000)["input"]
    schemas = {row["field"]: row["schema"] for row in answer}
    one = describe(weight={"type": "number", "minimum": 0, "maximum": 4})
    several = {"type": "array", "items": one, "minItems": 1, "maxItems": 4}
    assert schemas["images"] == {"anyOf": [one, several]}
    assert schemas["mask"] == describe()


def test_the_schema_of_loras_says_in_which_forms_and_how_many() -> None:
    answer = list_capabilities((EDIT,), settings.read({}), 1000)["input"]
    words = {word: {"type": "string"} for word in ("path", "url", "name")}
    scales = {word: {"type": "number"} for word in ("scale", "weight")}
    keyed = {"type": "object", "properties": {**words, **scales}}
    assert next(row["schema"] for row in answer if row["field"] == "loras") == {
        "type": "array",
        "items": {"anyOf": [{"type": "string"}, keyed]},
        "minItems": 1,
        "maxItems": 8,
    }
