"""What one shard becomes: every tensor that is kept, in its place and number format."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from worker.bundle.convert import Weights, cast_to_bf16, check_lora, make_transform
from worker.bundle.headers import Shard
from worker.bundle.layout import WEIGHTS
from worker.bundle.recipe import Modules, Part, Published, Replaced, Work
from worker.bundle.tensors import TensorEntry
from worker.engine.lora import fuse
from worker.errors import LoraNotApplied
from worker.weights.proof import RemoteFile
from worker.weights.snapshot import LocalSnapshot

CPU = torch.device("cpu")
SIDE = 64


def of(state: Mapping[str, Tensor]) -> Shard:
    """Return the shard that has these tensors, in this order."""
    header = {name: TensorEntry(t.dtype, tuple(t.shape), 0, 0) for name, t in state.items()}
    return Shard(RemoteFile("part/model.safetensors", 1), header)


def work(part: Part, precision: Any = "bf16", lora: Mapping[str, Tensor] | None = None) -> Work:
    published = Published({}, {}, {}, {})
    return Work(part, published, LocalSnapshot(".", "org/toy"), precision, CPU, lora)  # type: ignore[arg-type] # not read


def made(state: Mapping[str, Tensor], **named: Any) -> dict[str, Tensor]:
    """Return what a shard becomes in a part; `lora` and `precision` are the work's."""
    mine = {key: named.pop(key) for key in ("precision", "lora") if key in named}
    part = Part("part", Modules(dict), **named)
    return Weights(work(part, **mine))(of(state), dict(state).__getitem__)[WEIGHTS]


REPLACED = Replaced(
    re.compile(r"rows"),
    facts=lambda _published: {},
    size=lambda _published: 0,
    transform=lambda _work: lambda _shard, _read: {"rows": {}},
)
STATE = {
    "unused": torch.ones(1),
    "first": torch.arange(3.0),
    "old.rows": torch.ones(2),
    "old.wide.weight": torch.randn(SIDE, SIDE),
    "count": torch.tensor([1, 300], dtype=torch.int64),
    "old.last": torch.full((2,), 0.1, dtype=torch.float32),
}


def keep(name: str) -> str | None:
    return None if name == "unused" else name.removeprefix("old.")


def test_what_is_dropped_or_replaced_hides_nothing_behind_it() -> None:
    found = made(STATE, keep=keep, replaced=REPLACED)
    assert list(found) == ["first", "wide.weight", "count", "last"]
    for name, tensor in found.items():
        published = STATE.get(name, STATE.get(f"old.{name}"))
        assert torch.equal(tensor, cast_to_bf16(published))  # type: ignore[arg-type] # it is there
    assert found["count"].dtype is torch.int64
    assert found["last"].dtype is torch.bfloat16


def test_a_part_that_is_exact_keeps_its_numbers() -> None:
    found = made(STATE, keep=keep, is_exact=True)
    assert {name: t.dtype for name, t in found.items() if name in ("last", "count")} == {
        "last": torch.float32,
        "count": torch.int64,
    }


@pytest.mark.parametrize("precision", ["8bit", "4bit"])
def test_only_the_weights_that_the_part_names_are_quantised(precision: str) -> None:
    state = {**STATE, "old.other.weight": torch.randn(SIDE, SIDE)}
    quantised = re.compile(r"wide\.weight")
    found = made(state, keep=keep, quantised=quantised, precision=precision)
    assert found["other.weight"].dtype is torch.bfloat16
    parts = {name for name in found if name.startswith("wide.")}
    assert {"wide.weight"} < parts
    assert all(name.startswith("wide.weight") for name in parts)
    assert found["wide.weight"].dtype in (torch.int8, torch.uint8)
    assert not [name for name in found if name.startswith("other.weight.")]


def test_a_lora_is_added_to_the_weight_that_it_names_alone() -> None:
    """In bf16, however the weight was published; a bias or a bare parameter has no LoRA."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 3, generator=generator)
    lora = {
        f"{module}.lora_{side}.weight": torch.randn(shape, generator=generator).bfloat16()
        for module in ("inner", "bare")
        for side, shape in (("A", (2, 3)), ("B", (4, 2)))
    }
    state = {
        "inner.bias": torch.ones(4),
        "bare": weight,
        "inner.weight": weight,
        "x.weight": weight,
    }
    found = made(state, lora=lora)
    down, up = lora["inner.lora_A.weight"], lora["inner.lora_B.weight"]
    assert torch.equal(found["inner.weight"], fuse(weight.bfloat16(), down, up))
    assert not torch.equal(found["inner.weight"], weight.bfloat16())
    for name in ("inner.bias", "bare", "x.weight"):
        assert torch.equal(found[name], state[name].bfloat16())


def test_a_part_that_is_replaced_is_made_by_its_replacement() -> None:
    shard = of({"rows": torch.ones(1)})
    read: Callable[[str], Tensor] = {"rows": torch.ones(1)}.__getitem__
    replaced = make_transform(work(Part("part", Modules(dict), replaced=REPLACED)))
    assert replaced(shard, read) == {"rows": {}}
    assert make_transform(work(Part("part", Modules(dict))))(shard, read).keys() == {WEIGHTS}


SHAPES = {"a": (4, 3), "b": (5, 4)}


def lora_of(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    return {
        f"{module}.lora_{side}.weight": torch.zeros(shape)
        for module, (rows, columns) in shapes.items()
        for side, shape in (("A", (2, columns)), ("B", (rows, 2)))
    }


@pytest.mark.parametrize(
    ("shapes", "expected", "reason"),
    [
        (SHAPES, ["b", "a"], None),
        ({"a": (4, 3)}, ["a", "b"], "reaches 1 of the model's 2 modules, and 0 that"),
        ({**SHAPES, "c": (1, 1)}, ["a", "b"], "reaches 2 of the model's 2 modules, and 1 that"),
        ({"a": (4, 3), "b": (4, 4)}, ["a", "b"], "the LoRA's b does not fit"),
        ({"a": (4, 3), "b": (5, 3)}, ["a", "b"], "the LoRA's b does not fit"),
        ({"a": (5, 3), "b": (4, 4)}, ["a", "b"], "the LoRA's a does not fit"),
        ({"a": (4, 3), "c": (1, 1)}, ["a", "c"], "the LoRA's c does not fit"),
    ],
)
def test_a_lora_reaches_exactly_its_modules_and_fits_each(
    shapes: dict[str, tuple[int, int]], expected: list[str], reason: str | None
) -> None:
    shards = [of({f"{module}.weight": torch.zeros(shape)}) for module, shape in SHAPES.items()]
    if reason is None:
        check_lora(lora_of(shapes), shards, expected)
        return
    with pytest.raises(LoraNotApplied, match=reason):
        check_lora(lora_of(shapes), shards, expected)
