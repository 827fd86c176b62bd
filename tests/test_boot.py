"""What a worker says of its models follows from the catalogue, the settings and the device."""

import gc
import importlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import structlog
from PIL import Image

from worker import boot, preflight, settings
from worker.driver import CONTEXT_BYTES, Gpu
from worker.errors import InvalidSettings, UnfitHost
from worker.families.catalogue import CATALOGUE
from worker.families.pictures import describe
from worker.finding import Finding
from worker.media.picture import Picture
from worker.seam import Control, Made, Openable, Served, Unheard
from worker.tasks.picture import PictureWish, offer_of, warm_up
from worker.weights.spec import list_lightning_steps
from worlds.published import EDIT, IMAGE, offering

SPECS = {spec.name: spec for spec in CATALOGUE.rows}
GB = 1 << 30


def lightning(name: str, **environ: str) -> tuple[int, ...]:
    """Return the step counts that a worker with this environment holds."""
    return list_lightning_steps(SPECS[name], settings.read(environ))


def test_eight_steps_are_loaded_unless_set_otherwise() -> None:
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


def served(name: str, left: int | None, **environ: str) -> Served:
    """Describe a model whose jobs take a byte per pixel."""
    return describe(
        SPECS[name],
        settings.read(environ),
        revision="0",
        precision="4bit",
        lightning=(8,),
        working=lambda pixels: pixels,
        left=left,
    )


@pytest.mark.parametrize(
    ("left", "side"),
    [
        (0, 1024),
        (1024 * 1024, 1024),
        (1328 * 1328 - 1, 1024),
        (1328 * 1328, 1328),
        (1536 * 1536 - 1, 1328),
        (1536 * 1536, 1536),
        (2048 * 2048 - 1, 1536),
        (2048 * 2048, 2048),
        (80 * GB, 2048),
        (None, 2048),
    ],
)
def test_the_largest_picture_is_the_largest_that_fits_beside_the_weights(
    left: int | None, side: int
) -> None:
    """And MAX_PIXELS overrules it; what it takes is known to whoever keeps models in memory."""
    given = served("qwen-image", left)
    assert offer_of(given).max_pixels == given.working == side * side
    given = served("qwen-image", left, MAX_PIXELS="1000000")
    assert offer_of(given).max_pixels == given.working == 1_000_000


def test_a_model_takes_as_many_references_as_it_and_the_settings_allow() -> None:
    spec = SPECS["qwen-image-edit-2511"]
    for most, expected in (("1", 1), ("2", 2), ("3", 3)):
        given = describe(
            spec,
            settings.read({"MAX_INPUT_IMAGES": most}),
            revision="abc",
            precision="8bit",
            lightning=(4, 8),
            working=lambda pixels: pixels,
            left=80 * GB,
        )
        assert offer_of(given).max_references == expected
    first = describe(
        SPECS["qwen-image-edit"],
        settings.read({}),
        revision="0",
        precision="bf16",
        lightning=(),
        working=lambda pixels: pixels,
        left=None,
    )
    assert offer_of(first).max_references == 1
    offer, own = offer_of(given), spec.defaults
    assert (given.id, given.repository) == (spec.name, spec.repository)
    assert (given.revision, given.precision, offer.lightning_steps) == ("abc", "8bit", (4, 8))
    assert (given.licence, given.tasks, offer.sizes) == (spec.licence, spec.tasks, own.sizes)
    assert (offer.steps, offer.true_cfg_scale) == (own.steps, own.true_cfg_scale)
    assert (offer.area, offer.negative_prompt) == (own.area, own.negative_prompt)


def test_a_small_model_makes_no_large_pictures() -> None:
    """At most four times the area that the embedded model was trained at."""
    given = describe(
        SPECS["tiny-image"],
        settings.read({}),
        revision="0",
        precision="bf16",
        lightning=(),
        working=lambda pixels: pixels,
        left=None,
    )
    assert offer_of(given).max_pixels == 4 * 96 * 96


class Recording:
    """A model that keeps its wishes."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.wishes: list[PictureWish] = []

    def make_key(self, wish: PictureWish) -> None:
        """Share no forward."""
        del wish

    def read_ahead(self, wish: PictureWish) -> PictureWish:
        """Return it as it is."""
        return wish

    def make(self, wishes: Sequence[PictureWish], controls: Sequence[Control]) -> list[Made]:
        """Draw next to nothing."""
        for wish, control in zip(wishes, controls, strict=True):
            control.report("denoise", 1, wish.steps)
        self.wishes += wishes
        return [Made(Picture(Image.new("RGB", (1, 1))), timings_ms={}) for _ in wishes]

    def warm(self) -> None:
        """Draw what a model of pictures warms up with."""
        self.make([warm_up(self.served)], [Unheard()])

    def release(self) -> None:
        """Free nothing."""


@pytest.mark.parametrize(
    ("area", "side"), [(1024 * 1024, 1024), (1328 * 1328, 1312), (96 * 96, 96), (40 * 40, 64)]
)
def test_a_warm_up_draws_at_the_models_own_size(area: int, side: int) -> None:
    model = Recording(offering(EDIT, area=area))
    model.warm()
    (wish,) = model.wishes
    assert (wish.width, wish.height) == (side, side)
    assert [reference.size for reference in wish.references] == [(side, side)]


def test_a_warm_up_is_of_the_kind_that_jobs_will_be() -> None:
    """An edit where the model can, Lightning where it is loaded; else two steps."""
    edit, image = Recording(EDIT), Recording(offering(IMAGE, lightning_steps=()))
    edit.warm()
    image.warm()
    assert replace(edit.wishes[0], references=()) == PictureWish(
        task="edit",
        prompt=edit.wishes[0].prompt,
        negative_prompt=None,
        references=(),
        width=1024,
        height=1024,
        steps=8,
        true_cfg_scale=1.0,
        lightning=True,
        seed=0,
    )
    (wish,) = image.wishes
    assert (wish.task, wish.steps, wish.lightning) == ("text-to-image", 2, False)
    assert wish.references == ()
    assert edit.wishes[0].references[0].mode == "RGB"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """A machine without a GPU, with these findings, on which nothing is opened."""
    found: list[Finding] = []
    monkeypatch.setattr(preflight, "find_usable_gpu", lambda: None)
    monkeypatch.setattr(preflight, "check", lambda _: found)
    opened = SimpleNamespace(
        make_ready=lambda spec, *_, **__: openable(spec.name),
        prepare=lambda spec, chosen, _: chosen.home / spec.name,
    )
    monkeypatch.setattr(boot, "import_family", lambda _: opened)
    return found


def openable(name: str) -> Openable:
    """Describe a model that can be opened at once."""
    served = replace(offering(EDIT, area=64 * 64), id=name, working=7)
    return Openable(served, {name: 1}, lambda: Recording(served))


def started(tmp_path: Path, **environ: str) -> list[Any]:
    """Start a worker and return what it warned of."""
    given = {"MODEL_DIR": str(tmp_path), **environ}
    with structlog.testing.capture_logs() as lines:
        boot.boot(settings.read(given))
    return [line for line in lines if line["log_level"] == "warning"]


@pytest.mark.usefixtures("machine")
def test_a_start_says_that_the_embedded_model_is_not_the_one_people_come_for(
    tmp_path: Path,
) -> None:
    (line,) = started(tmp_path)
    assert "serving the small embedded checkpoint" in line["event"]
    assert started(tmp_path, MODEL="tiny") == []


@pytest.mark.usefixtures("machine")
def test_a_start_says_that_pictures_may_come_from_inside(tmp_path: Path) -> None:
    (line,) = started(tmp_path, MODEL="tiny", ALLOWED_IMAGE_NETWORKS="10.0.0.0/8:80")
    assert line["networks"] == ["10.0.0.0/8:80"]


def test_a_start_logs_what_is_not_as_it_should_be(machine: list[Finding], tmp_path: Path) -> None:
    machine += [Finding("gpu", "ok", "there"), Finding("disk", "advice", "small", "enlarge it")]
    (line,) = started(tmp_path, MODEL="tiny")
    assert (line["event"], line["check"], line["change"]) == ("preflight", "disk", "enlarge it")


def test_a_start_that_cannot_succeed_says_why_and_what_to_do(
    machine: list[Finding], tmp_path: Path
) -> None:
    machine += [
        Finding("gpu", "fatal", "old", "take a newer"),
        Finding("disk", "advice", "small", "enlarge it"),
        Finding("torch", "fatal", "bad", "install another"),
    ]
    with pytest.raises(InvalidSettings) as refused:
        started(tmp_path, MODEL="tiny")
    assert refused.value.message == "gpu: old; take a newer; torch: bad; install another"


@pytest.mark.parametrize(("of_host", "is_unfit"), [((True, True), True), ((True, False), False)])
def test_only_a_machine_that_is_all_that_is_wrong_is_unfit(
    machine: list[Finding], tmp_path: Path, of_host: tuple[bool, bool], *, is_unfit: bool
) -> None:
    """With the same settings another machine would start, so its jobs are worth another try."""
    machine += [Finding("x", "fatal", "bad", of_host=one) for one in of_host]
    with pytest.raises(InvalidSettings) as refused:
        started(tmp_path, MODEL="tiny")
    assert isinstance(refused.value, UnfitHost) is is_unfit


@pytest.mark.usefixtures("machine")
def test_every_model_that_fits_is_warm_after_a_start(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as lines:
        models = boot.boot(settings.read({"MODEL": "tiny", "MODEL_DIR": str(tmp_path)}))
    warm = [line["model"] for line in lines if line["event"] == "model warm"]
    for name in warm:
        model: Any = models.find_open(name)
        assert len(model.wishes) == 1
    assert warm == [served.id for served in models.served]
    assert all(0 <= line["seconds"] < 3600 for line in lines if line["event"] == "model warm")
    assert len(warm) >= 1
    assert lines[-1]["event"] == "started"


def test_what_pictures_take_is_left_free_of_models(
    machine: list[Finding], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And what CUDA takes: here the models' weights are one byte each, a job's share is seven."""
    assert machine == []
    for free, resident in ((CONTEXT_BYTES + 9, 2), (CONTEXT_BYTES + 8, 1)):
        gpu = Gpu("a card", (8, 9), 24_000_000_000, free)
        monkeypatch.setattr(preflight, "find_usable_gpu", lambda gpu=gpu: gpu)
        models = boot.boot(
            settings.read({"MODEL": "tiny-image,tiny-edit", "MODEL_DIR": str(tmp_path)})
        )
        facts: Any = models.report_health()["models"]
        assert sum(fact["resident"] for fact in facts.values()) == resident


def test_what_jobs_may_request_is_limited_by_the_room_of_the_card(
    machine: list[Finding], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Beside the weights of both, one byte each; without a card nothing is limited."""
    assert machine == []
    given: list[int] = []

    def make_ready(spec: Any, *_: Any, **__: Any) -> Openable:
        def limit(left: int) -> Openable:
            given.append(left)
            return openable(spec.name)

        return replace(openable(spec.name), limit=limit)

    monkeypatch.setattr(boot, "import_family", lambda _: SimpleNamespace(make_ready=make_ready))
    chosen = settings.read({"MODEL": "tiny-image,tiny-edit", "MODEL_DIR": str(tmp_path)})
    boot.boot(chosen)
    assert given == []
    gpu = Gpu("a card", (8, 9), 24_000_000_000, CONTEXT_BYTES + 20)
    monkeypatch.setattr(preflight, "find_usable_gpu", lambda: gpu)
    boot.boot(chosen)
    assert given == [18, 18]


@pytest.mark.usefixtures("machine")
def test_a_model_gets_no_name_that_another_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither one of MODEL's words nor one that a bundle before it turned out to be."""
    taken: list[set[str]] = []

    def make_ready(spec: Any, *_: Any, **given: Any) -> Openable:
        taken.append(given["taken"])
        return openable(f"known-{spec.name}")

    monkeypatch.setattr(boot, "import_family", lambda _: SimpleNamespace(make_ready=make_ready))
    environ = {"MODEL": "tiny-image,tiny-edit,qwen-image", "MODEL_DIR": str(tmp_path)}
    models = boot.boot(settings.read(environ))
    names = ["known-tiny-image", "known-tiny-edit", "known-qwen-image"]
    assert [model.id for model in models.served] == names
    assert taken == [
        {"tiny-edit", "qwen-image"},
        {"tiny-image", "qwen-image", *names[:1]},
        {"tiny-image", "tiny-edit", *names[:2]},
    ]


@pytest.mark.usefixtures("machine")
def test_a_worker_knows_which_published_models_can_do_a_task(tmp_path: Path) -> None:
    models = boot.boot(settings.read({"MODEL": "tiny", "MODEL_DIR": str(tmp_path)}))
    for row in CATALOGUE.rows:
        for task in ("text-to-image", "edit", "speech"):
            can = task in row.tasks and row.embedded is None
            assert (row.name in models.list_addable(task)) is can
    assert models.list_addable("unheard-of") == ()


@pytest.mark.usefixtures("machine")
def test_every_word_of_a_command_is_prepared(tmp_path: Path) -> None:
    chosen = settings.read({"MODEL": "tiny-image,tiny-edit", "MODEL_DIR": str(tmp_path)})
    assert boot.prepare(chosen) == [tmp_path / "tiny-image", tmp_path / "tiny-edit"]


def test_without_a_word_what_the_machine_can_serve_is_prepared(
    machine: list[Finding], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert machine == []
    chosen = settings.read({"MODEL_DIR": str(tmp_path)})
    names = [folder.name for folder in boot.prepare(chosen)]
    assert names
    assert all(SPECS[name].embedded is not None for name in names)
    gpu = Gpu("a card", (8, 9), 24_000_000_000, 24_000_000_000)
    monkeypatch.setattr(preflight, "find_usable_gpu", lambda: gpu)
    assert boot.prepare(chosen) == [tmp_path / "qwen-image-edit-2511"]


def test_what_is_imported_is_never_looked_through_for_garbage() -> None:
    """Nor while it is imported, and what comes after it is; whatever the import ends with."""
    code = """
        import gc
        from worker import boot
        collections = []
        gc.callbacks.append(lambda phase, info: collections.append(phase))
        before = gc.get_freeze_count()
        try:
            boot.import_family("worker.families.nobodys")
        except ModuleNotFoundError:
            print(gc.isenabled(), gc.get_freeze_count() == before)
        collections.clear()
        boot.import_family("worker.families.orpheus.model")
        print(collections, gc.isenabled(), gc.get_freeze_count() > 100_000)
        kept, later = gc.get_freeze_count(), [[], []]
        boot.import_family("worker.families.orpheus.model")
        print(gc.get_freeze_count() == kept)
    """
    words = (sys.executable, "-c", textwrap.dedent(code))
    said = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert said.splitlines() == ["True True", "[] True True", "True"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        ({"PYTORCH_ALLOC_CONF": "x"}, {"PYTORCH_ALLOC_CONF": "x"}),
        ({"PYTORCH_CUDA_ALLOC_CONF": "y"}, {"PYTORCH_CUDA_ALLOC_CONF": "y"}),
        ({"TORCH_CUDNN_SDPA_AVOID_RECOMPILE": "0"}, {"PYTORCH_ALLOC_CONF": mock.ANY}),
    ],
)
def test_torch_is_set_up_before_it_is_imported_where_the_operator_has_not(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: dict[str, str]
) -> None:
    """Wherever the worker runs, not only in its image."""
    seen: list[dict[str, str]] = []
    names: list[str] = []

    def import_module(name: str) -> str:
        names.append(name)
        seen.append(dict(os.environ))
        return f"the module {name}"

    monkeypatch.setattr(os, "environ", dict(given))
    monkeypatch.setattr(importlib, "import_module", import_module)
    assert boot.import_family("any") == "the module any"
    assert gc.isenabled()
    assert set(names) == {"worker.engine", "any"}
    recompile = given.get("TORCH_CUDNN_SDPA_AVOID_RECOMPILE", "1")
    assert seen[0] == {**expected, "TORCH_CUDNN_SDPA_AVOID_RECOMPILE": recompile}
