"""A LoRA's safetensors file, read completely or refused."""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from worker.engine.lora import ScaledLora, make_canonical, make_scaled
from worker.engine.lora_keys import NONE_JOINED, Joined
from worker.engine.lora_scale import ADAPTER_CONFIG, pick_relevant, read_stated
from worker.errors import LoraNotApplied

METADATA_KEY: Final = "__metadata__"
LENGTH_BYTES: Final = 8
# safetensors' own limit of a header (safetensors/src/tensor.rs, MAX_HEADER_SIZE)
LONGEST_HEADER: Final = 100_000_000


def read(
    path: Path, modules: Collection[str] | None = None, configuration: bytes | None = None
) -> dict[str, Tensor]:
    """Read a LoRA file into the form of `lora.make_canonical`, its scale folded in.

    `modules` names the transformer's own modules; `configuration` is the adapter_config.json
    next to the file. Raises LoraNotApplied for a file that cannot be applied as intended,
    FileNotFoundError when there is none.
    """
    state, metadata = _read_state(path)
    return make_canonical(state, modules, read_stated(metadata, configuration))


def read_scaled(
    path: Path,
    modules: Collection[str],
    configuration: bytes | None = None,
    joined: Joined = NONE_JOINED,
) -> ScaledLora:
    """Read a LoRA file into the form of `lora.make_scaled`; otherwise as `read`."""
    state, metadata = _read_state(path)
    return make_scaled(state, modules, read_stated(metadata, configuration), joined)


def _read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, SafetensorError) else type(error).__name__
        raise LoraNotApplied(
            f"the LoRA is not a readable safetensors file ({reason[:200]})"
        ) from None
    return state, metadata


def read_config(path: Path) -> bytes | None:
    """Return the adapter_config.json next to a LoRA file; None when there is none."""
    try:
        return path.with_name(ADAPTER_CONFIG).read_bytes()
    except FileNotFoundError:
        return None


def read_stated_scale(read_range: Callable[[int, int], bytes], size: int) -> dict[str, str]:
    """Return what a file's header states about its scale, from the header's bytes alone.

    `read_range(start, end)` returns bytes of the file, which has `size` of them. A file whose
    header cannot be read states nothing: `read` reports what is wrong with it.
    """
    if size < LENGTH_BYTES:
        return {}
    length = int.from_bytes(read_range(0, LENGTH_BYTES), "little")
    if not 1 < length <= min(size - LENGTH_BYTES, LONGEST_HEADER):
        return {}
    try:
        header = json.loads(read_range(LENGTH_BYTES, LENGTH_BYTES + length))
        return pick_relevant(dict(header[METADATA_KEY]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
