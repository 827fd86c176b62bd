"""Copies of an embedded model with something altered in them, down to the words of a header."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from worlds.prepared import folder_of

WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
# A tensor as in a file: its dtype's name, its shape, its bytes.
Raw = tuple[str, list[int], bytes]


def copied(name: str, out: Path) -> Path:
    """Copy an embedded model, so that it can be altered."""
    return Path(shutil.copytree(folder_of(name), out))


def weights_of(folder: Path, role: str) -> Path:
    """Return a component's only weight file."""
    return folder / role / WEIGHTS[role]


def read(path: Path) -> dict[str, Raw]:
    """Return every tensor of a safetensors file as stored."""
    data = path.read_bytes()
    base = 8 + int.from_bytes(data[:8], "little")
    return {
        name: (
            fact["dtype"],
            fact["shape"],
            data[base + fact["data_offsets"][0] : base + fact["data_offsets"][1]],
        )
        for name, fact in json.loads(data[8:base]).items()
        if name != "__metadata__"
    }


def write(path: Path, tensors: Mapping[str, Raw]) -> None:
    """Write tensors as a safetensors file, whatever their dtypes are called."""
    facts: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        facts[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    header = json.dumps(facts).encode()
    body = b"".join(data for _, _, data in tensors.values())
    path.write_bytes(len(header).to_bytes(8, "little") + header + body)


def alter(path: Path, change: Callable[[dict[str, Raw]], None]) -> None:
    """Change the tensors of a safetensors file."""
    tensors = read(path)
    change(tensors)
    write(path, tensors)


def configure(path: Path, **changes: Any) -> None:
    """Set fields of a JSON file; a field set to `...` is removed."""
    value = json.loads(path.read_bytes())
    for name, change in changes.items():
        if change is ...:
            del value[name]
        else:
            value[name] = change
    path.write_text(json.dumps(value))
