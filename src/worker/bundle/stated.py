"""What a LoRA's file states about its scale besides its tensors, as one digest."""

import hashlib
import json
from functools import partial

from worker.engine import lora_file
from worker.engine.lora_scale import ADAPTER_CONFIG
from worker.weights.proof import RemoteFile
from worker.weights.snapshot import Snapshot, find_file


def find_config(snapshot: Snapshot, lora: RemoteFile) -> RemoteFile | None:
    """Return the adapter_config.json in the folder of a LoRA's file; None when there is none."""
    folder, slash, _ = lora.path.rpartition("/")
    path = f"{folder}{slash}{ADAPTER_CONFIG}"
    return next((file for file in snapshot.files if file.path == path), None)


def digest_scale(snapshot: Snapshot, filename: str) -> str:
    """Return the digest of what a LoRA states about its scale besides its tensors, "" for nothing.

    Only the file's header is read. Raises what a Snapshot raises.
    """
    file = find_file(snapshot, filename)
    entries = lora_file.read_stated_scale(partial(snapshot.read_range, file), file.size)
    config = find_config(snapshot, file)
    if config is not None:
        entries[ADAPTER_CONFIG] = snapshot.digest(config)
    text = json.dumps(entries, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest() if entries else ""
