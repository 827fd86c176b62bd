"""The LoRAs that wishes bring, read and checked: before their turn, where memory allows."""

import threading
import weakref
from collections.abc import Collection, Container, Hashable, Sequence
from typing import Final

import torch

from worker.engine import lora_file
from worker.engine.lora import ScaledLora
from worker.errors import LoraFetchFailed, LoraNotApplied, LoraRefused
from worker.loras.ready import ReadyLora

# Bytes of the host's memory for LoRAs that wait with their wishes: two of the largest public ones.
# One for which there is no room is read when its turn comes.
AHEAD_BYTES: Final = 3_000_000_000


class LoraReader:
    """Read the LoRAs of wishes for a transformer with these `modules`, in any thread.

    Those that are `attached` need no reading. What is read ahead is in `dtype`, in memory of its
    own, since others may replace a file, and is kept for as long as a wish has it.
    """

    def __init__(
        self,
        modules: Collection[str],
        attached: Container[Hashable],
        dtype: torch.dtype,
        budget: int = AHEAD_BYTES,
    ) -> None:
        self._modules = modules
        self._attached = attached
        self._dtype = dtype
        self._budget = budget
        self._turn = threading.Lock()
        self._read: weakref.WeakValueDictionary[Hashable, ScaledLora] = (
            weakref.WeakValueDictionary()
        )

    def read_ahead(self, loras: Sequence[ReadyLora]) -> tuple[ScaledLora, ...]:
        """Read those of these LoRAs that are not attached; they stay for as long as these do.

        Raises as `read`.
        """
        found = []
        for lora in loras:
            with self._turn:
                if lora.identity not in self._attached and self._has_room_for(lora):
                    found.append(self._keep(lora))
        return tuple(found)

    def read(self, lora: ReadyLora) -> ScaledLora:
        """Return a LoRA, read before or read and checked.

        Raises LoraNotApplied; for one that its caller chose LoraRefused, and LoraFetchFailed when
        its file is gone.
        """
        known = self._read.get(lora.identity)
        if known is not None:
            return known
        kind = LoraRefused if lora.is_callers else LoraNotApplied
        try:
            return lora_file.read_scaled(lora.path, self._modules, lora.configuration)
        except FileNotFoundError:
            raise LoraFetchFailed(f"{lora.name}: its file is gone; try again") from None
        except LoraNotApplied as error:
            raise kind(f"{lora.name}: {error.message}") from None

    def _keep(self, lora: ReadyLora) -> ScaledLora:
        """Return a LoRA that was read ahead, by this call or before."""
        known = self._read.get(lora.identity)
        if known is None:
            read = self.read(lora)
            tensors = {key: t.to(self._dtype, copy=True) for key, t in read.tensors.items()}
            known = self._read[lora.identity] = ScaledLora(tensors, read.scales)
        return known

    def _has_room_for(self, lora: ReadyLora) -> bool:
        if lora.identity in self._read:
            return True
        kept = sum(one.count_bytes() for one in self._read.values())
        return kept + _measure_file(lora) <= self._budget


def _measure_file(lora: ReadyLora) -> int:
    """Return the bytes of a LoRA's file; 0 when it is gone, which reading it reports."""
    try:
        return lora.path.stat().st_size
    except FileNotFoundError:
        return 0
