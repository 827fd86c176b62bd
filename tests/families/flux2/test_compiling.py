"""All graphs that jobs of a FLUX.2 need are there before the first of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.compiler._cache import CacheArtifactManager

from worker import boot, settings
from worker.bundle.open import make_shared
from worker.engine import compiled
from worker.engine.compiled import Compiled
from worker.families import opener
from worker.families.flux2 import arranging
from worker.families.flux2.compiling import FRAME, compile_rest
from worker.families.flux2.model import Flux2
from worker.families.flux2.normalising import Activated
from worker.families.flux2.published import open_published
from worker.loras.ready import ReadyLora
from worker.seam import Unheard, take_made
from worker.tasks.picture import PictureWish
from worlds.compilers import run_and_record, run_as_traced
from worlds.small_flux import Kind
from worlds.stock_flux import CPU
from worlds.wishes import WISH, drawing

ONE, TWO = (drawing(96, 96, 1),), (drawing(96, 96, 1), drawing(64, 80, 2))
EDIT = replace(WISH, task="edit", references=ONE)
WISHES = [
    WISH,
    replace(WISH, width=64, height=112),
    EDIT,
    replace(EDIT, references=TWO, width=80, height=80),
    replace(EDIT, references=TWO, reference_weights=(2.0, 0.5)),
    replace(EDIT, reference_weights=(0.5,), width=64, prompt=" ".join([WISH.prompt] * 9)),
    replace(EDIT, references=TWO, reference_weights=(3.0, 0.0)),
    replace(WISH, task="img2img", source=ONE[0], strength=0.5),
    replace(
        EDIT, task="inpaint", source=ONE[0], strength=0.7, mask=drawing(96, 96, 3).convert("L")
    ),
]


def count_graphs(model: Flux2) -> tuple[int, int]:
    """Return how many graphs the blocks of both kinds have, and the norms of the VAE."""
    kinds = vars(model._parts.forward).values()
    blocks = sum(kind.graphs for kind in kinds if isinstance(kind, Compiled))
    assert model._parts.normalise is not None
    return blocks, model._parts.normalise.graphs


@pytest.mark.parametrize("rows", [1, 2])
def test_no_job_waits_for_the_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: int
) -> None:
    """For both kinds of blocks, with weights of references and without, alone and together.

    And for the norms of the VAE, one graph for each number of channels. LoRAs of jobs run
    uncompiled.
    """
    frames: list[torch.Size] = []
    stock = Activated.forward

    def look(module: Activated, frame: torch.Tensor) -> torch.Tensor:
        frames.append(frame.shape[2:])
        return stock(module, frame)

    monkeypatch.setattr(Activated, "forward", look)
    model = open_compiled(monkeypatch, tmp_path, run_as_traced, rows)
    norms = {module.num_channels for module in arranging.list_activated(model._parts.vae)}
    assert len(norms) > 1
    # before any picture, whose frames are larger: a graph's first result is compared
    assert set(frames[: len(norms)]) == {FRAME}
    assert FRAME not in frames[len(norms) :]
    assert count_graphs(model) == (4 * rows, len(norms))
    for wish in (*WISHES, style(model, tmp_path), WISH):
        draw(model, wish, rows)
        assert count_graphs(model) == (4 * rows, len(norms)), wish
    assert model._parts.is_compiled


def test_graphs_of_the_norms_that_compute_something_else_are_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor loaded by the next start, although those of the blocks are right."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "own"))

    def compile_wrongly(graph: Any, inputs: list[Any]) -> Any:
        run = run_and_record(graph, inputs)
        is_norm = "addcmul" in graph.code
        return (lambda *given: [result * 2 for result in run(*given)]) if is_norm else run

    def start(compiler: Any) -> tuple[bool, bool, int]:
        CacheArtifactManager.clear()
        parts = open_compiled(monkeypatch, tmp_path, compiler, 1)._parts
        kept = len(list((tmp_path / "compiled").glob("*")))
        return parts.forward.is_compiled, parts.is_compiled, kept

    assert start(run_and_record) == (True, True, 1)
    assert start(compile_wrongly) == (True, False, 0)


def test_where_nothing_is_to_be_compiled_nothing_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parts = open_compiled(monkeypatch, tmp_path, run_as_traced, 0)._parts
    assert arranging.is_arranged(parts.vae)
    assert (parts.normalise, parts.is_compiled) == (None, False)


def test_blocks_run_compiled_from_the_first_forward_on(
    monkeypatch: pytest.MonkeyPatch, publish: Callable[[Kind], Path]
) -> None:
    """Without a job before, whose LoRAs say how the next forward runs."""
    monkeypatch.setattr(compiled, "compile_for_device", run_as_traced)
    plain = open_published(publish("klein"), dtype=torch.float32, device=CPU)
    parts = replace(plain, compiled_batch=1)
    compile_rest(parts)
    kinds = vars(parts.forward).values()
    assert [kind.graphs for kind in kinds if isinstance(kind, Compiled)] == [2, 2]


def test_what_graphs_are_made_with_is_on_the_device_and_in_the_numbers_of_the_model() -> None:
    seen: list[torch.Tensor] = []

    def forward(*arguments: Any, **named: Any) -> None:
        seen.extend(x for x in (*arguments, *named.values()) if isinstance(x, torch.Tensor))

    config = SimpleNamespace(
        guidance_embeds=True, attention_head_dim=8, in_channels=4, joint_attention_dim=6
    )
    parts: Any = SimpleNamespace(
        transformer=SimpleNamespace(config=config),
        device=torch.device("meta"),
        dtype=torch.bfloat16,
        forward=forward,
        compiled_batch=2,
    )
    compile_rest(parts)
    # latents, timestep, prompt and guidance four times, and the shares of the weights twice
    assert len(seen) == 4 * 4 + 2
    assert {tensor.device.type for tensor in seen} == {"meta"}
    guidance = [tensor for tensor in seen if tensor.dtype == torch.float32]
    assert [tensor.shape for tensor in guidance] == [(1,), (1,), (3,), (3,)]
    assert all(t.dtype == torch.bfloat16 for t in seen if t.dtype != torch.float32)


def open_compiled(monkeypatch: pytest.MonkeyPatch, home: Path, compiler: Any, rows: int) -> Flux2:
    """Boot as on a GPU, with channels last and graphs run as a compiler says."""
    monkeypatch.setattr(arranging, "is_best_last", lambda _: True)
    monkeypatch.setattr(opener, "SHARED", make_shared())
    environ = {"MODEL": "tiny-flux", "MODEL_DIR": str(home), "BATCH_SIZE": str(max(rows, 1))}
    monkeypatch.setattr(compiled, "compile_for_device", compiler)
    most = lambda _, given: given.most_in_batch if rows else 0  # noqa: E731 - one line of a world
    monkeypatch.setattr(opener, "choose_compiled_batch", most)
    model: Any = boot.boot(settings.read(environ)).take("tiny-flux")
    return model  # type: ignore[no-any-return] # residency knows no family


def style(model: Flux2, folder: Path) -> PictureWish:
    """Return a wish with a LoRA of a module in each kind of block."""
    state = {}
    for name in ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_out"):
        linear: Any = model._parts.transformer.get_submodule(name)
        state[f"transformer.{name}.lora_A.weight"] = torch.full((1, linear.in_features), 0.1)
        state[f"transformer.{name}.lora_B.weight"] = torch.full((linear.out_features, 1), 0.1)
    save_file(state, folder / "style.safetensors")
    path = folder / "style.safetensors"
    lora = ReadyLora("style", "sha256:1", 1.0, path, None, is_callers=True)
    return replace(WISH, loras=(lora,))


def draw(model: Flux2, wish: PictureWish, rows: int) -> None:
    """Make so many pictures of a wish in one batch."""
    for outcome in model.make(
        [replace(wish, seed=seed) for seed in range(rows)], [Unheard()] * rows
    ):
        take_made(outcome)
