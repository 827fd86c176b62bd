"""The bundle knows no model: a family of two matrices is prepared and opened by its recipe."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worker import settings
from worker.bundle import headers, layout, needs, refuse
from worker.bundle.fill import make_empty
from worker.bundle.layout import Damaged
from worker.bundle.open import Opening, make_shared
from worker.bundle.plan import Order, plan
from worker.bundle.prepare import compute_sizes, prepare
from worker.bundle.recipe import SMALL_FILES, Modules, Part, Published, Recipe
from worker.engine.precision import Need
from worker.engine.quantise import PRECISIONS, Precision, count_stored_bytes
from worker.weights.snapshot import LocalSnapshot, Snapshot
from worker.weights.spec import ModelSpec

CPU = torch.device("cpu")
SIDE = 64


class Matrix(nn.Module):
    """One Linear and the sign that its configuration names."""

    def __init__(self, side: int, sign: int = 1) -> None:
        super().__init__()
        self.config = {"side": side, "sign": sign}
        self.inner = nn.Linear(side, side)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., side] to [..., side]."""
        y: Tensor = self.inner(x) * self.config["sign"]
        return y


def stock(config: Mapping[str, Any]) -> Matrix:
    with make_empty():
        return Matrix(**config)


def check(snapshot: Snapshot, _spec: ModelSpec) -> Published:
    config = refuse.read_object(snapshot, "matrix/config.json")
    small = {
        role: {
            file.path.rpartition("/")[2]: snapshot.read_file(file)
            for file in headers.list_configuration_files(snapshot, role)
        }
        for role in ("words", "matrix", "bare")
    }
    shards = {role: headers.read_shards(snapshot, role) for role in ("matrix", "bare")}
    return Published(small, shards, {"matrix": config}, {})


BARE = Part("bare", Modules(stock), is_shared=True)
MATRIX = Part(
    "matrix",
    Modules(stock),
    keep=lambda name: None if name == "unused" else name.removeprefix("old."),
    quantised=re.compile(r"inner\.weight"),
)
RECIPE = Recipe(
    parts=(Part("words", is_optional=True), BARE, MATRIX),
    check=check,
    adapted="matrix",
    reached=lambda _config: ("inner",),
    waiting="bare",
    waiting_word="bare matrix",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published model of that family."""
    out = tmp_path / "published"
    for role, prefix in (("matrix", "old."), ("bare", "")):
        (out / role).mkdir(parents=True)
        (out / role / "config.json").write_text(json.dumps({"side": SIDE, "sign": -1}))
        weight, bias = torch.randn(SIDE, SIDE), torch.ones(SIDE)
        tensors = {f"{prefix}inner.weight": weight, f"{prefix}inner.bias": bias}
        if prefix:
            tensors["unused"] = torch.ones(3)
        save_file(tensors, out / role / "model.safetensors")
    (out / "words").mkdir()
    (out / "words" / "vocab.json").write_text("{}")
    return out


def order_of(folder: Path, precision: Precision = "bf16") -> Order:
    home = folder.parent / "home"
    return Order(
        ModelSpec("toy", "org/toy", "ToyPipeline"),
        RECIPE,
        LocalSnapshot(folder, "org/toy"),
        precision,
        settings.read({"MIN_STORAGE_FREE_GB": "0"}),
        CPU,
        home,
        home / "downloads",
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_its_parts_are_stored_and_opened_as_the_recipe_says(
    precision: Precision, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as on a GPU: on a CPU small 4-bit weights are unpacked
    monkeypatch.setattr("worker.engine.quantise.SMALL_WEIGHT", 0)
    order = order_of(folder, precision)
    bundle = prepare(order)
    published = load_file(folder / "matrix" / "model.safetensors")
    with Opening(bundle, RECIPE, CPU) as opening:
        matrix, bare = opening.open_module("matrix"), opening.open_module("bare")
        assert opening.open_files("words", lambda at: (at / "vocab.json").read_text()) == "{}"
    x = torch.randn(5, SIDE).bfloat16()
    with torch.inference_mode():
        found = matrix(x).float()
    weight, bias = published["old.inner.weight"].bfloat16(), published["old.inner.bias"].bfloat16()
    expected = -nn.functional.linear(x, weight, bias).float()
    assert (
        float((found - expected).norm() / expected.norm())
        < {"bf16": 0.01, "8bit": 0.03, "4bit": 0.2}[precision]
    )
    assert (type(matrix.inner) is nn.Linear) == (precision == "bf16")
    assert type(bare.inner) is nn.Linear
    size = compute_sizes(order)[precision]
    assert size.parts == {
        "matrix": count_stored_bytes((SIDE, SIDE), precision) + 2 * SIDE,
        "bare": 2 * SIDE * (SIDE + 1),
    }
    assert size.disk == size.memory == sum(size.parts.values())
    need = needs.convert_sizes({precision: size}, RECIPE)[precision]
    assert need == Need(size.memory, size.parts["matrix"], "bare matrix")


def test_a_plan_writes_nothing_and_is_the_same_each_time(folder: Path) -> None:
    """A part that is bf16 at every precision is one component at all of them."""
    order = order_of(folder)
    published = RECIPE.check(order.snapshot, order.spec)
    first, again = plan(order, published), plan(order, published)
    assert first == again
    assert not order.home.exists()
    roles = [one.role for one in first.components]
    assert roles == ["words", "bare", "matrix"]
    small = plan(replace(order, precision="8bit"), published)
    same = [
        a.identity == b.identity for a, b in zip(first.components, small.components, strict=True)
    ]
    assert same == [True, True, False]


def test_open_models_share_what_the_recipe_lets_them_share(folder: Path) -> None:
    bundle, share = prepare(order_of(folder)), make_shared()
    with Opening(bundle, RECIPE, CPU, share=share) as first:
        bare, matrix = first.open_module("bare"), first.open_module("matrix")
    with Opening(bundle, RECIPE, CPU, share=share) as second:
        assert second.open_module("bare") is bare
        assert second.open_module("matrix") is not matrix


@pytest.mark.parametrize("role", ["words", "matrix"])
def test_only_an_optional_part_may_be_missing(role: str, folder: Path) -> None:
    bundle = prepare(order_of(folder))
    manifest = layout.read_bundle(bundle)
    rest = {name: identity for name, identity in manifest.components.items() if name != role}
    layout.publish(bundle, manifest.model_copy(update={"components": rest}))
    if role == "words":
        with Opening(bundle, RECIPE, CPU) as opening:
            assert not opening.has_part("words")
            assert opening.open_module("bare")
    else:
        with pytest.raises(Damaged, match="it has no matrix"):
            Opening(bundle, RECIPE, CPU)


def test_a_part_of_small_files_alone_has_no_modules() -> None:
    assert not RECIPE.find_part("words").has_weights
    assert (RECIPE.with_weights, RECIPE.copied) == (("matrix", "bare"), ("words",))
    with pytest.raises(ValueError, match="small files alone"):
        SMALL_FILES.stock({})
