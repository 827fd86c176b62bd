"""The blocks compile as one graph for all sizes, and all graphs are there before the first job."""

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch._dynamo.backends.debugging import aot_eager
from torch.compiler._cache import CacheArtifactManager

from worker import boot, settings
from worker.engine import compiled
from worker.engine.compiled import Compiled
from worker.engine.lora import Adapters
from worker.families import opener
from worker.families.catalogue import CATALOGUE
from worker.families.opener import choose_compiled_batch, find_kept_graphs
from worker.families.qwen_image.compiling import compile_rest
from worker.families.qwen_image.denoising import Conditioning, LatentShape
from worker.families.qwen_image.forward import Forward
from worker.families.qwen_image.model import QwenImage
from worker.loras.ready import ReadyLora
from worker.seam import Unheard, take_made
from worker.tasks.picture import PictureWish
from worlds.compilers import run_and_record, run_as_traced
from worlds.loras import FORMS, published_lora, small_transformer, write_form

# an output alone, with one reference and with two; with as many tokens as the first text has
SHAPES: list[list[LatentShape]] = [
    [(1, 4, 4)],
    [(1, 5, 7), (1, 3, 4)],
    [(1, 6, 4), (1, 4, 4), (1, 9, 3)],
]


def predict(
    forward: Forward, shapes: list[LatentShape], text: int, rows: int = 1, *, padded: bool = False
) -> torch.Tensor:
    """Return a prediction for pictures of these shapes and a text of so many tokens."""
    generator = torch.Generator().manual_seed(text)
    tokens = sum(frames * height * width for frames, height, width in shapes)
    latents = torch.randn(rows, tokens, 16, generator=generator)
    embeds = torch.randn(rows, text, 32, generator=generator)
    mask = torch.arange(text).expand(rows, text) < text - 2 if padded else None
    with torch.inference_mode():
        return forward(latents, torch.full((rows,), 0.75), Conditioning(embeds, mask), shapes)


def test_one_graph_for_all_sizes_and_one_more_for_adapters_of_a_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Traced as inductor gets it; the results are the plain forward's."""
    monkeypatch.setattr(compiled, "compile_for_device", aot_eager)
    model = small_transformer(zero_cond_t=True)
    adapters, plain, forward = Adapters(model), Forward(model), Forward(model, is_compiled=True)
    for name, state in [(name, published_lora(model, seed)) for seed, name in enumerate("ab")]:
        adapters.attach(name, state)
    run: Any = forward._run_block
    for graphs, adapter in ((1, None), (2, "a"), (2, "b"), (2, None), (2, "a")):
        adapters.use(adapter)
        for shapes, text in itertools.product(SHAPES, (16, 9, 40)):
            expected = predict(plain, shapes, text)
            assert torch.allclose(predict(forward, shapes, text), expected, atol=1e-5)
        assert run.graphs == graphs
    # prompts of unequal length have a mask
    expected = predict(plain, SHAPES[1], 9, 2, padded=True)
    assert torch.allclose(predict(forward, SHAPES[1], 9, 2, padded=True), expected, atol=1e-5)
    assert (run.graphs, run.is_active) == (3, True)


REFERENCE = Image.linear_gradient("L").resize((96, 96)).convert("RGB")
EDIT = PictureWish(
    task="edit",
    prompt="make it blue",
    negative_prompt=None,
    references=(REFERENCE,),
    width=96,
    height=96,
    steps=4,
    true_cfg_scale=1.0,
    lightning=True,
    seed=5,
)
WISHES = [
    replace(EDIT, lightning=False, steps=2, negative_prompt="a red one", true_cfg_scale=4.0),
    replace(EDIT, width=64, height=128, prompt="a large green star on a white background"),
]


def draw(model: QwenImage, wish: PictureWish, rows: int) -> list[bytes]:
    """Return the pixels of so many pictures in one batch."""
    wishes = [replace(wish, seed=seed) for seed in range(rows)]
    made: Any = [take_made(one).piece for one in model.make(wishes, [Unheard()] * rows)]
    return [one.image.tobytes() for one in made]


def write_lora(path: Path, module: str) -> ReadyLora:
    """Write a LoRA of one module of a published transformer, which has 128 channels."""
    width = 128 * 6 if "mod" in module else 128
    pairs = {module: (torch.full((1, 128), 0.1), torch.full((width, 1), 0.1))}
    write_form(pairs, 1.0, FORMS["fal"], path)
    return ReadyLora("a", f"sha256:{module}", 1.0, path, None, is_callers=True)


def open_compiled(
    monkeypatch: pytest.MonkeyPatch, home: Path, *, compiler: Any = run_as_traced, **more: str
) -> QwenImage:
    """Boot with one model as on a GPU, with graphs run as they are traced."""
    environ = {"MODEL": "tiny-edit", "MODEL_DIR": str(home), "LIGHTNING_STEPS": "4", **more}
    monkeypatch.setattr(compiled, "compile_for_device", compiler)
    monkeypatch.setattr(opener, "choose_compiled_batch", lambda _, given: given.most_in_batch)
    model: Any = boot.boot(settings.read(environ)).take("tiny-edit")
    return model  # type: ignore[no-any-return] # residency knows no family


def test_no_job_waits_for_the_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A start compiles for every adapter and none, alone and in batches.

    LoRAs of jobs run uncompiled, and leave what was compiled as it was.
    """
    model = open_compiled(monkeypatch, tmp_path, BATCH_SIZE="4")
    run = model._parts.forward._run_block
    assert isinstance(run, Compiled)
    assert run.graphs == 4
    found = [draw(model, wish, rows) for rows in (1, 2) for wish in WISHES]
    for seed, name in enumerate(("attn.to_q", "img_mod.1")):
        lora = write_lora(tmp_path / f"{seed}.safetensors", f"transformer_blocks.0.{name}")
        assert draw(model, replace(WISHES[0], loras=(lora,)), 1) != found[0]
        assert draw(model, WISHES[0], 1) == found[0]
    assert (run.graphs, run.is_active) == (4, True)
    run._compiled = None
    assert [draw(model, wish, rows) for rows in (1, 2) for wish in WISHES] == found
    model.release()  # raises where what was compiled keeps the transformer


def test_a_model_with_one_fused_adapter_compiles_for_that_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = open_compiled(monkeypatch, tmp_path, LIGHTNING_FUSED="true")
    run: Any = model._parts.forward._run_block
    assert (run.graphs, run.is_active) == (1, True)
    plain = draw(model, EDIT, 1)
    lora = write_lora(tmp_path / "a.safetensors", "transformer_blocks.0.attn.to_q")
    assert draw(model, replace(EDIT, loras=(lora,)), 1) != plain
    assert draw(model, EDIT, 1) == plain
    assert (run.graphs, run.is_active) == (1, True)


def test_a_start_loads_what_an_earlier_one_compiled_before_it_compiles(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And what was loaded and does not compute the same is deleted."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "own"))
    seen: list[int] = []

    def compile_one(graph: Any, inputs: list[Any]) -> Any:
        seen.append(len([path for path in (tmp_path / "own").rglob("*") if path.is_file()]))
        return run_and_record(graph, inputs)

    def compile_wrongly(graph: Any, inputs: list[Any]) -> Any:
        run = run_and_record(graph, inputs)
        return lambda *given: [result * 2 for result in run(*given)]

    def start(compiler: Any) -> list[Path]:
        CacheArtifactManager.clear()
        seen.clear()
        open_compiled(monkeypatch, tmp_path, compiler=compiler, LIGHTNING_FUSED="true")
        return sorted((tmp_path / "compiled").glob("*"))

    kept = start(compile_one)
    assert (len(kept), seen) == (1, [0])
    assert (start(compile_one), seen) == (kept, [1])
    assert start(compile_wrongly) == []


def test_graphs_are_of_one_kind_where_all_that_decides_them_is_equal(tmp_path: Path) -> None:
    """None are kept where nothing is compiled, or where that is off."""
    cpu = torch.device("cpu")
    ours = "worker.families.qwen_image.model"
    spec = replace(CATALOGUE.find_row("tiny-edit"), family=ours)

    def find(environ: dict[str, str], **changes: Any) -> str | None:
        given = settings.read({"MODEL_DIR": str(tmp_path), "BATCH_SIZE": "2", **environ})
        obtained: Any = SimpleNamespace(folder=tmp_path / "a", lightning=(8,))
        vars(obtained).update(changes)
        rows = given.most_in_batch if given.compile == "auto" else 0
        kept = find_kept_graphs(spec, obtained, given, cpu, rows=rows)
        return None if kept is None else kept.key

    kinds = [
        find({}),
        find({"BATCH_SIZE": "3"}),
        find({"LIGHTNING_MERGE": "off"}),
        find({}, folder=tmp_path / "b"),
        find({}, lightning=(4, 8)),
    ]
    assert len(set(kinds)) == len(kinds)
    assert None not in kinds
    assert find({"COMPILE_CACHE": "off"}) is find({"COMPILE": "off"}) is None
    assert find({"MAX_PIXELS": "4096"}) == find({}, folder=tmp_path / "elsewhere" / "a") == kinds[0]


def test_models_are_compiled_for_gpus_alone_and_unless_it_is_off() -> None:
    """On a CPU compiled blocks are slower."""
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    for given, rows in (
        ({}, 1),
        ({"COMPILE": "AUTO", "BATCH_SIZE": "4"}, 4),
        ({"BATCH_SIZE": "4", "REFRESH_WORKER": "true"}, 1),
        ({"COMPILE": "off"}, 0),
    ):
        assert choose_compiled_batch(cuda, settings.read(given)) == rows
        assert choose_compiled_batch(cpu, settings.read(given)) == 0


def test_what_graphs_are_made_with_is_on_the_device_and_in_the_numbers_of_the_model() -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def forward(latents: Any, timestep: Any, prompt: Conditioning, _shapes: Any) -> None:
        seen.append((latents, timestep, prompt.embeds))

    used: list[str | None] = []
    parts: Any = SimpleNamespace(
        transformer=SimpleNamespace(config=SimpleNamespace(in_channels=4, joint_attention_dim=6)),
        adapters=SimpleNamespace(attached=("light",), use=used.append),
        device=torch.device("meta"),
        dtype=torch.bfloat16,
        forward=forward,
        compiled_batch=2,
    )
    compile_rest(parts)
    assert used == [None, "light", None, "light"]
    assert {t.device.type for given in seen for t in given} == {"meta"}
    bf16, fp32 = torch.bfloat16, torch.float32
    assert {tuple(t.dtype for t in given) for given in seen} == {(bf16, fp32, bf16)}
