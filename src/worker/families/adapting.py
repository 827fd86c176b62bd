"""The LoRAs of wishes, attached to an open model: read once, and kept within a bound of memory."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Final

import torch

from worker import log
from worker.engine.guests import GuestAdapters
from worker.engine.lora import Adapters, ScaledLora
from worker.errors import LoraNotApplied, LoraRefused
from worker.families.lora_reader import LoraReader
from worker.loras.ready import ReadyLora

# Device memory for the LoRAs of earlier wishes: one of the largest public ones, or five of rank 16.
ADAPTER_BYTES: Final = 1_500_000_000


class WishedLoras:
    """The LoRAs of wishes on one transformer, in `dtype` on `device`, up to `budget` bytes.

    `own` are the model's adapters, `guests` those of wishes. What the wish needs that is made is
    there whatever its size. For one thread.
    """

    def __init__(
        self,
        own: Adapters,
        guests: GuestAdapters,
        device: torch.device,
        dtype: torch.dtype,
        budget: int = ADAPTER_BYTES,
    ) -> None:
        self._own, self._guests = own, guests
        self._device, self._dtype = device, dtype
        self._budget = budget
        self._sizes: OrderedDict[Hashable, int] = OrderedDict()
        self.reader = LoraReader(own.modules, self._sizes, dtype)

    def use(self, name: str | None, loras: Sequence[ReadyLora]) -> None:
        """Make the model's own adapter `name` active, or none, and next to it these LoRAs.

        Raises LoraNotApplied; for one that its caller chose LoraRefused, and LoraFetchFailed when
        its file is gone. None of wishes is used then.
        """
        scales = {_name(lora): lora.scale for lora in loras}
        # their order counts too, by rounding
        is_as_before = [*self._guests.used.items()] == [*scales.items()]
        if not is_as_before:
            self._guests.use({})
        self._own.use(name)
        for lora in loras:
            if lora.identity not in self._sizes:
                self._attach(lora, {one.identity for one in loras})
            self._sizes.move_to_end(lora.identity)
        if not is_as_before:
            self._guests.use(scales)

    def count(self, loras: Sequence[ReadyLora]) -> tuple[ReadyLora, ...]:
        """Return the LoRAs in use with the number of modules that each of them reaches."""
        counts = [self._guests.count_modules(_name(lora)) for lora in loras]
        return tuple(
            replace(lora, modules=count) for lora, count in zip(loras, counts, strict=True)
        )

    def forget(self) -> None:
        """Drop all LoRAs that are not in use, to free memory."""
        self._drop(0, {one for one in self._sizes if _name_identity(one) in self._guests.used})

    def _attach(self, lora: ReadyLora, needed: set[Hashable]) -> None:
        read = self.reader.read(lora)
        self._drop(self._budget - read.count_bytes(), needed)
        # always a copy: what was read is mapped from a file that others may replace, and is not
        # aligned, by which a CPU rounds products otherwise
        tensors = {
            key: t.to(self._device, self._dtype, copy=True) for key, t in read.tensors.items()
        }
        copied = ScaledLora(tensors, read.scales)
        try:
            self._guests.attach(_name(lora), copied)
        except LoraNotApplied as error:
            kind = LoraRefused if lora.is_callers else LoraNotApplied
            raise kind(f"{lora.name}: {error.message}") from None
        size = copied.count_bytes()
        self._sizes[lora.identity] = size
        log.get().info("lora attached", name=lora.name, digest=lora.digest, bytes=size)

    def _drop(self, most: int, needed: set[Hashable]) -> None:
        """Drop the least recently used until at most so many bytes are left, but none needed."""
        for identity in [one for one in self._sizes if one not in needed]:
            if sum(self._sizes.values()) <= most:
                return
            self._guests.detach(_name_identity(identity))
            del self._sizes[identity]


def _name(lora: ReadyLora) -> str:
    return _name_identity(lora.identity)


def _name_identity(identity: Hashable) -> str:
    """Name the adapter of a LoRA; the model's own have no such names."""
    return repr(identity)
