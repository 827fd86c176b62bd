"""The bundle knows no model: a family of two matrices is prepared and opened by its recipe."""

import io
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worker import settings
from worker.bundle import expected, fit, headers, layout, needs, pickled, plain, refuse
from worker.bundle.expected import Expected, build_expected
from worker.bundle.fill import fill, find_on_meta, make_empty
from worker.bundle.headers import Shard
from worker.bundle.layout import Damaged
from worker.bundle.open import Opening, make_shared
from worker.bundle.plan import Order, plan
from worker.bundle.prepare import UNNAMED_S, _name_device, compute_sizes, prepare
from worker.bundle.recipe import SMALL_FILES, Modules, Part, Published, Recipe, Replaced
from worker.bundle.stream import OPEN_TRIES
from worker.bundle.tensors import TensorEntry
from worker.engine.precision import Need
from worker.engine.quantise import PRECISIONS, Precision, count_stored_bytes, quantise
from worker.errors import VolumeFull, WeightsUnavailable
from worker.weights.proof import RemoteFile
from worker.weights.snapshot import (
    LOCAL,
    LocalSnapshot,
    Proven,
    ReportProgress,
    Snapshot,
    ignore_progress,
)
from worker.weights.spec import LoraFile, ModelSpec
from worlds.repository import Copying

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
    assert need == Need(size.memory, size.parts["matrix"], "bare")


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


@pytest.mark.parametrize("offload", [False, True])
def test_jobs_of_a_family_that_says_nothing_take_nothing_beside_the_weights(
    folder: Path, *, offload: bool
) -> None:
    order = order_of(folder)
    asked = (order.spec, order.settings, order.precision)
    assert RECIPE.compute_working(*asked, offload=offload) == 0


def test_a_part_of_small_files_alone_has_no_modules() -> None:
    assert not RECIPE.find_part("words").has_weights
    assert (RECIPE.with_weights, RECIPE.copied) == (("matrix", "bare"), ("words",))
    with pytest.raises(ValueError, match="small files alone"):
        SMALL_FILES.stock({})


LORA = "light/8.safetensors"


def add_lora(folder: Path, name: str = LORA) -> None:
    """Add a LoRA of the matrix to a published folder, which has the matrix by our names."""
    file = folder / "matrix/model.safetensors"
    if file.exists():
        save_file({k.removeprefix("old."): t for k, t in load_file(file).items()}, file)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    state = {"inner.lora_A.weight": torch.ones(2, SIDE), "inner.lora_B.weight": torch.ones(SIDE, 2)}
    save_file(state, folder / name)


def part_of(bundle: Path, role: str) -> layout.Component:
    return layout.verify(bundle, "full").parts[role][1]


def test_a_plan_says_of_each_part_what_it_is_made_of_and_how(folder: Path) -> None:
    add_lora(folder)
    order = order_of(folder, "8bit")
    order = replace(order, lightning={8: (order.snapshot, LORA)})
    published = RECIPE.check(order.snapshot, order.spec)
    found = {one.role: one for one in plan(order, published).components}
    assert list(found) == ["lightning_8", "words", "bare", "matrix"]
    digests = {f.path: f"sha256:{layout.hash_file(folder / f.path)}" for f in order.snapshot.files}
    for role, one in found.items():
        mine = {p: d for p, d in digests.items() if p.startswith(f"{role}/")}
        assert one.sources == (mine if role != "lightning_8" else {LORA: digests[LORA]})
        assert one.steps == (8 if role == "lightning_8" else None)
    assert {role: dict(one.facts) for role, one in found.items()} == {
        "lightning_8": {"recipe": 1},
        "words": {"recipe": 1},
        "bare": {"recipe": 1, "precision": "bf16"},
        "matrix": {"recipe": 1, "precision": "8bit"},
    }
    small = len(published.small["bare"]["config.json"])
    assert {role: one.size for role, one in found.items()} == {
        "lightning_8": (folder / LORA).stat().st_size,
        "words": 2,
        "bare": small + 2 * SIDE * (SIDE + 1),
        "matrix": small + count_stored_bytes((SIDE, SIDE), "8bit") + 2 * SIDE,
    }
    fused = {one.role: one for one in plan(replace(order, fused=8), published).components}
    assert list(fused) == ["words", "bare", "matrix"]
    assert fused["matrix"].facts == {"recipe": 1, "precision": "8bit", "fused": digests[LORA]}
    assert fused["bare"] == found["bare"]
    exact = replace(order, recipe=replace(RECIPE, parts=(replace(MATRIX, is_exact=True),)))
    (one,) = plan(replace(exact, lightning={}), published).components
    assert one.facts["precision"] == "published"
    numbers = 4 * (SIDE * SIDE + SIDE)  # in fp32, as they are published
    size = compute_sizes(replace(exact, lightning={}), published)["bf16"]
    assert size.parts == {"matrix": numbers}


def test_a_part_that_a_publisher_leaves_out_is_not_made(folder: Path) -> None:
    (folder / "words/vocab.json").unlink()
    order = order_of(folder)
    planned = plan(order, RECIPE.check(order.snapshot, order.spec))
    assert [one.role for one in planned.components] == ["bare", "matrix"]


def test_loras_beside_the_weights_take_their_size_and_one_in_them_takes_none(folder: Path) -> None:
    add_lora(folder)
    add_lora(folder, "light/4.safetensors")
    order = order_of(folder)
    names = {8: LORA, 4: "light/4.safetensors"}
    order = replace(order, lightning={n: (order.snapshot, name) for n, name in names.items()})
    for fused, expected_size in (
        (None, sum((folder / name).stat().st_size for name in names.values())),
        (8, 0),
    ):
        size = compute_sizes(replace(order, fused=fused))["bf16"]
        assert size.adapters == expected_size
        assert size.disk == size.memory == sum(size.parts.values()) + expected_size


def test_what_replaces_weights_is_on_the_disk_and_what_is_loaded_of_it_in_memory(
    folder: Path,
) -> None:
    order = order_of(folder)
    published = RECIPE.check(order.snapshot, order.spec)
    plain = Replaced(
        re.compile(r"inner\.weight"),
        facts=lambda _published: {},
        size=lambda _published: 1000,
        transform=lambda _work: lambda _shard, _read: {},
    )
    for replaced, loaded in ((plain, 0), (replace(plain, loaded=lambda _published: 70), 70)):
        parts = (*RECIPE.parts[:-1], replace(MATRIX, replaced=replaced))
        made = replace(order, recipe=replace(RECIPE, parts=parts))
        size = compute_sizes(made, published)["bf16"]
        assert size.parts["matrix"] == 2 * SIDE + loaded
        assert size.disk == size.memory + 1000
        small = len(published.small["matrix"]["config.json"])
        assert plan(made, published).components[-1].size == small + 2 * SIDE + loaded + 1000


def test_a_bundle_is_named_by_what_is_asked_for(folder: Path) -> None:
    order = order_of(folder)
    spec = replace(order.spec, revision="v/1")
    names = [
        made.folder.name
        for made in (
            order,
            replace(order, spec=spec, fused=4),
            replace(order, name="mine"),
        )
    ]
    assert names == ["toy-bf16", "toy-v--1-bf16-lightning4", "mine"]
    assert order.folder.parent == order.home / "bundles"


def test_its_manifests_say_what_was_made_of_what(folder: Path) -> None:
    add_lora(folder)
    order = order_of(folder, "8bit")
    spec = replace(
        order.spec,
        lightning={8: LoraFile(None, LORA), 4: LoraFile("org/light", "4")},
        lightning_place="org/light/{n}",
        transformer="org/other",
    )
    order = replace(order, spec=spec, lightning={8: (order.snapshot, LORA)})
    bundle = layout.read_bundle(prepare(order))
    record = layout.LoraRecord(
        repository="org/toy",
        filename=LORA,
        digest=f"sha256:{layout.hash_file(folder / LORA)}",
        scale="",
    )
    found = layout.verify(order.folder).parts
    assert bundle == layout.Bundle(
        format=layout.FORMAT,
        model="toy",
        repository="org/toy",
        revision=LOCAL,
        asked=None,
        pipeline="ToyPipeline",
        precision="8bit",
        fused=None,
        lightning={8: record},
        offered={8: LORA},
        components={role: part.identity for role, (_, part) in found.items()},
        libraries=layout.list_libraries(),
        facts={},
        lightning_place="org/light/{n}",
        replaced="org/other",
    )
    part = found["matrix"][1]
    assert (part.format, part.role, part.prepared_on) == (layout.FORMAT, "matrix", "cpu")
    assert part.recipe == {"recipe": 1, "precision": "8bit"}
    assert set(part.sources) == {"matrix/config.json", "matrix/model.safetensors"}
    assert part.libraries == layout.list_libraries()
    config = part.files["config.json"]
    path = folder / "matrix/config.json"
    assert (config.size, config.sha256) == (path.stat().st_size, layout.hash_file(path))


@pytest.mark.parametrize(("revision", "asked"), [(None, "main"), ("v1", "v1")])
def test_a_repositorys_bundle_remembers_what_was_asked_for(
    revision: str | None, asked: str, folder: Path
) -> None:
    source = Copying(folder)
    order = replace(order_of(folder), snapshot=source)
    bundle = layout.read_bundle(
        prepare(replace(order, spec=replace(order.spec, revision=revision)))
    )
    assert (bundle.asked, bundle.revision) == (asked, source.commit)


def test_one_fused_lora_is_recorded_alone_and_two_beside_each_other(folder: Path) -> None:
    add_lora(folder)
    add_lora(folder, "light/4.safetensors")
    order = order_of(folder)
    both = {8: (order.snapshot, LORA), 4: (order.snapshot, "light/4.safetensors")}
    for fused, expected_steps in ((None, {8, 4}), (4, {4})):
        made = prepare(replace(order, lightning=both, fused=fused))
        assert set(layout.read_bundle(made).lightning) == expected_steps
    plain_one, fused_one = (
        next((order.home / "components").glob(f"{part_of(bundle, 'matrix').identity}/weights-*"))
        for bundle in (prepare(order), made)
    )
    weight = load_file(plain_one)["inner.weight"]
    assert torch.equal(
        load_file(fused_one)["inner.weight"], weight + torch.full((1,), 2.0).bfloat16()
    )


# Room is asked for before the first byte: for what is not there yet.


def find_least(order: Order, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return with how many free bytes an order is taken, and with not one less."""
    free = 0

    def count(_folder: Path, _settings: settings.Settings) -> int:
        return free

    published = RECIPE.check(order.snapshot, order.spec)
    with monkeypatch.context() as patch:
        patch.setattr("worker.weights.space.free_bytes", count)
        patch.setattr("worker.bundle.prepare._make", lambda *_: (_ for _ in ()).throw(Began))
        low, high = -1, 1 << 20
        while high - low > 1:
            free = (low + high) // 2
            try:
                prepare(order, published)
            except Began:
                high = free
            except VolumeFull:
                low = free
    return high


def test_it_is_what_is_planned_and_two_shards_of_a_download(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = order_of(folder)
    published = RECIPE.check(order.snapshot, order.spec)
    planned = sum(one.size for one in plan(order, published).components)
    assert find_least(order, monkeypatch) == planned
    remote = replace(order, snapshot=Copying(folder))
    shards = sum(path.stat().st_size for path in folder.rglob("model.safetensors"))
    assert find_least(remote, monkeypatch) == planned + shards
    # a third one of one bf16 number, which is not among the two largest
    first, second = (f"bare/model-0000{n}-of-00002.safetensors" for n in (1, 2))
    (folder / "bare/model.safetensors").rename(folder / first)
    save_file({"inner.tiny": torch.zeros(1)}, folder / second)
    many = replace(order, snapshot=Copying(folder))
    assert find_least(many, monkeypatch) == planned + shards + 2


def test_what_is_there_is_not_asked_for_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = replace(order_of(folder), snapshot=Copying(folder))
    whole = find_least(order, monkeypatch)
    bundle = prepare(order)
    assert find_least(order, monkeypatch) == 0
    place, part = layout.verify(bundle).parts["matrix"]
    (name,) = [name for name in part.files if name.startswith(layout.WEIGHTS)]
    (place / name).unlink()
    (place / "folder").mkdir()
    there = sum(path.stat().st_size for path in place.iterdir() if path.is_file())
    shards = sum(path.stat().st_size for path in folder.rglob("model.safetensors"))
    planned = {
        one.role: one.size for one in plan(order, check(order.snapshot, order.spec)).components
    }
    assert find_least(order, monkeypatch) == planned["matrix"] - there + shards < whole


def test_what_is_quarantined_makes_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = order_of(folder)
    bundle = prepare(order)
    old = [layout.quarantine(layout.verify(bundle).parts[role][0]) for role in ("matrix",)]
    (old[0].parent / f"words-x{layout.DAMAGED}1").mkdir()

    def count(_folder: Path, _settings: settings.Settings) -> int:
        return 0 if any(path.exists() for path in old) else 1 << 30

    monkeypatch.setattr("worker.weights.space.free_bytes", count)
    assert layout.find_fault(prepare(order)) is None
    assert (old[0].parent / f"words-x{layout.DAMAGED}1").exists()


class Began(Exception):
    """Preparing has begun."""


def test_what_a_killed_run_left_is_deleted_once_nobody_can_have_opened_it(folder: Path) -> None:
    order = order_of(folder)
    published = RECIPE.check(order.snapshot, order.spec)
    (words,) = (one for one in plan(order, published).components if one.role == "words")
    place = order.home / layout.COMPONENTS / words.identity
    place.mkdir(parents=True)
    now = place.stat().st_mtime
    for name, age in (("a-old", UNNAMED_S + 60), ("b-new", UNNAMED_S - 60), ("c-old", 1e6)):
        (place / name).touch()
        os.utime(place / name, (now - age, now - age))
    (place / "inner").mkdir()
    os.utime(place / "inner", (0, 0))
    prepare(order)
    names = {path.name for path in place.iterdir()}
    assert names == {"b-new", "inner", "vocab.json", layout.MANIFEST}


@pytest.mark.parametrize("kind", ["bundles", "components"])
def test_what_a_dead_process_wrote_is_deleted_from_the_volume(kind: str, folder: Path) -> None:
    order = order_of(folder)
    left = order.home / kind / "any" / ".x.json.h00000000-1-1-1.part"
    left.parent.mkdir(parents=True)
    left.touch()
    os.utime(left, (0, 0))
    prepare(order)
    assert not left.exists()


def test_a_part_of_another_size_is_told_and_its_remains_go_once_it_is_made(folder: Path) -> None:
    order = order_of(folder)
    place, part = layout.verify(prepare(order)).parts["matrix"]
    (name,) = (name for name in part.files if name.startswith(layout.WEIGHTS))
    os.truncate(place / name, 1)
    with structlog.testing.capture_logs() as lines:
        bundle = prepare(order)
    (line,) = (line for line in lines if line["log_level"] == "warning")
    assert line["event"] == "damaged part quarantined"
    assert f"{place.name} is damaged: {name} has 1 bytes" in line["reason"]
    assert layout.find_fault(bundle) is None
    assert list(place.parent.glob(f"*{layout.DAMAGED}*")) == []


def test_what_is_there_takes_no_lock(folder: Path) -> None:
    """Another worker may hold one for long: it is of the same part only by a mistake of a disk."""
    order = order_of(folder)
    prepare(order)
    assert {path.name for path in order.home.iterdir()} == {"bundles", "components", "locks"}
    shutil.rmtree(order.home / "locks")
    prepare(order)
    assert not (order.home / "locks").exists()


def test_a_device_is_recorded_by_what_decides_its_last_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    assert _name_device(torch.device("cpu")) == "cpu"
    assert _name_device(torch.device("cuda")) == "cuda 9.0"


class Dropping(Copying):
    """A volume on which another worker deletes a LoRA before it is opened, some times."""

    times = 0

    def fetch_file(
        self, file: RemoteFile, into: Path, progress: ReportProgress = ignore_progress
    ) -> Proven:
        """Copy a file; it is gone at once."""
        found = super().fetch_file(file, into, progress)
        if file.path == LORA and self.times > 0:
            self.times -= 1
            found.path.unlink()
        return found


@pytest.mark.parametrize("times", [0, OPEN_TRIES - 1, OPEN_TRIES])
def test_a_lora_that_another_worker_deletes_is_fetched_again_but_not_for_ever(
    times: int, folder: Path
) -> None:
    add_lora(folder)
    source = Dropping(folder)
    source.times = times
    order = replace(order_of(folder), snapshot=source, lightning={8: (source, LORA)})
    if times == OPEN_TRIES:
        with pytest.raises(FileNotFoundError):
            prepare(order)
    else:
        assert part_of(prepare(order), "lightning_8").files
    assert source.fetched.count(LORA) == min(times + 1, OPEN_TRIES)


@pytest.mark.parametrize("keep", ["false", "true"])
def test_loras_of_two_repositories_never_share_a_file(keep: str, folder: Path) -> None:
    """Each repository has a folder of its own; what was downloaded goes unless it is kept."""
    add_lora(folder)
    other = folder.parent / "other"
    other.mkdir()
    add_lora(other)
    source = Copying(folder)
    order = replace(
        order_of(folder),
        snapshot=source,
        lightning={8: (source, LORA), 4: (Copying(other, "bob/light"), LORA)},
        settings=settings.read({"MIN_STORAGE_FREE_GB": "0", "KEEP_SOURCE_WEIGHTS": keep}),
    )
    prepare(order)
    left = {path.relative_to(order.into).as_posix() for path in order.into.rglob("8.safetensors")}
    kept = {LORA, f"bob--light-{source.commit}/{LORA}"}
    assert left == (kept if keep == "true" else set())


def test_a_lora_that_lies_on_a_disk_of_the_operators_stays(folder: Path) -> None:
    add_lora(folder)
    order = order_of(folder)
    prepare(replace(order, lightning={8: (order.snapshot, LORA)}))
    assert (folder / LORA).exists()


def test_a_part_that_another_worker_published_meanwhile_is_not_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked for once more when the lock is ours."""
    source = Copying(folder)
    order = replace(order_of(folder), snapshot=source)
    prepare(order)
    hidden = order.home / "hidden"
    (order.home / layout.COMPONENTS).rename(hidden)
    source.fetched.clear()
    acquire = "filelock.FileLock.acquire"

    def arrive(self: object, *_: object, **__: object) -> object:
        if hidden.exists():
            for place in (order.home / layout.COMPONENTS).glob("*"):
                place.rmdir()
            (order.home / layout.COMPONENTS).rmdir()
            hidden.rename(order.home / layout.COMPONENTS)
        return self

    monkeypatch.setattr(acquire, arrive)
    (order.home / layout.COMPONENTS).mkdir()
    prepare(order)
    assert source.fetched == []


# A part that cannot be opened is damaged, whatever its files make a library raise.


def spoil(bundle: Path, role: str, name: str, data: bytes) -> Path:
    """Write a file of a part, of the same size."""
    place, part = layout.verify(bundle).parts[role]
    size = part.files[name].size
    (place / name).write_bytes(data.ljust(size))
    return place


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "config.json cannot be read"),
        (b"[" * 23, "config.json cannot be read"),
        (b"[1]", "config.json is not a JSON object"),
        (b'{"other": 1}', "no modules can be built from it"),
        (b'{"side": 32}', "it does not fit its modules"),
    ],
)
def test_a_configuration_is_named(data: bytes, reason: str, folder: Path) -> None:
    bundle = prepare(order_of(folder))
    place = spoil(bundle, "matrix", "config.json", data)
    with (
        Opening(bundle, RECIPE, CPU) as opening,
        pytest.raises(Damaged, match=reason) as caught,
    ):
        opening.open_module("matrix")
    assert caught.value.folder == place


def test_a_small_file_is_named(folder: Path) -> None:
    bundle = prepare(order_of(folder))

    def fail(_folder: Path) -> None:
        raise RuntimeError("anything")

    with (
        Opening(bundle, RECIPE, CPU) as opening,
        pytest.raises(Damaged, match=r"cannot be opened \(RuntimeError\)") as caught,
    ):
        opening.open_files("words", fail)
    assert caught.value.folder == layout.verify(bundle).parts["words"][0]


def test_a_part_has_its_tensors_by_name(folder: Path) -> None:
    with Opening(prepare(order_of(folder)), RECIPE, CPU) as opening:
        assert opening.has_tensor("matrix", "inner.bias")
        assert not opening.has_tensor("matrix", "unused")
        assert opening.list_mapped("matrix") == []
        assert opening.read_json("matrix")["sign"] == -1
        assert opening.read_json("words", "vocab.json") == {}


def test_what_waits_is_a_part_of_its_own_and_is_mapped_like_the_rest(folder: Path) -> None:
    """On a CPU a weight is the kernel's cache of its file, not a copy."""
    bundle, share = prepare(order_of(folder)), make_shared()
    with Opening(bundle, RECIPE, CPU, share=share) as opening:
        here, matrix = opening.open_module("bare"), opening.open_module("matrix")
    with Opening(bundle, RECIPE, CPU, share=share, waiting=CPU) as opening:
        waiting = opening.open_module("bare")
        assert opening.open_module("matrix") is not matrix
    with Opening(bundle, RECIPE, CPU, share=share, waiting=CPU) as opening:
        assert opening.open_module("bare") is waiting is not here
    for module in (here, matrix, waiting):
        assert "/weights-" in find_mapping(module.inner.weight)


@pytest.mark.parametrize("passes", [False, True])
def test_only_what_passes_through_the_device_stays_packed(folder: Path, *, passes: bool) -> None:
    """Layers of the same size are copied to one place; others are unpacked on a CPU."""
    streamed = (lambda _model: NOTHING_STREAMED) if passes else None
    waits = replace(MATRIX, modules=Modules(stock, streamed=streamed))
    recipe = replace(RECIPE, parts=(RECIPE.parts[0], BARE, waits), waiting="matrix")
    bundle = prepare(order_of(folder, "4bit"))
    kinds = []
    for waiting in (None, CPU):
        with Opening(bundle, recipe, CPU, waiting=waiting) as opening:
            model = opening.build_bare("matrix")
            opening.fill("matrix", model)
            kinds.append(type(model.inner).__name__)
    assert kinds == ["Linear", "Linear4bit" if passes else "Linear"]


NOTHING_STREAMED: Any = ()


def find_mapping(tensor: Tensor) -> str:
    """Return the line of this process's map in which a tensor lies."""
    address = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= address < last:
            return line
    return ""


class Mixed(nn.Module):
    """Parameters with memory and without, of numbers and of codes, and buffers below."""

    def __init__(self) -> None:
        super().__init__()
        self.real = nn.Parameter(torch.ones(2))
        with make_empty():
            self.codes = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
            self.inner = nn.Sequential(nn.BatchNorm1d(2))


def test_a_model_is_filled_wherever_its_tensors_are() -> None:
    model = Mixed()
    state = {
        "codes": torch.tensor([1, 2], dtype=torch.int8),
        "inner.0.weight": torch.tensor([3.0, 4.0]),
        "inner.0.bias": torch.tensor([5.0, 6.0]),
    }
    fill(model, state, "bf16", CPU)
    assert all(torch.equal(model.get_parameter(name), tensor) for name, tensor in state.items())
    assert torch.equal(model.real, torch.ones(2))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert dict(model.named_buffers(recurse=False)) == {}
    assert dict(model.inner.named_buffers(recurse=False)) == {}
    vars(model)["table"] = {"a": [torch.ones(1), (torch.ones(1, device="meta"),)]}
    assert list(find_on_meta(model)) == [".table.a.1.0"]
    with pytest.raises(ValueError, match="1 tensors have no memory"):
        fill(model, {}, "bf16", CPU)


def test_buffers_come_to_the_device_of_the_model() -> None:
    """On the one that keeps nothing all three are missed."""
    model = nn.Sequential(nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="3 tensors have no memory"):
        fill(model, {}, "bf16", torch.device("meta"))


@pytest.mark.parametrize(("named", "kind"), [({}, "Linear"), ({"packed": True}, "Linear4bit")])
def test_small_weights_are_unpacked_unless_they_are_to_stay_packed(
    named: dict[str, bool], kind: str
) -> None:
    with make_empty():
        model = nn.Sequential(nn.Linear(SIDE, SIDE, bias=False))
    stored = quantise(torch.randn(SIDE, SIDE), "4bit", CPU)
    fill(model, {f"0.{key}": part for key, part in stored.items()}, "4bit", CPU, **named)
    assert type(model[0]).__name__ == kind


def test_buffers_of_empty_modules_are_real_whatever_accelerate_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_INIT_INCLUDE_BUFFERS", "1")
    with make_empty():
        module = nn.BatchNorm1d(2)
    assert module.weight.is_meta
    assert not any(buffer.is_meta for buffer in module.buffers())


# Published headers against modules.

KEPT: Mapping[str, tuple[int, ...]] = {"a": (2,), "b": (3,), "c": (4,)}


def explain_misfit(*files: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return why files do not fit; a name with "no" is dropped, "x." is taken off."""
    shards = [
        Shard(
            RemoteFile(f"part/{n}", 1),
            {name: TensorEntry(torch.bfloat16, shape, 0, 0) for name, shape in file.items()},
        )
        for n, file in enumerate(files)
    ]
    part = Part(
        "part",
        Modules(dict),
        keep=lambda name: None if name.startswith("no") else name.removeprefix("x."),
        shown=lambda _published: lambda name: f"x.{name}",
    )
    fits = Expected(KEPT, frozenset({"d"}), {})
    for shard in fit.drop_unkept(part, shards, fits):
        assert {name.removeprefix("x.") for name in shard.header} <= set(KEPT)
    kept = [len(shard.header) for shard in fit.drop_unkept(part, shards, fits)]
    assert sum(kept) == sum(name.removeprefix("x.") in KEPT for file in files for name in file)
    try:
        fit.check(part, shards, fits)
    except WeightsUnavailable as error:
        return error.message
    return None


def test_every_tensor_is_there_once_and_in_its_shape() -> None:
    assert explain_misfit({"no": (1,), "d": (9,), "x.a": (2,)}, {"b": (3,), "c": (4,)}) is None


@pytest.mark.parametrize(
    ("files", "reason", "more"),
    [
        (
            ({"x.a": (2,), "a": (2,), "b": (3,), "c": (4,)},),
            "a is in part/0 and again in part/0",
            0,
        ),
        (({"a": (2,), "b": (3,)}, {"b": (3,), "c": (4,), "a": (2,)}), "b is in part/0", 1),
        (({"b": (3,), "c": (4,)},), "part/ lacks x.a", 0),
        (({"b": (3,)},), "part/ lacks x.a", 1),
        (({"a": (2,), "b": (3,), "c": (4,)}, {"e": (1,)}), "e of part/1 has no place", 0),
        (({"a": (2,), "b": (3,), "c": (5,)},), "c of part/0 has the shape [5], not [4]", 0),
        (({"a": (1, 2), "b": (3,), "c": (5,)},), "a of part/0 has the shape [1, 2]", 1),
    ],
)
def test_what_does_not_fit_is_named_and_counted(
    files: tuple[dict[str, tuple[int, ...]], ...], reason: str, more: int
) -> None:
    message = str(explain_misfit(*files))
    assert reason in message
    assert ("more such" in message) == (more > 0)
    assert more == 0 or f"(and {more} more such)" in message


def test_a_part_must_have_what_its_modules_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(model: Matrix) -> Matrix:
        model.inner.register_parameter("bias", None)
        return model

    part = Part("part", Modules(stock, bare=cut))
    found = build_expected(part, {"side": 3})
    assert found.kept == {"inner.weight": (3, 3)}
    assert found.dropped == {"inner.bias"}
    assert found.config == {"side": 3, "sign": 1}
    normed = Part("part", Modules(lambda _config: Mixed(), filled=lambda _model: {}))
    assert build_expected(normed, {}).dropped == {
        f"inner.0.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    monkeypatch.setattr(expected, "LONGEST_REASON", 9)
    with pytest.raises(WeightsUnavailable, match=r"built: TypeError: Matrix.__$"):
        build_expected(part, {"wrong": 1})


# A pickle is read as tensors alone.


def dump(value: object) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


@pytest.mark.parametrize("force", ["0", "1"])
def test_no_code_in_it_is_run(force: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever torch is told otherwise."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)

    class Code:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(tmp_path / "run"),)

    with pytest.raises(WeightsUnavailable, match=r"x\.bin is not a file of tensors alone"):
        pickled.read_pickled_header(dump({"a": Code()}), "x.bin")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "value", [[], torch.zeros(1), {1: torch.zeros(1)}, {"a": torch.zeros(1), "b": 1}]
)
def test_only_a_mapping_of_names_to_tensors_is_one(value: object, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match=r"x\.bin is not a mapping of names to tensors"):
        pickled.read_pickled_header(dump(value), "x.bin")
    (tmp_path / "x.bin").write_bytes(dump(value))
    with (
        pytest.raises(WeightsUnavailable, match=r"x\.bin is not a mapping"),
        pickled.open_weights(tmp_path / "x.bin"),
    ):
        pass


def test_one_of_tensors_on_a_gpu_is_read_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("torch.serialization.location_tag", lambda _storage: "cuda:0")
        (tmp_path / "x.bin").write_bytes(dump({"a": torch.ones(2)}))
    with pickled.open_weights(tmp_path / "x.bin") as read:
        assert torch.equal(read("a"), torch.ones(2))


@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.pth"])
def test_its_tensors_are_those_that_were_saved(name: str, tmp_path: Path) -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1, dtype=torch.int8)}
    assert pickled.is_pickle(name)
    assert not pickled.is_pickle(f"{name}.safetensors")
    found = pickled.read_pickled_header(dump(state), name)
    assert found == {
        "a": TensorEntry(torch.float32, (2, 3), 0, 0),
        "b": TensorEntry(torch.int8, (1,), 0, 0),
    }
    (tmp_path / name).write_bytes(dump(state))
    with pickled.open_weights(tmp_path / name) as read:
        assert torch.equal(read("a"), state["a"])
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError), pickled.open_weights(tmp_path / name):
        pass


@pytest.mark.parametrize("message", ["x is broken", "org/toy: x is broken"])
def test_a_fault_names_its_repository_once(message: str, folder: Path) -> None:
    with (
        pytest.raises(WeightsUnavailable) as caught,
        refuse.name_repository(LocalSnapshot(folder, "org/toy")),
    ):
        raise WeightsUnavailable(message)
    assert caught.value.message == "org/toy: x is broken"


def test_small_files_are_tried_together_and_their_fault_names_the_part() -> None:
    files = {"a.json": b"{}", "b.txt": b"x"}
    found = plain.try_opening(
        "words", files, lambda at: {path.name: path.read_bytes() for path in at.iterdir()}, "Toy"
    )
    assert found == files

    def fail(_folder: Path) -> None:
        raise RuntimeError("anything")

    with pytest.raises(
        WeightsUnavailable, match=r"words/ cannot be opened \(RuntimeError\).*a Toy"
    ):
        plain.try_opening("words", files, fail, "Toy")
