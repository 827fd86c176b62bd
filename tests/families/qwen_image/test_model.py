"""One warm model serves every schedule in any order, and no picture depends on the one before."""

import contextlib
import copy
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_dimensions
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import CONDITION_IMAGE_SIZE
from PIL import Image, ImageChops
from safetensors.torch import save_file

from worker import boot, residency, settings
from worker.driver import CONTEXT_BYTES, Gpu
from worker.engine import device as devices
from worker.engine.lora import LoraLinear
from worker.engine.sampler import make_noise
from worker.errors import (
    BadPicture,
    CudaOutOfMemory,
    DeviceLost,
    InvalidSettings,
    LoraNotApplied,
    LoraRefused,
    UnfitHost,
)
from worker.families import drawing, opener
from worker.families.catalogue import CATALOGUE
from worker.families.memory import Phases
from worker.families.qwen_image import model as qwen_image
from worker.families.qwen_image import planning, vae
from worker.families.qwen_image.model import QwenImage
from worker.families.qwen_image.working import count_frame_bytes
from worker.loras.ready import ReadyLora
from worker.seam import Control, Phase
from worker.tasks.picture import PictureWish, offer_of
from worlds import making
from worlds.making import made


class Listener(Control):
    """Records what a picture reports while it is made, and stops it at `stop_at`."""

    def __init__(self, stop_at: tuple[Phase, int] | None = None) -> None:
        self.reports: list[tuple[Phase, int, int]] = []
        self._stop_at = stop_at

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """Record, and raise InterruptedError at the step to stop at."""
        self.reports.append((phase, step, steps))
        if (phase, step) == self._stop_at:
            raise InterruptedError


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, QwenImage]]:
    """The embedded pair, opened as a worker opens it."""
    home = tmp_path_factory.mktemp("home")
    opened: Any = boot.boot(settings.read({"MODEL": "tiny", "MODEL_DIR": str(home)}))
    yield {name: opened.take(name) for name in ("tiny-image", "tiny-edit")}
    for name in ("tiny-image", "tiny-edit"):
        opened.take(name).release()


PROMPTS = ("a small red circle on a blue background", "a large green star on a white background")
TEXT = PictureWish(
    task="text-to-image",
    prompt=PROMPTS[0],
    negative_prompt=None,
    references=(),
    width=96,
    height=96,
    steps=8,
    true_cfg_scale=1.0,
    lightning=True,
    seed=5,
)
REFERENCE = Image.linear_gradient("L").resize((96, 96)).convert("RGB")
EDIT = replace(TEXT, task="edit", prompt="make it blue", references=(REFERENCE,))
BASE: Any = {"lightning": False, "negative_prompt": " ", "true_cfg_scale": 4.0, "steps": 5}


def drawn(model: QwenImage, wish: PictureWish) -> bytes:
    """Draw one picture and return its pixels."""
    return making.drawn(model, wish, Listener()).tobytes()


def test_any_order_gives_the_same_pictures(models: dict[str, QwenImage]) -> None:
    """Eight steps, four steps and base with CFG, each after each of the others."""
    jobs = [TEXT, replace(TEXT, steps=4), replace(TEXT, **BASE), replace(TEXT, prompt=PROMPTS[1])]
    model = models["tiny-image"]
    first = [drawn(model, job) for job in jobs]
    assert len(set(first)) == len(jobs)
    for order in itertools.permutations(range(len(jobs)), 2):
        assert [drawn(model, jobs[i]) for i in order] == [first[i] for i in order]


def lora_for(model: QwenImage, folder: Path, seed: int, modules: list[str]) -> ReadyLora:
    """Write a LoRA for a model, strong enough to be seen."""
    path = folder / f"{seed}.safetensors"
    transformer = model._parts.transformer
    linears: dict[str, Any] = {name: transformer.get_submodule(name) for name in modules}
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, linear in linears.items():
        inner: Any = linear.base if isinstance(linear, LoraLinear) else linear
        state[f"{name}.lora_A.weight"] = torch.randn(seed, inner.in_features, generator=generator)
        state[f"{name}.lora_B.weight"] = torch.randn(inner.out_features, seed, generator=generator)
    save_file({key: tensor * 0.1 for key, tensor in state.items()}, path)
    return ReadyLora(f"lora {seed}", f"sha256:{path}", 0.8, path, None, is_callers=True)


def test_a_job_with_loras_leaves_no_trace(models: dict[str, QwenImage], tmp_path: Path) -> None:
    """Beside Lightning and without, of different ranks, one on modules that Lightning has not."""
    model = models["tiny-image"]
    block = "transformer_blocks.0.attn.to_q"
    loras = (
        lora_for(model, tmp_path, 3, [block, "proj_out"]),
        lora_for(model, tmp_path, 5, [block, "img_in", "txt_in"]),
    )
    for wish in (TEXT, replace(TEXT, **BASE)):
        before = drawn(model, wish)
        styled = replace(wish, loras=loras)
        with_both = drawn(model, styled)
        found = made(model, styled).found["loras"]
        assert [one.modules for one in found] == [2, 3]
        pictures = {before, with_both, drawn(model, replace(wish, loras=loras[:1]))}
        assert len(pictures) == 3
        assert drawn(model, wish) == before
        assert drawn(model, styled) == with_both
        assert drawn(model, replace(wish, loras=())) == before


def test_a_phase_without_memory_leaves_no_lora_that_is_not_in_use_and_nothing_cached(
    models: dict[str, QwenImage], tmp_path: Path
) -> None:
    model = models["tiny-image"]
    lora = lora_for(model, tmp_path, 4, ["proj_out"])
    guests = model._loras._guests
    for used in ((lora,), ()):
        drawn(model, replace(TEXT, loras=used))
        assert repr(lora.identity) in guests.attached
    computed: list[int] = []

    def compute() -> torch.Tensor:
        computed.append(1)
        return torch.zeros(1)

    model._cache.get("a", compute)
    failing = Scarce(lambda _: None, 1, torch.OutOfMemoryError("full"))
    model._phases.run("text", "here alone", failing)
    assert guests.attached == ()
    model._cache.get("a", compute)
    assert len(computed) == 2
    model._cache.clear()


def test_a_start_makes_warm_up_pictures_and_then_compiles_the_rest(
    models: dict[str, QwenImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, done = models["tiny-image"], list[tuple[Any, ...]]()
    monkeypatch.setattr(qwen_image, "make_warm_ups", lambda *given: done.append(given))
    monkeypatch.setattr(qwen_image, "compile_rest", lambda *given: done.append(given))
    model.warm()
    assert done == [(model, model.served), (model._parts,)]


def test_pictures_with_other_loras_share_no_step(
    models: dict[str, QwenImage], tmp_path: Path
) -> None:
    model = models["tiny-image"]
    lora = lora_for(model, tmp_path, 3, ["proj_out"])
    one = model.make_key(replace(TEXT, loras=(lora,)))
    assert one == model.make_key(replace(TEXT, seed=9, loras=(replace(lora, name="other"),)))
    for other in ((), (replace(lora, scale=0.7),), (replace(lora, digest="sha256:1"),)):
        assert one != model.make_key(replace(TEXT, loras=other))


def test_a_lora_of_the_time_embedding_is_refused_and_the_next_job_is_as_ever(
    models: dict[str, QwenImage], tmp_path: Path
) -> None:
    """The rows were computed from it."""
    model = models["tiny-image"]
    name = "time_text_embed.timestep_embedder.linear_1"
    lora = lora_for(model, tmp_path, 3, ["proj_out", name])
    before = drawn(model, TEXT)
    with pytest.raises(LoraRefused, match=rf"lora 3: {name} changes the modulation"):
        drawn(model, replace(TEXT, loras=(lora,)))
    assert drawn(model, TEXT) == before


def test_edits_share_nothing_either(models: dict[str, QwenImage]) -> None:
    """A cached prompt or reference changes no picture, and another reference changes it."""
    model = models["tiny-edit"]
    other = replace(EDIT, references=(ImageChops.invert(REFERENCE),))
    two = replace(EDIT, references=(REFERENCE, ImageChops.invert(REFERENCE)))
    first = [drawn(model, job) for job in (EDIT, other, two)]
    assert len(set(first)) == 3
    assert [drawn(model, job) for job in (two, EDIT, other)] == [first[2], first[0], first[1]]


def test_a_seed_is_a_picture(models: dict[str, QwenImage]) -> None:
    """The same seed gives the same bytes, another does not, and 0 and 2**63 - 1 are seeds."""
    model = models["tiny-image"]
    seeds = [0, 1, 2**63 - 1]
    pictures = [drawn(model, replace(TEXT, seed=seed)) for seed in seeds]
    assert len(set(pictures)) == 3
    assert [drawn(model, replace(TEXT, seed=seed)) for seed in seeds] == pictures


def test_noise_does_not_depend_on_the_batch() -> None:
    """Each seed's noise is generated alone."""
    batch = make_noise([3, 4], 16, 12, 12, torch.bfloat16)
    assert torch.equal(batch[1:], make_noise([4], 16, 12, 12, torch.bfloat16))


@pytest.mark.parametrize("name", ["tiny-image", "tiny-edit"])
def test_a_text_that_is_cut_is_reported_if_it_was_used(
    models: dict[str, QwenImage], name: str
) -> None:
    """The prompt always, the negative prompt where CFG runs."""
    long = "red " * 1025
    asked = replace(TEXT if name == "tiny-image" else EDIT, **{**BASE, "steps": 2})
    cut, negative_cut = (f"the {what}prompt was cut at 1024 tokens" for what in ("", "negative "))
    for changes, expected in (
        ({}, ()),
        ({"prompt": long}, (cut,)),
        ({"negative_prompt": long}, (negative_cut,)),
        ({"prompt": long, "negative_prompt": long}, (cut, negative_cut)),
        ({"negative_prompt": long, "true_cfg_scale": 1.5}, (negative_cut,)),
        ({"negative_prompt": long, "true_cfg_scale": 1.0}, ()),
        ({"negative_prompt": None, "true_cfg_scale": 4.0}, ()),
    ):
        generation = replace(asked, **changes)
        assert made(models[name], generation, Listener()).warnings == expected


def test_steps_are_reported_in_order(models: dict[str, QwenImage]) -> None:
    """Text, reference, then every step of the loop."""
    listener = Listener()
    made(models["tiny-edit"], EDIT, listener)
    steps = [("denoise", step, 8) for step in range(1, 9)]
    assert listener.reports == [("text", 1, 1), ("reference", 1, 1), *steps]


@pytest.mark.parametrize("stop_at", [("text", 1), ("reference", 1), ("denoise", 3), ("denoise", 8)])
def test_a_stop_takes_effect_within_a_step(
    models: dict[str, QwenImage], stop_at: tuple[Phase, int]
) -> None:
    """Nothing runs after the report that raised, and the next picture is right."""
    model = models["tiny-edit"]
    expected = drawn(model, EDIT)
    listener = Listener(stop_at)
    with pytest.raises(InterruptedError):
        made(model, EDIT, listener)
    assert listener.reports[-1][:2] == stop_at
    assert drawn(model, EDIT) == expected


def test_nan_latents_are_a_bad_picture(models: dict[str, QwenImage]) -> None:
    """A model that breaks down is an error, not a black success; the next picture is right."""
    model = models["tiny-image"]
    expected = drawn(model, TEXT)
    bias = model._parts.transformer.proj_out.bias
    kept = bias.detach().clone()
    with torch.no_grad():
        bias.fill_(float("nan"))
    with pytest.raises(BadPicture):
        made(model, TEXT, Listener())
    with torch.no_grad():
        bias.copy_(kept)
    assert drawn(model, TEXT) == expected


def test_lightning_without_its_lora_is_an_error(models: dict[str, QwenImage]) -> None:
    """Never a silent base picture."""
    with pytest.raises(LoraNotApplied):
        made(models["tiny-image"], replace(TEXT, steps=6), Listener())


@pytest.mark.parametrize(
    ("reference", "output", "encoded"),
    [
        ((96, 96), (96, 96), (96, 96)),
        ((192, 192), (64, 64), (64, 64)),  # the same aspect: the output's size, nothing shifts
        ((300, 100), (96, 96), (160, 64)),  # another: its own aspect at the model's area
        ((1030, 1000), (64, 64), (64, 64)),  # ln 1.030 < 0.03
        ((1031, 1000), (64, 64), (96, 96)),
        ((1000, 1030), (64, 64), (64, 64)),
        ((1000, 1031), (64, 64), (96, 96)),
        ((200, 100), (128, 64), (128, 64)),
        ((100, 200), (128, 64), (64, 128)),
    ],
)
def test_references_are_encoded_aligned_with_the_output(
    models: dict[str, QwenImage],
    reference: tuple[int, int],
    output: tuple[int, int],
    encoded: tuple[int, int],
) -> None:
    """A reference of the output's aspect has the output's size to the pixel."""
    generation = replace(EDIT, width=output[0], height=output[1])
    assert (
        models["tiny-edit"].choose_reference_size(Image.new("RGB", reference), generation)
        == encoded
    )


@pytest.mark.parametrize("area", [96 * 96, 384 * 384, 1024 * 1024])
@pytest.mark.parametrize("ratio", [0.4, 9 / 16, 1.0, 1.031, 4 / 3, 16 / 9, 2.5])
def test_a_reference_has_the_size_that_the_stock_pipeline_gives_it(area: int, ratio: float) -> None:
    assert qwen_image.fit_area(area, ratio) == calculate_dimensions(area, ratio)[:2]
    assert qwen_image.CONDITION_AREA == CONDITION_IMAGE_SIZE


def test_a_reference_has_a_size_whatever_its_aspect() -> None:
    """Where the stock pipeline would make a side of nothing."""
    assert qwen_image.fit_area(100, 1.0) == (32, 32)
    assert qwen_image.fit_area(96 * 96, 1000.0) == (3040, 32)
    assert qwen_image.fit_area(96 * 96, 1 / 1000) == (32, 3040)


def test_references_of_the_same_bytes_and_other_shapes_are_distinguished(
    models: dict[str, QwenImage],
) -> None:
    """The cache goes by the pixels and where they are."""
    level, other = Image.new("RGB", (64, 128), "teal"), Image.new("RGB", (128, 64), "teal")
    assert level.tobytes() == other.tobytes()
    model = models["tiny-edit"]
    first = replace(EDIT, references=(level,))
    second = replace(EDIT, references=(other,))
    expected = drawn(model, second)
    model._cache.clear()
    assert drawn(model, first) != expected
    assert drawn(model, second) == expected


def test_a_reference_is_resized_once_for_all_prompts_and_not_for_one_that_is_cached(
    models: dict[str, QwenImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To what the text encoder sees; the VAE's size is the reference's own here."""
    model = models["tiny-edit"]
    reference = REFERENCE.rotate(90).resize((192, 192))
    resized: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def count(image: Image.Image, size: Any, *given: Any, **named: Any) -> Image.Image:
        if image is reference:
            resized.append(size)
        return resize(image, size, *given, **named)

    monkeypatch.setattr(Image.Image, "resize", count)
    asked = replace(EDIT, references=(reference,), **{**BASE, "steps": 2})
    model._cache.clear()
    shown, encoded = model._choose_shown_size(reference), (96, 96)
    for expected in (list({shown, encoded}), []):
        resized.clear()
        drawn(model, asked)
        assert resized == expected
    drawn(model, replace(asked, prompt="make it green"))
    assert resized == [shown]


def test_every_phase_reports_how_long_it_took(models: dict[str, QwenImage]) -> None:
    """In milliseconds, and together not more than the total."""
    phases = {"tiny-image": ["denoise", "decode", "text"]}
    phases["tiny-edit"] = [*phases["tiny-image"], "reference"]
    for name, generation in (("tiny-image", TEXT), ("tiny-edit", EDIT)):
        models[name]._cache.clear()
        start = time.perf_counter()
        result = made(models[name], generation, Listener())
        whole_ms = (time.perf_counter() - start) * 1000
        assert sorted(result.timings_ms) == sorted(phases[name])
        assert min(result.timings_ms.values()) > 0
        assert whole_ms / 10 < sum(result.timings_ms.values()) <= whole_ms
        assert result.peak_vram_mb == 0


class Counting:
    """A transformer that counts its forwards."""

    def __init__(self, real: Any) -> None:
        self._real, self.forwards = real, 0

    def __call__(self, *given: Any) -> Any:
        """Count, and run the real one."""
        self.forwards += 1
        return self._real(*given)


@pytest.mark.parametrize(
    ("changes", "forwards"),
    [
        ({}, 10),
        ({"true_cfg_scale": 1.0}, 5),
        ({"true_cfg_scale": 0.5}, 5),
        ({"true_cfg_scale": 1.01}, 10),
        ({"negative_prompt": None}, 5),
    ],
)
def test_a_step_runs_twice_only_where_cfg_does_something(
    models: dict[str, QwenImage],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    forwards: int,
) -> None:
    model = models["tiny-image"]
    counting = Counting(model._parts.forward)
    monkeypatch.setattr(model._parts, "forward", counting)
    made(model, replace(TEXT, **{**BASE, **changes}), Listener())
    assert counting.forwards == forwards


def test_the_scale_and_the_negative_prompt_change_the_picture(
    models: dict[str, QwenImage],
) -> None:
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"true_cfg_scale": 2.0},
        {"negative_prompt": PROMPTS[1]},
        {"negative_prompt": None},
    )
    pictures = {drawn(models["tiny-image"], replace(TEXT, **{**BASE, **c})) for c in changes}
    assert len(pictures) == len(changes)


class Scarce:
    """What a phase calls, which fails the first `times`; records with what it was called."""

    def __init__(self, real: Any, times: int, error: Exception) -> None:
        self._real, self._left, self._error = real, times, error
        self.calls: list[dict[str, Any]] = []

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Record, and fail or run the real one."""
        self.calls.append(named)
        if self._left > 0:
            self._left -= 1
            raise copy.copy(self._error)
        return self._real(*given, **named)


PLACES: dict[Phase, tuple[Any, str]] = {
    "text": (lambda model: model._prompts, "encode"),
    "reference": (lambda model: model._vae, "encode"),
    "denoise": (lambda model: model._parts, "forward"),
    "decode": (lambda model: model._vae, "decode"),
}


def make_scarce(
    model: QwenImage,
    monkeypatch: pytest.MonkeyPatch,
    times: dict[Phase, int],
    error: Exception = torch.OutOfMemoryError("CUDA out of memory."),  # noqa: B008 - copied
) -> dict[Phase, Scarce]:
    """Let phases fail so many times, with nothing remembered of earlier ones."""
    monkeypatch.setattr(model, "_phases", Phases(model._cache.clear))
    model._cache.clear()
    placed = {}
    for phase, (find, name) in PLACES.items():
        placed[phase] = Scarce(getattr(find(model), name), times.get(phase, 0), error)
        monkeypatch.setattr(find(model), name, placed[phase])
    return placed


@pytest.mark.parametrize("short", ["text", "reference", "denoise", "decode"])
def test_only_the_phase_that_ran_out_of_memory_runs_again(
    models: dict[str, QwenImage], monkeypatch: pytest.MonkeyPatch, short: Phase
) -> None:
    """What the phases before it made is kept; of one tile, the picture is the very same."""
    model = models["tiny-edit"]
    expected = drawn(model, EDIT)
    runs: dict[Phase, int] = {"text": 1, "reference": 1, "denoise": EDIT.steps, "decode": 1}
    placed = make_scarce(model, monkeypatch, {short: 1})
    assert drawn(model, EDIT) == expected
    assert {phase: len(each.calls) for phase, each in placed.items()} == {
        phase: count + (phase == short) for phase, count in runs.items()
    }


@pytest.mark.parametrize("short", ["text", "reference", "denoise", "decode"])
def test_a_phase_that_runs_out_of_memory_twice_fails(
    models: dict[str, QwenImage], monkeypatch: pytest.MonkeyPatch, short: Phase
) -> None:
    model = models["tiny-edit"]
    placed = make_scarce(model, monkeypatch, {short: 2})
    with pytest.raises(CudaOutOfMemory):
        made(model, EDIT, Listener())
    assert len(placed[short].calls) == 2
    assert drawn(model, EDIT)


@pytest.mark.parametrize("short", ["text", "reference", "denoise", "decode"])
def test_a_lost_device_is_fatal(
    models: dict[str, QwenImage], monkeypatch: pytest.MonkeyPatch, short: Phase
) -> None:
    """The CUDA context cannot be repaired in this process: nothing is tried again."""
    lost = torch.AcceleratorError("CUDA error: unspecified launch failure")
    placed = make_scarce(models["tiny-edit"], monkeypatch, {short: 1}, lost)
    with pytest.raises(DeviceLost) as caught:
        made(models["tiny-edit"], EDIT, Listener())
    assert caught.value.fatal
    assert len(placed[short].calls) == 1


def test_the_second_job_of_a_size_decodes_in_tiles_at_once(
    models: dict[str, QwenImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one of another size in one piece; so do references of each size."""
    model = models["tiny-edit"]
    other = replace(EDIT, width=128, height=64)
    placed = make_scarce(model, monkeypatch, {"reference": 1, "decode": 1})
    for asked in (EDIT, EDIT, other):
        model._cache.clear()
        drawn(model, asked)
    for phase in ("decode", "reference"):
        tiled = [named["tiled"] for named in placed[phase].calls]
        assert tiled[:3] == [False, True, True]
        # the other size's reference has the model's own area, as the first's has
        assert tiled[3:] == [phase == "reference"]


def test_tiling_is_decided_before_decoding_where_memory_is_short(
    models: dict[str, QwenImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No failure is needed where what is free is known, and what a picture needs is computed."""
    model = models["tiny-edit"]
    need = count_frame_bytes(96 * 96, model._parts.vae.config.base_dim)
    for free, tiled in ((need - 1, True), (need, False), (None, False)):
        monkeypatch.setattr(vae, "count_free_bytes", lambda _device, free=free: free)
        with monkeypatch.context() as patch:
            placed = make_scarce(model, patch, {})
            drawn(model, EDIT)
        for phase in ("decode", "reference"):
            assert [named["tiled"] for named in placed[phase].calls] == [tiled]


@pytest.mark.parametrize("steps", [(8, 4), (4,), ()], ids=str)
def test_a_gpu_is_warmed_with_every_adapter_and_two_lengths_of_prompt(
    models: dict[str, QwenImage], steps: tuple[int, ...]
) -> None:
    """Each of them picks kernels of its own; a CPU has none to pick."""
    served = models["tiny-edit"].served
    offer = replace(offer_of(served), lightning_steps=steps)
    served = replace(served, offers=dict.fromkeys(served.offers, offer))
    first, longer, *others = drawing.list_warm_ups(served, has_gpu=True)
    assert [wish.steps for wish in (first, *others)] == list(steps or (2,))
    assert longer == replace(first, prompt=longer.prompt)
    assert len(longer.prompt) > 10 * len(first.prompt)
    assert drawing.list_warm_ups(served, has_gpu=False) == [first]


def test_a_model_runs_where_the_gpu_is_if_there_is_one() -> None:
    assert opener.choose_device(None) == torch.device("cpu")
    assert opener.choose_device(Gpu("H100", (9, 0), 80 << 30, 79 << 30)) == torch.device("cuda")


def test_a_released_model_is_gone(tmp_path: Path) -> None:
    """Its modules are dropped, so that another model has the room."""
    opened: Any = boot.boot(settings.read({"MODEL": "tiny-image", "MODEL_DIR": str(tmp_path)}))
    model = opened.take("tiny-image")
    model._cache.get("a", lambda: torch.zeros(1))
    model.release()
    assert model._cache.get("a", lambda: torch.ones(1)) == 1
    with pytest.raises(AttributeError):
        made(model, TEXT, Listener())


def test_memory_that_a_released_model_leaves_behind_is_found(tmp_path: Path) -> None:
    """Something still refers to the transformer: the next model has no room."""
    opened: Any = boot.boot(settings.read({"MODEL": "tiny-image", "MODEL_DIR": str(tmp_path)}))
    model: Any = opened.take("tiny-image")
    leak = model._parts.transformer
    with pytest.raises(DeviceLost, match="not freed"):
        model.release()
    assert leak is not None


def test_two_models_that_do_not_fit_together_take_turns(tmp_path: Path) -> None:
    """Each comes back as it was, and its memory was free meanwhile, after a stopped one too."""
    given = settings.read({"MODEL": "tiny", "MODEL_DIR": str(tmp_path)})
    specs = CATALOGUE.resolve(given.model, given, has_gpu=False)
    turns = residency.Residency([qwen_image.make_ready(s, given, None) for s in specs], budget=1)
    pictures = []
    for name, asked in (("tiny-image", TEXT), ("tiny-edit", EDIT)) * 2:
        model: Any = turns.take(name)
        with contextlib.suppress(InterruptedError):
            made(model, asked, Listener(stop_at=("denoise", 1)))
        pictures.append(drawn(model, asked))
        health: Any = turns.report_health()["models"]
        assert [one for one in health if health[one]["resident"]] == [name]
    assert pictures[:2] == pictures[2:]


def opening(monkeypatch: pytest.MonkeyPatch, times: int) -> list[torch.device | None]:
    """Let opening a bundle run out of memory so many times; return where text encoders went."""
    tried: list[torch.device | None] = []
    real: Any = qwen_image.OPENER.open_bundle

    def opened(*given: Any, waiting: torch.device | None, **named: Any) -> Any:
        tried.append(waiting)
        if len(tried) <= times:
            raise torch.OutOfMemoryError("full")
        return real(*given, waiting=waiting, **named)

    changed = replace(qwen_image.OPENER, open_bundle=opened)
    monkeypatch.setattr(qwen_image, "make_ready", changed.make_ready)
    return tried


def test_out_of_memory_while_opening_moves_the_text_encoder_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The second try has it in the host's memory, and serves."""
    tried = opening(monkeypatch, times=1)
    environ = {"MODEL": "tiny-image", "MODEL_DIR": str(tmp_path)}
    model: Any = boot.boot(settings.read(environ)).take("tiny-image")
    assert tried == [None, torch.device("cpu")]
    assert drawn(model, TEXT)


def test_out_of_memory_twice_while_opening_is_advice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Trying again cannot help: the operator learns which precision or pool would do."""
    opening(monkeypatch, times=2)
    environ = {"MODEL": "tiny-image", "MODEL_DIR": str(tmp_path)}
    with pytest.raises(InvalidSettings, match="PRECISION_MODE=4bit") as caught:
        boot.boot(settings.read(environ))
    assert not caught.value.retryable


H100 = Gpu("H100", (9, 0), 100, 80 + CONTEXT_BYTES)


@pytest.mark.parametrize(
    ("gpu", "offload", "times", "tried"),
    [
        (None, False, 0, [(None, None)]),
        (None, False, 1, [(None, None), ("cpu", None)]),
        (None, False, 2, [(None, None), ("cpu", None)]),
        (None, True, 0, [("cpu", None)]),
        (None, True, 1, [("cpu", None)]),
        # 80 bytes, less 29 of the weights and 15 of a job
        (H100, False, 0, [(None, 36)]),
        (H100, False, 3, [(None, 36), (None, None), ("cpu", None)]),
        (H100, True, 1, [("cpu", 36), ("cpu", None)]),
    ],
)
def test_what_runs_out_of_memory_opens_unmerged_and_then_with_the_text_encoder_on_the_host(
    gpu: Gpu | None,
    *,
    offload: bool,
    times: int,
    tried: list[tuple[str | None, int | None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There at once where the device has no room for it; memory is freed after each, and told."""
    freed: list[str] = []
    monkeypatch.setattr(devices, "free_memory", lambda: freed.append("freed"))
    asked: list[dict[str, Any]] = []

    def opened(folder: Path, device: torch.device, **named: Any) -> Any:
        assert (folder, device) == (Path("bundle"), torch.device("cuda" if gpu else "cpu"))
        asked.append(named)
        if len(asked) <= times:
            raise torch.OutOfMemoryError("full")
        return "parts"

    given = settings.read({"VERIFY": "full"})
    place: Any = replace(qwen_image.OPENER, open_bundle=opened)._place
    parts = SimpleNamespace(folder=Path("bundle"), offload=offload, parts={"a": 9, "b": 20})
    served = SimpleNamespace(working=15)
    unfit = contextlib.suppress(UnfitHost) if times == len(tried) else contextlib.nullcontext()
    with structlog.testing.capture_logs() as lines, unfit:
        assert place(parts, served, given, gpu) == "parts"
    assert len(freed) == times
    assert [line["text_encoder"] for line in lines if line["log_level"] == "warning"] == [
        where or "gpu" for where, _ in tried[:times]
    ]
    assert [(named["waiting"], named["spare"]) for named in asked] == [
        (None if where is None else torch.device(where), spare) for where, spare in tried
    ]
    for named in asked:
        assert named["verify"] == given.verify
        assert named["share"] is opener.SHARED
        assert named["compiled_batch"] == (1 if gpu else 0)


def test_what_is_served_follows_the_bundle_and_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that another model has goes to what MODEL called it."""
    spec = CATALOGUE.find_row("qwen-image")
    found = replace(spec, name="found", defaults=replace(spec.defaults, steps=33))
    obtained = SimpleNamespace(
        spec=found,
        bundle=SimpleNamespace(revision="abc", precision="8bit", facts={}),
        lightning=(4, 8),
        parts={"a": 9 << 30},
        facts={"b": 2},
        folder=Path("bundle"),
        offload=False,
    )
    limited: list[torch.device] = []
    monkeypatch.setattr(devices, "limit_threads", limited.append)

    def obtain(*_: Any) -> Any:
        assert len(limited) == 1
        return obtained

    monkeypatch.setattr(opener, "obtain", obtain)
    given = settings.read({})
    small = settings.read({"MAX_PIXELS": "4096", "MAX_INPUT_IMAGES": "1"})
    # 1 GB is CUDA's own; of a picture of 2048 x 2048 the decoder alone takes 3.3 GB
    free = (9 << 30) + 4_500_000_000
    for gpu, side in ((None, 2048), (Gpu("L4", (8, 9), 24 << 30, free), 1536)):
        limited.clear()
        openable = qwen_image.make_ready(spec, given, gpu)
        assert limited == [opener.choose_device(gpu)]
        assert (openable.parts, openable.facts) == ({"a": 9 << 30}, {"b": 2})
        served = openable.served
        offer = offer_of(served)
        assert (served.id, offer.steps, offer.max_pixels) == ("found", 33, side * side)
        assert (served.revision, served.precision) == ("abc", "8bit")
        assert offer.lightning_steps == (4, 8)
        for offload, plan in ((False, planning.plan_working), (True, planning.plan_passing)):
            obtained.offload = offload
            limited.clear()
            working = qwen_image.make_ready(spec, small, gpu).served.working
            assert working == plan(found, small, "8bit", 64 * 64)
        obtained.offload = False
        limited.clear()
        assert qwen_image.prepare(spec, given, gpu) == Path("bundle")
    for taken, name in (("found", "qwen-image"), ("qwen-image", "found")):
        limited.clear()
        assert qwen_image.make_ready(spec, given, None, taken={taken}).served.id == name
