"""Which files a model is built from, and whether a folder has them whole."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker.families.qwen_image.models import PARTS as OWN
from worker.weights.checkpoint import (
    describe_other_weights,
    find_fault,
    is_needed,
    list_needed,
    read_class,
)
from worker.weights.spec import Parts

ONE = Parts(weights=("",))

PARTS = ("transformer", "text_encoder", "vae", "tokenizer", "processor", "scheduler")
NEEDED = [
    "model_index.json",
    "worker.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "transformer/diffusion_pytorch_model-00001-of-00009.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "text_encoder/model-00001-of-00004.safetensors",
    "text_encoder/model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "tokenizer/chat_template.jinja",
    "tokenizer/spiece.model",
    "processor/preprocessor_config.json",
    "scheduler/scheduler_config.json",
    "lightning/8steps.safetensors",
]
NOT_NEEDED = [
    "README.md",
    "config.json",
    "manifest.json",
    "model.safetensors",
    "qwen-image.safetensors",
    "transformer/diffusion_pytorch_model.fp16.safetensors",
    "transformer/diffusion_pytorch_model-00001-of-00009.fp16.safetensors",
    "transformer/diffusion_pytorch_model.bin",
    "transformer/diffusion_pytorch_model-1-of-9.safetensors",
    "transformer/other.safetensors",
    "transformer/README.md",
    "transformer/deeper/config.json",
    "lightning/README.md",
    "lightning/config.json",
    "safety_checker/config.json",
    "split_files/transformer/config.json",
]


@pytest.mark.parametrize("path", NEEDED)
def test_a_model_is_built_from(path: str) -> None:
    assert is_needed(path, PARTS)


@pytest.mark.parametrize("path", NOT_NEEDED)
def test_a_model_is_not_built_from(path: str) -> None:
    assert not is_needed(path, PARTS)


def test_small_files_come_first_each_in_order() -> None:
    found = list_needed(reversed([*NEEDED, *NOT_NEEDED]), PARTS)
    assert sorted(found) == sorted(NEEDED)
    weights = [path for path in found if path.endswith(".safetensors")]
    small = [path for path in found if not path.endswith(".safetensors")]
    assert list(found) == small + weights
    assert small == sorted(small)
    assert weights == sorted(weights)


def safetensors() -> bytes:
    header = json.dumps({"x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


SHARDS = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
MAP = "transformer/diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of a few bytes, with its transformer in two shards."""
    for part in PARTS:
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text("{}")
    (tmp_path / "model_index.json").write_text(json.dumps({part: ["a", "b"] for part in PARTS}))
    for name in SHARDS:
        (tmp_path / "transformer" / name).write_bytes(safetensors())
    (tmp_path / MAP).write_text(json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}))
    (tmp_path / "text_encoder/model.safetensors").write_bytes(safetensors())
    (tmp_path / "vae/diffusion_pytorch_model.safetensors").write_bytes(safetensors())
    return tmp_path


def test_a_whole_folder_has_no_fault(model: Path) -> None:
    assert find_fault(model, OWN) is None
    (model / MAP).unlink()
    assert find_fault(model, OWN) is None, "shards need no index to be there"


def test_other_copies_of_the_weights_are_not_looked_at(model: Path) -> None:
    for name in ("diffusion_pytorch_model.fp16.safetensors", "other.safetensors"):
        (model / "vae" / name).write_bytes(b"cut")
    for part in ("transformer", "vae"):  # beside the index of the weights that are taken, or none
        other = model / part / "diffusion_pytorch_model.fp16.safetensors.index.json"
        other.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    assert find_fault(model, OWN) is None


def test_a_component_that_the_index_does_not_name_is_not_missed(model: Path) -> None:
    index = {part: ["a", "b"] for part in PARTS if part not in ("processor", "vae")}
    (model / "model_index.json").write_text(json.dumps(index))
    for path in (model / "processor/config.json", *(model / "vae").iterdir()):
        path.unlink()
    (model / "processor").rmdir()
    (model / "vae").rmdir()
    assert find_fault(model, OWN) is None


def rewrite(path: str, text: str) -> Callable[[Path], object]:
    return lambda model: (model / path).write_text(text)


def remove(*paths: str) -> Callable[[Path], object]:
    def removed(model: Path) -> None:
        for path in paths:
            (model / path).unlink()

    return removed


def drop(folder: str) -> Callable[[Path], object]:
    def dropped(model: Path) -> None:
        for path in (model / folder).iterdir():
            path.unlink()
        (model / folder).rmdir()

    return dropped


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A model of a few bytes that is one part, in the root of its folder."""
    (tmp_path / "config.json").write_text('{"architectures": ["X"]}')
    (tmp_path / "model.safetensors").write_bytes(safetensors())
    return tmp_path


def test_a_model_may_be_one_part_without_an_index(one: Path) -> None:
    assert find_fault(one, ONE) is None
    assert find_fault(one, OWN) == "has no model_index.json"
    assert read_class(json.loads((one / "config.json").read_text())) == "X"


def test_an_index_comes_before_a_config(model: Path) -> None:
    """Whatever lies in the root of a model that has one."""
    (model / "config.json").write_text("{")
    assert find_fault(model, Parts(("", *OWN.weights), OWN.beside)) is None


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ({"_class_name": "A", "architectures": ["B"]}, "A"),
        ({"architectures": ["B", "C"]}, "B"),
        ({"architectures": []}, ""),
        ({"architectures": "B"}, ""),
        ({}, ""),
    ],
)
def test_a_class_is_what_a_description_names(description: dict[str, Any], name: str) -> None:
    assert read_class(description) == name


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove("config.json"), "has no model_index.json"),
        (rewrite("config.json", "{"), "has an unreadable config.json"),
        (rewrite("config.json", "[]"), "has an unreadable config.json"),
        (remove("model.safetensors"), "lacks its weights"),
        (rewrite("model.safetensors", ""), "model.safetensors has no safetensors header"),
        (
            rewrite("model.safetensors.index.json", '{"weight_map": {"a": "gone.safetensors"}}'),
            "lacks gone.safetensors",
        ),
    ],
)
def test_what_one_part_lacks_is_said(
    one: Path, damage: Callable[[Path], object], reason: str
) -> None:
    damage(one)
    assert str(find_fault(one, ONE)).startswith(reason)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove("model_index.json"), "has no model_index.json"),
        (rewrite("model_index.json", "{"), "has an unreadable model_index.json"),
        (rewrite("model_index.json", "\xff"), "has an unreadable model_index.json"),
        (remove("vae/config.json"), "lacks vae/config.json"),
        (remove("vae/diffusion_pytorch_model.safetensors"), "lacks the weights of vae/"),
        (remove("text_encoder/model.safetensors"), "lacks the weights of text_encoder/"),
        (remove(f"transformer/{SHARDS[1]}"), f"lacks transformer/{SHARDS[1]}"),
        (remove(f"transformer/{SHARDS[0]}"), f"lacks transformer/{SHARDS[0]}"),
        (rewrite(f"transformer/{SHARDS[0]}", ""), f"transformer/{SHARDS[0]} has no safetensors"),
        (rewrite("vae/diffusion_pytorch_model.safetensors", "x" * 99), "has no safetensors header"),
        (rewrite(MAP, "{"), "cannot be read ("),
        (rewrite(MAP, "{}"), "cannot be read (KeyError)"),
        (rewrite(MAP, '{"weight_map": 3}'), "cannot be read (AttributeError)"),
        (rewrite(MAP, '{"weight_map": {}}'), "lacks the weights of transformer/"),
        (drop("vae"), "lacks vae/config.json"),
        (drop("tokenizer"), "lacks tokenizer/"),
        (drop("processor"), "lacks processor/"),
        (drop("scheduler"), "lacks scheduler/"),
    ],
)
def test_what_is_not_whole_says_what_it_lacks(
    model: Path, damage: Callable[[Path], object], reason: str
) -> None:
    damage(model)
    assert reason in str(find_fault(model, OWN))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["x.gguf"], "GGUF files, quantised"),
        (["x.bin"], "pickled files (.bin)"),
        (["X.PT"], "pickled files (.pt)"),
        (["x.pth"], "pickled files (.pth)"),
        (["x.ckpt"], "pickled files (.ckpt)"),
        (["x.msgpack"], "Flax's files (.msgpack)"),
        (["x.h5"], "TensorFlow's files (.h5)"),
        (["x.onnx"], "ONNX files"),
        (["x.safetensors"], "safetensors files of another name or variant"),
        (["a.onnx", "b.bin", "c.onnx"], "pickled files (.bin) and ONNX files"),
    ],
)
def test_weights_in_other_forms_are_named(names: list[str], said: str) -> None:
    found = describe_other_weights(names)
    assert found == f": it has {said}, and a bundle is made from plain safetensors weights alone"
    inside = [f"vae/{name}" for name in names]
    assert describe_other_weights(inside) == found
    assert describe_other_weights(inside, "vae") == found
    assert describe_other_weights(inside, "va") == describe_other_weights(["README.md"]) == ""


def test_a_part_without_weights_says_what_it_has_instead(model: Path) -> None:
    weights = model / "vae/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert str(find_fault(model, OWN)).startswith("lacks the weights of vae/: it has pickled files")


def test_one_part_without_weights_says_what_it_has_instead(one: Path) -> None:
    (one / "model.safetensors").rename(one / "model.gguf")
    assert str(find_fault(one, ONE)).startswith("lacks its weights: it has GGUF files")


def test_of_two_parts_that_are_not_there_the_first_is_named(model: Path) -> None:
    drop("scheduler")(model)
    drop("tokenizer")(model)
    first, second = sorted(("scheduler", "tokenizer"), key=OWN.beside.index)
    assert find_fault(model, OWN) == f"lacks {first}/"
    (model / first).mkdir()
    assert find_fault(model, OWN) == f"lacks {second}/"
