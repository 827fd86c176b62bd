"""Small FLUX.2 models with random weights, each written once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from worlds import small_flux
from worlds.small_flux import Kind

Publish = Callable[[Kind], Path]


@pytest.fixture(scope="session")
def publish(tmp_path_factory: pytest.TempPathFactory) -> Publish:
    """Return what gives the folder of a small model of a kind."""
    folders: dict[Kind, Path] = {}

    def find(kind: Kind) -> Path:
        if kind not in folders:
            folders[kind] = small_flux.publish(tmp_path_factory.mktemp(kind) / kind, kind)
        return folders[kind]

    return find
