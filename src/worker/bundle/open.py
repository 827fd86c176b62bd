"""The parts of one bundle, built while its files are read: a family opens its model from them."""

import json
from collections.abc import Callable, MutableMapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from worker.bundle import layout
from worker.bundle.expected import CONFIGURATION
from worker.bundle.fill import fill
from worker.bundle.layout import Damaged, Verified
from worker.bundle.read import READ_THREADS, FileReader
from worker.bundle.recipe import Recipe
from worker.bundle.tensors import read_file_header
from worker.engine.lora import NOTHING, Adapters, Fixed
from worker.engine.offload import stream_from_host
from worker.errors import LoraNotApplied

# (component identity, device) -> a module that several models use.
Shared = MutableMapping[tuple[str, str], nn.Module]
T = TypeVar("T")


def make_shared() -> Shared:
    """Return a mapping through which the models of one process share their common parts.

    It refers to them weakly: a part that no open model uses is freed.
    """
    return WeakValueDictionary()


class Opening:
    """One bundle being opened: on entering, it starts to read every file.

    Files are read straight into the memory of meta-device modules while the libraries are still
    being imported. With a device `waiting`, the part of the recipe that may wait stays there, and
    passes through `device` while it runs where its modules say how. Use it as a context manager;
    methods raise Damaged for what differs from the bundle's manifests.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        device: torch.device,
        *,
        verify: Literal["sizes", "full"] = "sizes",
        waiting: torch.device | None = None,
        share: Shared | None = None,
        threads: int = READ_THREADS,
    ) -> None:
        self._found: Verified = layout.verify(folder, verify)
        self._recipe = recipe
        self._device = device
        self._waiting = waiting
        self._shared: Shared = {} if share is None else share
        self._found_open: list[nn.Module] = []
        self._threads = threads
        self._readers: dict[str, FileReader] = {}
        self._entered = ExitStack()
        for part in reversed(recipe.parts):
            if not part.is_optional and not self.has_part(part.role):
                raise Damaged(self._found.folder, f"it has no {part.role}")

    def __enter__(self) -> Self:
        # What waits on the host gets its own memory: the kernel may evict the cache of a volume.
        mapped = self._device.type == "cpu"
        with ExitStack() as stack:
            near = stack.enter_context(FileReader(self._device, self._threads, mapped=mapped))
            self._readers = {"": near}
            if self._waiting is not None:
                far = FileReader(self._waiting, self._threads, mapped=mapped)
                self._readers[self._recipe.waiting] = stack.enter_context(far)
            for role in self._found.parts:
                if (found := self._shared.get(self._make_key(role))) is not None:
                    # kept here until it is taken: the model that has it may be released before
                    self._found_open.append(found)
                    continue
                for path in self._list_weights(role):
                    self._pick_reader(role).start(path)
            self._entered = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._found_open.clear()
        self._entered.__exit__(kind, error, trace)

    def has_part(self, role: str) -> bool:
        """Return whether the bundle has a part."""
        return role in self._found.parts

    def has_tensor(self, role: str, name: str) -> bool:
        """Return whether a part's weights have a tensor of that name."""
        return any(name in read_file_header(path) for path in self._list_weights(role))

    def open_module(self, role: str) -> Any:
        """Return a part's modules with their tensors, or those of an open model that shares it."""
        key, part = self._make_key(role), self._recipe.find_part(role)
        found = self._shared.get(key) if part.is_shared else None
        if found is None:
            bare = self.build_bare(role)
            self.fill(role, bare)
            found = part.modules.final(bare)
            if self._is_waiting(role) and part.modules.streamed is not None:
                stream_from_host(found, part.modules.streamed(found), self._device)
            if part.is_shared:
                self._shared[key] = found
        return found

    def build_bare(self, role: str) -> Any:
        """Build the modules that a part's configuration describes, without memory for weights."""
        modules, config = self._recipe.find_part(role).modules, self.read_json(role)
        try:
            return modules.bare(modules.stock(config))
        except Exception as error:
            # a constructor may raise anything; the part is handled like any damaged one
            raise Damaged(
                self._found.parts[role][0], f"no modules can be built from it: {error}"
            ) from error

    def fill(self, role: str, model: nn.Module) -> None:
        """Give bare modules the tensors of their part."""
        part, waits = self._recipe.find_part(role), self._is_waiting(role)
        precision = part.choose_precision(self._found.bundle.precision)
        packed = waits and part.modules.streamed is not None
        try:
            fill(model, self._take(role), precision, self._pick_device(role), packed=packed)
        except (KeyError, ValueError) as error:
            folder = self._found.parts[role][0]
            raise Damaged(folder, f"it does not fit its modules: {error}") from error

    def open_files(self, role: str, opening: Callable[[Path], T]) -> T:
        """Open a part that has only small files."""
        folder = self._found.parts[role][0]
        try:
            return opening(folder)
        except Exception as error:
            # transformers may raise anything; the part is handled like any damaged one
            raise Damaged(folder, f"it cannot be opened ({type(error).__name__})") from error

    def list_mapped(self, role: str) -> list[Path]:
        """Return a part's files that stay on the disk."""
        return self._list_files(role, layout.MAPPED)

    def open_adapters(self, model: Any, fixed: Fixed = NOTHING) -> Adapters:
        """Return the Lightning LoRAs, beside the modules of a model or in their weights.

        They are called `lightning_N`; a bundle with one in its weights accepts only that name.
        Raises LoraNotApplied.
        """
        bundle = self._found.bundle
        if bundle.fused is not None:
            return FusedAdapter(model, layout.name_adapter(bundle.fused), fixed)
        adapters = Adapters(model, fixed)
        expected = self._recipe.reached(model.config)
        for steps in bundle.lightning:
            role = layout.name_adapter(steps)
            state = {key: t.to(self._device) for key, t in self._take(role).items()}
            adapters.attach(role, state, expected=expected)
        return adapters

    def read_json(self, role: str, name: str = CONFIGURATION) -> dict[str, Any]:
        """Return a JSON object of a part."""
        folder = self._found.parts[role][0]
        try:
            value = json.loads((folder / name).read_bytes())
        except (OSError, ValueError, RecursionError):
            raise Damaged(folder, f"{name} cannot be read") from None
        if not isinstance(value, dict):
            raise Damaged(folder, f"{name} is not a JSON object")
        return value

    def _take(self, role: str) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for path in self._list_weights(role):
            tensors |= self._pick_reader(role).take(path)
        return tensors

    def _list_files(self, role: str, stem: str) -> list[Path]:
        folder, part = self._found.parts[role]
        return [folder / name for name in sorted(part.files) if name.startswith(f"{stem}-")]

    def _list_weights(self, role: str) -> list[Path]:
        return self._list_files(role, layout.ADAPTER) or self._list_files(role, layout.WEIGHTS)

    def _pick_reader(self, role: str) -> FileReader:
        return self._readers.get(role) or self._readers[""]

    def _pick_device(self, role: str) -> torch.device:
        return self._waiting if self._waiting and self._is_waiting(role) else self._device

    def _is_waiting(self, role: str) -> bool:
        return self._waiting is not None and role == self._recipe.waiting

    def _make_key(self, role: str) -> tuple[str, str]:
        where = f"waits on {self._waiting}" if self._is_waiting(role) else str(self._device)
        return self._found.parts[role][1].identity, where


class FusedAdapter(Adapters):
    """The one LoRA that is in the weights: always active, and no other can be."""

    def __init__(self, transformer: Any, name: str, fixed: Fixed = NOTHING) -> None:
        super().__init__(transformer, fixed)
        self.active = name

    @property
    def attached(self) -> tuple[str, ...]:
        """Name the LoRA in the weights."""
        return () if self.active is None else (self.active,)

    def use(self, name: str | None) -> None:
        """Accept the LoRA in the weights; raise LoraNotApplied for another one and for none."""
        if name != self.active:
            raise LoraNotApplied(
                f"{self.active} is in the weights (LIGHTNING_FUSED): this worker serves it alone"
            )
