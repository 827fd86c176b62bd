"""Safetensors files as the bundle needs them: headers by range, and writing without a copy."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import torch

from worker.bundle.layout import Damaged, FileRecord
from worker.weights import temporary

LENGTH_FIELD_BYTES: Final = 8
# The limit of the format itself: MAX_HEADER_SIZE of safetensors.
MAX_HEADER_BYTES: Final = 100_000_000
PAGE: Final = 4096
METADATA_NAME: Final = "__metadata__"
# Those with a byte or more per element: F4 and F6 of the format share bytes, and torch has no F6.
DTYPES: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file; `start` and `end` are offsets in the file, in bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def count(self) -> int:
        """Return the number of elements."""
        return prod(self.shape)


Header = dict[str, TensorEntry]


class UnknownFormat(ValueError):
    """A tensor is in a number format that has no torch.dtype; `written` is its name in the file."""

    def __init__(self, tensor: str, written: str) -> None:
        super().__init__(f"{tensor} is in {written}")
        self.tensor = tensor
        self.written = written


def read_header(read: Callable[[int, int], bytes]) -> Header:
    """Return the tensors of a safetensors file; `read(start, end)` returns its bytes.

    The format: 8 bytes little-endian length, a JSON header, then the tensors without gaps. Raises
    UnknownFormat, and ValueError for bytes that are not such a file.
    """
    length = int.from_bytes(read(0, LENGTH_FIELD_BYTES), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    base = LENGTH_FIELD_BYTES + length
    try:
        facts = json.loads(read(LENGTH_FIELD_BYTES, base), object_pairs_hook=_make_object)
    except RecursionError:
        raise ValueError("a header nested too deeply") from None
    if not isinstance(facts, dict):
        raise ValueError("a header that is no object")  # noqa: TRY004 - bytes, not an argument
    return {
        name: _read_entry(name, fact, base) for name, fact in facts.items() if name != METADATA_NAME
    }


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object from its pairs; raises ValueError for a name that comes twice."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name comes twice")
    return made


def _read_entry(name: str, fact: Any, base: int) -> TensorEntry:
    """Read one tensor's record; raises ValueError when its numbers contradict each other."""
    try:
        written, shape, (start, end) = fact["dtype"], tuple(fact["shape"]), fact["data_offsets"]
    except (KeyError, TypeError):
        raise ValueError(f"the record of {name} is incomplete") from None
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise ValueError(f"the record of {name} has no sizes")
    if written not in DTYPES:
        raise UnknownFormat(name, str(written))
    entry = TensorEntry(DTYPES[written], shape, base + start, base + end)
    if entry.end - entry.start != entry.count * entry.dtype.itemsize:
        raise ValueError(f"the record of {name} has another size than its shape")
    return entry


def read_file_header(path: Path) -> Header:
    """Return the tensors of a bundle's file; raises Damaged when its header cannot be read."""
    with path.open("rb") as file:

        def read(start: int, end: int) -> bytes:
            file.seek(start)
            return file.read(end - start)

        try:
            return read_header(read)
        except ValueError as error:
            raise Damaged(path.parent, f"{path.name} has {error}") from None


def decode(entry: TensorEntry, data: bytes) -> torch.Tensor:
    """Return the tensor whose bytes these are."""
    return torch.frombuffer(bytearray(data), dtype=entry.dtype).reshape(entry.shape)


def write(folder: Path, stem: str, tensors: Mapping[str, torch.Tensor]) -> tuple[str, FileRecord]:
    """Write CPU tensors to `folder`/`stem`-HASH.safetensors; return its name and record.

    The name contains the content's sha256, so that two workers that prepare the same thing with
    different rounding never mix their files. Tensors are ordered by falling alignment of their
    size, after a header padded to a page: each starts at a multiple of the largest power of two
    that divides its size, as devices prefer. Bytes go straight from the tensors to the file and
    are hashed on the way; safetensors' own writer copies all of them first.
    """
    order = sorted(tensors, key=lambda name: (-_measure_alignment(tensors[name]), name))
    facts: dict[str, object] = {METADATA_NAME: {"format": "pt"}}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        facts[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(facts, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH_FIELD_BYTES + len(text)) % PAGE)
    digest = hashlib.sha256()
    part = temporary.make_path(folder / f"{stem}.safetensors")
    try:
        with part.open("wb", buffering=0) as file:
            for piece in (len(text).to_bytes(LENGTH_FIELD_BYTES, "little"), text):
                file.write(piece)
                digest.update(piece)
            for name in order:
                view = _view_bytes(tensors[name])
                digest.update(view)
                while view:
                    view = view[file.write(view) :]
        name = f"{stem}-{digest.hexdigest()[:16]}.safetensors"
        temporary.publish(part, folder / name)
    finally:
        part.unlink(missing_ok=True)
    size = LENGTH_FIELD_BYTES + len(text) + end
    return name, FileRecord(size=size, sha256=digest.hexdigest())


def _view_bytes(tensor: torch.Tensor) -> memoryview:
    flat: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def _measure_alignment(tensor: torch.Tensor) -> int:
    size = tensor.numel() * tensor.element_size()
    return size & -size if size else PAGE
