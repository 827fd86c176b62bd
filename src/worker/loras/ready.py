"""A LoRA whose file is on this machine: what a wish has of it, and what callers see."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ReadyLora:
    """One LoRA of a wish, its file complete and proven at `path` for as long as its job runs.

    `digest` is "sha256:..." of the file. `configuration` is the adapter_config.json next to it,
    which may state its scale; `scale` is the caller's factor. `modules` is how many modules it
    reaches, None until a model has it.
    """

    name: str
    digest: str
    scale: float
    path: Path
    configuration: bytes | None
    is_callers: bool
    modules: int | None = None

    @property
    def identity(self) -> Hashable:
        """What decides its weights: those of equal identity are the same LoRA."""
        return self.digest, self.configuration


def show_loras(loras: Sequence[ReadyLora]) -> list[dict[str, Any]]:
    """Return what a reply and a file say about the LoRAs of a wish: plain JSON."""
    return [
        {"name": one.name, "digest": one.digest, "scale": one.scale, "modules": one.modules}
        for one in loras
    ]
