"""Whether a file is a safetensors file, by its bounded header, and what else it is."""

from pathlib import Path
from typing import Final

from worker.weights import proof

# The format allows 100 MB, which take seconds to parse. The headers of public LoRAs have 0.3 MB,
# and up to a few MB with kohya's record of the training's tags.
LONGEST_LORA_HEADER: Final = 16_000_000
START_BYTES: Final = 9
OTHERS: Final = (
    (b"PK\x03\x04", "a zip archive, or weights pickled by torch.save"),
    (b"\x80", "a pickle"),
    (b"<", "a web page"),
    (b"GGUF", "a GGUF file"),
    (b"version ", "a pointer of Git LFS, without the file itself"),
    (b"{", "JSON"),
)


def name_other(start: bytes) -> str | None:
    """Return what a file is by its first START_BYTES; None when they may begin a safetensors file.

    The format: 8 bytes little-endian length of a JSON header, then the header.
    """
    length = int.from_bytes(start[:8], "little")
    if 1 < length <= LONGEST_LORA_HEADER and start[8:] == b"{":
        return None
    kinds = (kind for prefix, kind in OTHERS if start.lstrip(b" \r\n\t").startswith(prefix))
    return next(kinds, "no safetensors file" if start else "empty")


def find_form_fault(path: Path) -> str | None:
    """Return why a file cannot be a complete safetensors file; None when it can. Reads no weights.

    Raises OSError.
    """
    with path.open("rb") as file:
        start = file.read(START_BYTES)
    if (other := name_other(start)) is not None:
        return f"it is {other}; a LoRA is a safetensors file"
    fault = proof.find_fault(path)
    return f"it has {fault}" if fault else None
