"""One precision's weights on the device, and every way of running them: all share the tensors."""

from dataclasses import replace
from typing import Any

import torch

from bench.real_shapes import measure, ours, switches
from bench.real_shapes.agenda import COMPILED, MERGED, Side
from bench.real_shapes.job import Case
from bench.real_shapes.shapes import Architecture
from bench.real_shapes.stock import make_stock
from bench.real_shapes.warm import Warm
from bench.real_shapes.weights import RANK
from worker.engine.compiled import Compiled
from worker.engine.offload import stream_from_host
from worker.engine.quantise import Precision
from worker.families.clock import Clock
from worker.families.qwen_image.recipe import RECIPE
from worker.families.qwen_image.working import Load, estimate_phases
from worker.families.references import ReferencePictures
from worker.tasks.picture import PictureWish

MOST_ROWS = 4  # of a batch, for which the blocks are compiled


class Built:
    """Qwen-Image's weights of a precision, for edits and for text to image."""

    def __init__(
        self, architecture: Architecture, precision: Precision, device: torch.device, steps: int
    ) -> None:
        self._architecture = architecture
        self._precision = precision
        self._device = device
        self._steps = steps
        self._merged = self._streamed = False
        self._models: dict[tuple[bool, bool], Warm] = {}
        edit = ours.components(
            architecture, edit=True, precision=precision, device=device, steps=(steps,)
        )
        self._parts = {True: edit, False: ours.share(architecture, edit, edit=False)}

    def choose(self, side: Side, *, edit: bool) -> Any:
        """Return the model of a side, switched as the side says."""
        self._set_merged(merged=side in MERGED)
        if side == "stock":
            return make_stock(
                self._architecture,
                self._parts[edit],
                edit=edit,
                precision=self._precision,
                steps=self._steps,
            )
        return self._find(edit=edit, compiled=side in COMPILED)

    def count_text_tokens(self, wish: PictureWish) -> int:
        """Return how many tokens of a prompt the denoiser attends to."""
        model = self._find(edit=bool(wish.references), compiled=False)._model  # noqa: SLF001 - for counting
        embeds = model._embed(wish, wish.prompt, ReferencePictures(), Clock(self._device))  # noqa: SLF001 - the same
        return int(embeds.embeds.shape[1])

    def count_operations(self, case: Case, text_tokens: int, side: Side) -> float:
        """Return the floating-point operations of one denoising step."""
        config = self._architecture.transformer
        return measure.forward_flops(
            blocks=config["num_layers"],
            dim=config["num_attention_heads"] * config["attention_head_dim"],
            image_tokens=(1 + case.references) * case.side**2 // 256,
            text_tokens=text_tokens,
            rank=0 if side in MERGED else RANK,
            batch=case.batch,
        )

    def compute_peaks(self, case: Case, side: Side, wish: PictureWish) -> dict[str, int]:
        """Return what `working` computes of each phase, in bytes beside the weights."""
        if self._architecture.name == "tiny":
            return {}
        load = Load(
            case.side**2,
            case.references,
            case.batch,
            adapters=side not in MERGED,
            precision=self._precision,
            steps=case.steps,
            prompt_tokens=len(self._parts[case.edit].tokenizer(wish.prompt)["input_ids"]),
            shown_pixels=self._architecture.condition_area,
            passing=self._streamed,
        )
        return estimate_phases(load)

    def name_floors(self, case: Case, side: Side) -> list[str]:
        """Name the records of the pretend device that are of a case, the closest first."""
        if self._architecture.name == "tiny":
            return []
        words = [f"edit-{case.side}-{case.references}" if case.edit else f"image-{case.side}"]
        words.append(self._precision)
        if case.batch > 1:
            words.append(f"batch{case.batch}")
        name = "-".join(words)
        return [f"{name}-fused", name] if side in MERGED else [name]

    def _find(self, *, edit: bool, compiled: bool) -> Warm:
        """Return a model, whose graphs are kept from one call to the next."""
        key = edit, compiled
        if key not in self._models:
            # a Forward is made with the parts
            parts = replace(self._parts[edit], compiled_batch=MOST_ROWS if compiled else 0)
            self._models[key] = ours.open_model(
                self._architecture, parts, edit=edit, precision=self._precision
            )
        return self._models[key]

    def _set_merged(self, *, merged: bool) -> None:
        """Add the LoRA to the weights or put it beside them: both tasks share the modules."""
        if merged != self._merged:
            (switches.merge if merged else switches.split)(self._parts[True])
            self._merged = merged
        measure.free(self._device)

    def stream(self) -> None:
        """Let the text encoder wait in the host's memory, for good."""
        stream(RECIPE, self._parts[True].text_encoder, self._device)
        self._streamed = True


def stream(recipe: Any, encoder: Any, device: torch.device) -> None:
    """Let a text encoder wait in the host's memory and pass through the device, as offload does."""
    encoder.to("cpu")
    measure.free(device)
    modules = recipe.find_part(recipe.waiting).modules
    stream_from_host(encoder, modules.streamed(encoder), device)


def describe_graphs(model: Any) -> dict[str, Any]:
    """Return how many graphs a model's blocks have and whether they are in use; {} where none."""
    forward = getattr(getattr(model, "parts", None), "forward", None)
    kinds = [] if forward is None else vars(forward).values()
    runs = [kind for kind in kinds if isinstance(kind, Compiled)]
    if not runs:
        return {}
    return {"graphs": sum(run.graphs for run in runs), "compiled": all(r.is_active for r in runs)}
