"""Which precisions there are to choose from, and what decides between them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from worker import settings
from worker.bundle import choice, layout, needs
from worker.bundle.choice import Candidates
from worker.bundle.layout import Bundle, Component, FileRecord
from worker.bundle.match import Required
from worker.bundle.recipe import Modules, Part, Published, Recipe
from worker.bundle.sizes import WeightSizes
from worker.driver import CONTEXT_BYTES, Gpu
from worker.engine.precision import Need
from worker.engine.quantise import PRECISIONS, Precision
from worker.errors import UnfitHost, WeightsUnavailable
from worker.weights.snapshot import Snapshot
from worker.weights.spec import ModelSpec

SPEC = ModelSpec("toy", "org/toy", "ToyPipeline")
NAME = "org--toy-bf16"
KNOWN = {p: WeightSizes(10 * n, {"matrix": n, "bare": 2 * n}, 5) for n, p in enumerate(PRECISIONS)}


def check(_snapshot: Snapshot, _spec: ModelSpec) -> Published:
    raise AssertionError("nothing is asked of a hub")


RECIPE = Recipe(
    parts=(Part("words"), *(Part(name, Modules(dict)) for name in ("bare", "matrix"))),
    check=check,
    adapted="matrix",
    reached=lambda _config: (),
    waiting="bare",
    working=lambda _spec, _settings, precision, _pixels=None: 10 + PRECISIONS.index(precision),
    passing=lambda _spec, _settings, precision, _pixels=None: 20 + PRECISIONS.index(precision),
)


def add(home: Path, precision: Precision, *, whole: bool = True, **named: Any) -> Path:
    """Add a bundle of the model: its one part is of as many bytes as its precision has digits."""
    part = Component(
        format=layout.FORMAT,
        identity=f"bare-{precision}",
        role="bare",
        recipe={},
        sources={},
        prepared_on="cpu",
        libraries={},
        files={"weights-0": FileRecord(size=8, sha256="")},
    )
    at = home / layout.COMPONENTS / part.identity
    at.mkdir(parents=True, exist_ok=True)
    (at / "weights-0").write_bytes(bytes(8 if whole else 7))
    layout.publish(at, part)
    fields: dict[str, Any] = {
        "format": layout.FORMAT,
        "model": "toy",
        "repository": "org/toy",
        "revision": "c" * 40,
        "asked": "main",
        "pipeline": "ToyPipeline",
        "precision": precision,
        "fused": None,
        "lightning": {},
        "components": {"bare": part.identity},
        "libraries": {},
    }
    folder = home / layout.BUNDLES / f"toy-{precision}"
    folder.mkdir(parents=True, exist_ok=True)
    layout.publish(folder, Bundle(**{**fields, **named}))
    return folder


def among(home: Path, mode: str = "auto", *, is_writable: bool = False) -> Candidates:
    read = settings.read({"MODEL_DIR": str(home), "PRECISION_MODE": mode})
    required = Required(SPEC, None, (), frozenset(), None, only_folder=False)
    return Candidates(RECIPE, read, required, is_writable)


@pytest.mark.parametrize("mode", ["auto", "4bit"])
def test_every_precision_can_be_made_where_it_can_be_written(mode: str, tmp_path: Path) -> None:
    add(tmp_path, "8bit")
    assert choice.list_precisions(among(tmp_path, mode, is_writable=True)) == PRECISIONS


def test_elsewhere_only_what_is_there_and_whole_can_be_chosen(tmp_path: Path) -> None:
    for precision in reversed(PRECISIONS):
        add(tmp_path, precision, whole=precision != "8bit")
    assert choice.list_precisions(among(tmp_path)) == ("4bit", "bf16")
    assert choice.list_precisions(among(tmp_path, "bf16")) == ("4bit", "bf16")
    with pytest.raises(WeightsUnavailable, match="has toy in 4bit, bf16, not in 8bit"):
        choice.list_precisions(among(tmp_path, "8bit"))


def test_where_none_is_there_the_nearest_says_why(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match=r"has no complete bundle of toy: mount the"):
        choice.list_precisions(among(tmp_path))
    add(tmp_path, "bf16", pipeline="LastPipeline")
    add(tmp_path, "8bit", pipeline="OtherPipeline")
    with pytest.raises(WeightsUnavailable, match=r"of toy \(one holds a OtherPipeline"):
        choice.list_precisions(among(tmp_path))


def found(candidates: Candidates, *there: Precision, beside: int = 1) -> dict[Precision, Need]:
    """Return the needs of precisions; what is computed is ten times what was kept."""

    def compute() -> Mapping[Precision, WeightSizes]:
        return {
            p: WeightSizes(0, {role: 100 * n for role, n in size.parts.items()}, 0)
            for p, size in KNOWN.items()
        }

    return choice.find_needs(candidates, there, name=NAME, beside=beside, compute=compute)


COMPUTED = {p: Need(300 * n, 100 * n, "bare") for n, p in enumerate(PRECISIONS)}
KEPT = {p: Need(3 * n + 5, n + 5, "bare") for n, p in enumerate(PRECISIONS)}
MEASURED = Need(8, 0, "bare")


def test_sizes_that_were_kept_are_taken_before_any_other(tmp_path: Path) -> None:
    needs.keep(tmp_path, NAME, KNOWN)
    needs.keep(tmp_path, NAME, KNOWN)
    add(tmp_path, "bf16")
    for mode in ("auto", "bf16"):
        for is_writable in (True, False):
            one = among(tmp_path, mode, is_writable=is_writable)
            assert found(one, "8bit", "bf16") == {p: KEPT[p] for p in ("8bit", "bf16")}


def test_sizes_are_kept_where_nothing_was_kept_before(tmp_path: Path) -> None:
    needs.keep(tmp_path / "not/yet", NAME, KNOWN)
    assert needs.read_kept(tmp_path / "not/yet", NAME, RECIPE) == KNOWN
    assert (tmp_path / "not/yet/sizes" / f"{NAME}.json").is_file(), "as other versions know them"


def test_a_model_without_the_part_that_may_wait_takes_no_less_without_it() -> None:
    sizes: dict[Precision, WeightSizes] = {"bf16": WeightSizes(0, {"matrix": 7}, 2)}
    assert needs.convert_sizes(sizes, RECIPE) == {"bf16": Need(9, 9, "bare")}


def test_sizes_of_0_1_0_are_taken_with_the_count_of_loras(tmp_path: Path) -> None:
    old = add(tmp_path, "bf16", asked=None)
    (tmp_path / layout.BUNDLES / "foo").mkdir()
    needs.keep(tmp_path, "toy-bf16-1", KNOWN)
    writable = among(tmp_path, is_writable=True)
    assert found(writable, "4bit") == {"4bit": KEPT["4bit"]}
    assert found(writable, "4bit", beside=2) == {"4bit": COMPUTED["4bit"]}
    assert layout.find_fault(old) is None


def test_sizes_of_0_1_0_are_not_taken_where_a_newer_bundle_has_the_name(tmp_path: Path) -> None:
    """They may be another model's, which had that name first."""
    add(tmp_path, "bf16", asked=None)
    needs.keep(tmp_path, "toy-bf16-1", KNOWN)
    assert found(among(tmp_path, is_writable=True), "4bit") == {"4bit": KEPT["4bit"]}
    add(tmp_path, "8bit")
    assert found(among(tmp_path, is_writable=True), "4bit") == {"4bit": COMPUTED["4bit"]}


@pytest.mark.parametrize(
    ("mode", "is_writable", "expected"),
    [
        ("auto", True, {"4bit": COMPUTED["4bit"], "bf16": COMPUTED["bf16"]}),
        ("auto", False, {"bf16": MEASURED}),
        ("bf16", True, {"bf16": MEASURED}),
        ("bf16", False, {"bf16": MEASURED}),
        ("4bit", True, {"4bit": COMPUTED["4bit"], "bf16": COMPUTED["bf16"]}),
    ],
)
def test_bundles_are_measured_where_nothing_can_or_must_be_chosen(
    mode: str, is_writable: bool, expected: dict[Precision, Need], tmp_path: Path
) -> None:
    """With auto on a disk that takes another precision the published headers decide."""
    add(tmp_path, "bf16")
    add(tmp_path, "4bit", whole=False)
    assert found(among(tmp_path, mode, is_writable=is_writable), "4bit", "bf16") == expected


NEED: dict[Precision, Need] = {"4bit": Need(100, 40), "8bit": Need(200, 80), "bf16": Need(400, 160)}


@pytest.mark.parametrize(
    ("room", "precision", "offload"),
    [(412, "bf16", False), (411, "8bit", False), (109, "4bit", True), (60, "4bit", True)],
)
def test_on_a_gpu_memory_decides(room: int, precision: str, offload: bool, tmp_path: Path) -> None:
    """Weights and working memory, or what passes through the device where a part waits."""
    gpu = Gpu("one", (9, 0), 1 << 40, room + CONTEXT_BYTES)
    one = choice.choose(among(tmp_path), PRECISIONS, NEED, gpu)
    assert (one.precision, one.offload) == (precision, offload)


def test_a_gpu_that_holds_or_computes_none_is_refused(tmp_path: Path) -> None:
    for gpu in (
        Gpu("small", (9, 0), 1 << 40, 59 + CONTEXT_BYTES),
        Gpu("old", (7, 5), 1 << 40, 1 << 40),
    ):
        with pytest.raises(UnfitHost):
            choice.choose(among(tmp_path), PRECISIONS, NEED, gpu)


def test_without_a_gpu_bf16_is_chosen_where_there_is_one(tmp_path: Path) -> None:
    """Else the most exact one that a read-only disk has, unless another is asked for."""
    chosen = [
        choice.choose(among(tmp_path, mode), there, {}, None)
        for mode, there in (
            ("auto", PRECISIONS),
            ("auto", ("4bit", "8bit")),
            ("auto", ("4bit",)),
            ("4bit", ("4bit", "8bit")),
            ("8bit", PRECISIONS),
        )
    ]
    assert [one.precision for one in chosen] == ["bf16", "8bit", "4bit", "4bit", "8bit"]
    of_disk = ["cannot be written" in one.reason for one in chosen]
    assert of_disk == [False, True, True, False, False]


def test_a_part_that_must_wait_is_no_reason_without_a_gpu(tmp_path: Path) -> None:
    gpu = Gpu("one", (9, 0), 1 << 40, 10**6 + CONTEXT_BYTES)
    only = {p: replace(need, whole=10**7) for p, need in NEED.items()}
    assert choice.choose(among(tmp_path), ("4bit", "8bit"), only, gpu).offload
