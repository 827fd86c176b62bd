"""How a family's models become bundles: the parts in order, and what is made from each."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from worker.bundle.headers import Shard
from worker.bundle.stream import Transform
from worker.engine.offload import Streamed
from worker.engine.quantise import Precision
from worker.settings import Settings
from worker.weights.snapshot import Snapshot
from worker.weights.spec import ModelSpec

Configuration = Mapping[str, Any]
Naming = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Published:
    """A published model that can be prepared and will open.

    `small` maps each role to its small files as they are in a bundle; `shards` are without tensors
    that no module keeps; `configs` are configurations by role with all defaults; `facts` is the
    model's own worker.json, with the recipe's switches.
    """

    small: Mapping[str, Mapping[str, bytes]]
    shards: Mapping[str, Sequence[Shard]]
    configs: Mapping[str, Configuration]
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Work:
    """One part to make; `lora` is canonical and goes into its weights, None without one."""

    part: "Part"
    published: Published
    snapshot: Snapshot
    precision: Precision
    device: torch.device
    lora: Mapping[str, Tensor] | None


def count_nothing(published: Published) -> int:
    """Return 0."""
    del published
    return 0


@dataclass(frozen=True, slots=True)
class Replaced:
    """Weights that a bundle replaces by what is computed from them, mapped and never all in memory.

    `names` are their names in our modules. `facts` go into the part's identity, `size` is the size
    of what is mapped of the replacement in bytes, `loaded` of what is in the device's memory.
    `transform` makes the part's files with it.
    """

    names: re.Pattern[str]
    facts: Callable[[Published], Mapping[str, Any]]
    size: Callable[[Published], int]
    transform: Callable[[Work], Transform]
    loaded: Callable[[Published], int] = count_nothing


def keep_as_made(model: Any) -> Any:
    """Return a model as its library makes it."""
    return model


def read_diffusers_config(model: Any) -> Configuration:
    """Return the configuration of a diffusers model, with its defaults."""
    return dict(model.config)


@dataclass(frozen=True, slots=True)
class Modules:
    """How a part's modules are made from its configuration, without memory for weights.

    `stock` builds the library's own model, `bare` removes what is never run, `filled` returns the
    configuration with its defaults. `final` makes what runs of the modules once they have their
    weights. Of a part that may wait in the host's memory, `streamed` says what of those passes
    through the device while they run; without it they run on the host.
    """

    stock: Callable[[Configuration], Any]
    bare: Callable[[Any], Any] = keep_as_made
    filled: Callable[[Any], Configuration] = read_diffusers_config
    final: Callable[[Any], Any] = keep_as_made
    streamed: Callable[[Any], Streamed] | None = None


def refuse_modules(_config: Configuration) -> Any:
    """Raise ValueError: a part of small files has no modules."""
    raise ValueError("a part of small files alone has no modules")


SMALL_FILES: Final = Modules(refuse_modules)


def keep_name(name: str) -> str | None:
    """Keep a tensor under the name that it is published with."""
    return name


def show_our_names(_published: Iterable[str]) -> Naming:
    """Return a naming for a publisher who uses our names."""
    return lambda name: name


@dataclass(frozen=True, slots=True)
class Part:
    """One component: a folder of the repository, `role`, and what goes into a bundle from it.

    Without `modules` only its small files are copied. `keep` maps a published tensor's name to the
    one in our modules, None for what is dropped; `shown` returns, given all published names, how a
    publisher names our tensors. `quantised` are our names of the weights [out, in] that are stored
    in the chosen precision: without it a part is bf16 at every precision. The models of one worker
    share an `is_shared` part of the same identity; only some models have an `is_optional` part. One
    that is `is_exact` keeps the number formats of its publisher. `pickle` is the name of a pickled
    file that may hold its weights, which is read as data alone; "" where none may.
    """

    role: str
    modules: Modules = SMALL_FILES
    keep: Callable[[str], str | None] = keep_name
    shown: Callable[[Iterable[str]], Naming] = show_our_names
    quantised: re.Pattern[str] | None = None
    replaced: Replaced | None = None
    is_shared: bool = False
    is_optional: bool = False
    is_exact: bool = False
    pickle: str = ""

    @property
    def has_weights(self) -> bool:
        """Return whether the part has more than small files."""
        return self.modules is not SMALL_FILES

    def choose_precision(self, chosen: Precision) -> Precision:
        """Return the precision that the part is stored in when `chosen` is the model's."""
        return "bf16" if self.quantised is None else chosen

    def is_replaced(self, name: str) -> bool:
        """Return whether the tensor of this name in our modules is replaced."""
        return self.replaced is not None and self.replaced.names.fullmatch(name) is not None


class ComputeWorking(Protocol):
    """How a family computes the device memory of jobs."""

    def __call__(
        self, spec: ModelSpec, settings: Settings, precision: Precision, pixels: int | None = None
    ) -> int:
        """Return the bytes that the largest job takes in addition to the weights.

        It is of at most `pixels` where that is given, else of the largest size that the settings
        require to fit.
        """


def keep_spec(spec: ModelSpec, facts: Mapping[str, Any]) -> ModelSpec:
    """Return a model as it is: its worker.json says nothing that its row does not."""
    del facts
    return spec


def require_nothing(
    spec: ModelSpec, settings: Settings, precision: Precision, pixels: int | None = None
) -> int:
    """Return 0: next to the weights, jobs take next to nothing."""
    del spec, settings, precision, pixels
    return 0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a family's models become bundles.

    `parts` are in the order in which they are made: those that can fail early come first. `check`
    checks a published model by its small files and headers and raises WeightsUnavailable. LoRAs
    are applied to the part `adapted`; a Lightning LoRA must reach all modules that `reached` names,
    given that part's configuration. The part `waiting` may wait in the host's memory. `working`
    computes what the largest job takes beside the weights, `passing` what it takes while that part
    passes through the device. `switches` are the entries of a model_index.json that are facts of a
    model where they are true. `learn` returns a model with what its worker.json says about it.
    """

    parts: tuple[Part, ...]
    check: Callable[[Snapshot, ModelSpec], Published]
    adapted: str
    reached: Callable[[Configuration], Collection[str]]
    waiting: str
    working: ComputeWorking = require_nothing
    passing: ComputeWorking = require_nothing
    switches: tuple[str, ...] = ()
    learn: Callable[[ModelSpec, Mapping[str, Any]], ModelSpec] = keep_spec

    @property
    def waiting_word(self) -> str:
        """Return what messages call the part that may wait."""
        return self.waiting.replace("_", " ")

    def find_part(self, role: str) -> Part:
        """Return the part of a role; raises KeyError when there is none."""
        return {part.role: part for part in self.parts}[role]

    def compute_working(
        self,
        spec: ModelSpec,
        settings: Settings,
        precision: Precision,
        pixels: int | None = None,
        *,
        offload: bool = False,
    ) -> int:
        """Return the bytes that the largest job takes beside the weights that are on the device.

        With `offload` the part that may wait is not among those. `pixels` is that of
        `ComputeWorking`.
        """
        working = self.working(spec, settings, precision, pixels)
        if not offload:
            return working
        return max(working, self.passing(spec, settings, precision, pixels))

    @property
    def with_weights(self) -> tuple[str, ...]:
        """Name the parts that have weights, the largest first."""
        return tuple(part.role for part in reversed(self.parts) if part.has_weights)

    @property
    def copied(self) -> tuple[str, ...]:
        """Name the parts that have only small files."""
        return tuple(part.role for part in self.parts if not part.has_weights)
