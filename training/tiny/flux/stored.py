"""The state of a stage on disk: finished weights, or all that a stopped stage needs to go on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """The running average of a model's weights, which is what a stage ends with."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        state = model.state_dict()
        self.weights = {name: weight.detach().clone() for name, weight in state.items()}
        self.pairs = [
            (self.weights[name], weight)
            for name, weight in state.items()
            if weight.is_floating_point()
        ]

    @torch.no_grad()
    def follow(self) -> None:
        """Move towards the model's weights: quickly in the first steps."""
        mix = 1 - min(self.decay, (self.count + 1) / (self.count + 10))
        self.count += 1
        ours, theirs = ([pair[i] for pair in self.pairs] for i in (0, 1))
        torch._foreach_lerp_(ours, theirs, mix)

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        """Go on from stored averages."""
        for name, weight in weights.items():
            self.weights[name].copy_(weight)
        self.count = 1 << 20


class Stage:
    """A stage's two files: FOLDER/NAME.pt once it is done, FOLDER/begun/NAME.pt until then."""

    def __init__(self, folder: Path, name: str) -> None:
        self.done = folder / f"{name}.pt"
        self.begun = folder / "begun" / f"{name}.pt"
        self.begun.parent.mkdir(parents=True, exist_ok=True)

    def finished(self, device: torch.device) -> dict[str, Tensor] | None:
        """Return the finished weights, or None."""
        state: dict[str, Tensor] | None = self._load(self.done, device)
        return state

    def _load(self, file: Path, device: torch.device) -> Any:
        if not file.exists():
            return None
        return torch.load(file, map_location=device, weights_only=True)

    def resume(
        self, model: nn.Module, average: Average, optimisers: Sequence[torch.optim.Optimizer]
    ) -> float:
        """Load a stopped stage in place; return its seconds, 0 where there is none."""
        state = self._load(self.begun, next(model.parameters()).device)
        if state is None:
            return 0.0
        model.load_state_dict(state["weights"])
        average.load(state["average"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        return float(state["seconds"])

    def save(
        self,
        model: nn.Module,
        average: Average,
        optimisers: Sequence[torch.optim.Optimizer],
        seconds: float,
    ) -> None:
        """Store a stage that goes on."""
        state = {
            "weights": model.state_dict(),
            "average": average.weights,
            "optimisers": [optimiser.state_dict() for optimiser in optimisers],
            "seconds": seconds,
        }
        self._write(state, self.begun)

    def finish(self, weights: dict[str, Tensor]) -> None:
        """Store the finished weights; what was begun is done."""
        self._write(weights, self.done)
        self.begun.unlink(missing_ok=True)

    def _write(self, state: Any, file: Path) -> None:
        torch.save(state, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
