"""Bytes of LoRA files, made without torch, and of what is no LoRA file."""

import io
import json
import pickle
import random
import zipfile

from worker.weights.proof import digest_bytes


def lora_bytes(seed: int = 0, count: int = 64) -> bytes:
    """Return a small safetensors file with a pair of tensors of `count` random numbers."""
    size = 4 * count
    header = json.dumps(
        {
            "a.to_q.lora_A.weight": {
                "dtype": "F32",
                "shape": [1, count],
                "data_offsets": [0, size],
            },
            "a.to_q.lora_B.weight": {
                "dtype": "F32",
                "shape": [count, 1],
                "data_offsets": [size, 2 * size],
            },
        }
    ).encode()
    return len(header).to_bytes(8, "little") + header + random.Random(seed).randbytes(2 * size)


def digest(data: bytes) -> str:
    """Return the digest that a reply has of a file."""
    return f"sha256:{digest_bytes(data).sha256}"


def _zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
    return buffer.getvalue()


# What is sent in place of a LoRA -> its bytes, and the words by which it is refused.
NO_LORAS = {
    "a page": (b"<!doctype html><title>Sign in</title>" * 9, "a web page"),
    "a pickle": (pickle.dumps({"a": list(range(99))}), "a pickle"),
    "a zip": (_zipped(), "a zip archive"),
    "gguf": (b"GGUF" + bytes(64), "a GGUF file"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    "json": (b'{"error": "no such file"}', "JSON"),
    "nothing": (b"", "empty"),
    "a word": (b"hello", "no safetensors file"),
    "a long header": ((20_000_000).to_bytes(8, "little") + b"{" + bytes(99), "no safetensors file"),
    "cut": (lora_bytes()[:-5], "bytes instead of"),
    "longer": (lora_bytes() + b"more", "bytes instead of"),
    "no offsets": ((2).to_bytes(8, "little") + b"{]" + bytes(9), "unreadable safetensors header"),
}
