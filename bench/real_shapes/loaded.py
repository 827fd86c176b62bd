"""What the weights of a picture model can do, whatever its family: run each side, be counted."""

from typing import Any, Protocol

from bench.real_shapes.agenda import Side
from bench.real_shapes.job import Case
from worker.tasks.picture import PictureWish


class Loaded(Protocol):
    """One precision's weights on the device, and every way of running them."""

    def choose(self, side: Side, *, edit: bool) -> Any:
        """Return the model of a side, switched as the side says."""

    def count_text_tokens(self, wish: PictureWish) -> int:
        """Return how many tokens of a prompt the denoiser attends to."""

    def count_operations(self, case: Case, text_tokens: int, side: Side) -> float:
        """Return the floating-point operations of one denoising step."""

    def compute_peaks(self, case: Case, side: Side, wish: PictureWish) -> dict[str, int]:
        """Return what the worker computes of each phase, in bytes beside the weights."""

    def name_floors(self, case: Case, side: Side) -> list[str]:
        """Name the records of the pretend device that are of a case, the closest first."""

    def stream(self) -> None:
        """Let the text encoder wait in the host's memory, for good."""
