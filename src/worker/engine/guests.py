"""Adapters that jobs bring to a transformer: any number at once, each with a scale of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from worker.engine.lora import Adapters, ScaledLora
from worker.errors import LoraNotApplied


@dataclass(frozen=True, slots=True)
class Guest:
    """One adapter at one module: `down` [rank, in], `up` [out, rank], and what B(A(x)) is times."""

    name: str
    down: Tensor
    up: Tensor
    scale: float


class Guests:
    """The adapters that jobs bring to one module of `in_features` and `out_features`.

    Those that are `used` are added in that order.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        self.in_features, self.out_features = in_features, out_features
        self.used: tuple[Guest, ...] = ()
        self._attached: dict[str, Guest] = {}

    @property
    def key(self) -> tuple[tuple[str, float], ...]:
        """Return what decides the effect of those that are used."""
        return tuple((guest.name, guest.scale) for guest in self.used)

    def add(self, guest: Guest) -> None:
        """Attach an adapter, which is not used yet."""
        self._attached[guest.name] = guest

    def remove(self, name: str) -> None:
        """Detach an adapter."""
        del self._attached[name]

    def use(self, scales: Mapping[str, float]) -> None:
        """Use those of these adapters that are attached here, each at its scale, and no other."""
        self.used = tuple(
            Guest(name, guest.down, guest.up, scale * guest.scale)
            for name, scale in scales.items()
            if (guest := self._attached.get(name)) is not None
        )

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Return y [..., out] + scale * B(A(x)) of every used adapter, for x [..., in].

        In peft's order of operations (peft/tuners/lora/layer.py, Linear.forward).
        """
        dtype = y.dtype
        for guest in self.used:
            low = functional.linear(x.to(guest.down.dtype), guest.down)
            # in place, and no name keeps what was added to: each is as large as the widest tensor
            y = y + functional.linear(low, guest.up).mul_(guest.scale)
        return y.to(dtype)


class GuestLinear(nn.Module):
    """A Linear of any precision, with adapters of its own or none, and the guests next to it."""

    def __init__(self, base: nn.Module, guests: Guests) -> None:
        super().__init__()
        self.base = base
        self.guests = guests

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return self.guests.add_to(self.base(x), x)


@dataclass(frozen=True, slots=True)
class _Place:
    """A Linear of the transformer, and the layer that takes its place while guests are used."""

    parent: nn.Module
    leaf: str
    layer: GuestLinear

    def put(self, layer: nn.Module) -> None:
        """Put a layer there."""
        setattr(self.parent, self.leaf, layer)


class GuestAdapters:
    """The adapters that jobs bring to one transformer, next to the `own` ones.

    A module is replaced for as long as a used adapter reaches it: whatever was compiled for the
    transformer finds its modules as they were. `outside` are the modules that the open model lacks
    and whose results are computed elsewhere, with the guests that are found there.
    """

    def __init__(self, transformer: Any, own: Adapters, outside: Mapping[str, Guests]) -> None:
        self._transformer = transformer
        self._own = own
        self._outside = outside
        self._inside: dict[str, _Place] = {}
        self._attached: dict[str, frozenset[str]] = {}
        self._replaced: list[_Place] = []
        self.used: dict[str, float] = {}

    @property
    def attached(self) -> tuple[str, ...]:
        """Name the attached adapters, in the order they were attached."""
        return tuple(self._attached)

    def attach(self, name: str, lora: ScaledLora) -> int:
        """Attach an adapter and return how many modules it reaches; none is used afterwards.

        Raises LoraNotApplied for anything but a LoRA of this transformer, and for one that would
        change what is fixed; nothing is attached then.
        """
        if name in self._attached:
            raise LoraNotApplied(f"an adapter called {name} is attached already")
        self.use({})
        found = {}
        for module, fits in lora.widths.items():
            place = None if module in self._outside else self._find_place(module)
            guests = self._outside[module] if place is None else place.layer.guests
            if (guests.in_features, guests.out_features) != fits:
                raise LoraNotApplied(
                    f"{module} maps {guests.in_features} to {guests.out_features}, the LoRA"
                    f" {fits[0]} to {fits[1]}"
                )
            found[module] = guests, place
        for module, (guests, place) in found.items():
            guests.add(Guest(name, *lora.find_sides(module), lora.scales[module]))
            if place is not None:
                self._inside[module] = place
        self._attached[name] = frozenset(found)
        return len(found)

    def detach(self, name: str) -> None:
        """Detach an adapter; raises LoraNotApplied for one that is used."""
        if name in self.used:
            raise LoraNotApplied(f"adapter {name} is in use")
        for module in self._attached.pop(name):
            self._find_guests(module).remove(name)

    def count_modules(self, name: str) -> int:
        """Return how many modules an adapter reaches."""
        return len(self._attached[name])

    def use(self, scales: Mapping[str, float]) -> None:
        """Use these adapters, each at its scale, in this order, and no other.

        Raises LoraNotApplied for one that is not attached; nothing has changed then.
        """
        for name in scales:
            if name not in self._attached:
                raise LoraNotApplied(
                    f"adapter {name} is not attached; attached: {', '.join(self._attached)}"
                )
        for name in {**self.used, **scales}:
            for module in self._attached[name]:
                self._find_guests(module).use(scales)
        for place in self._replaced:
            place.put(place.layer.base)
        self._replaced = [place for place in self._inside.values() if place.layer.guests.used]
        for place in self._replaced:
            place.put(place.layer)
        self.used = dict(scales)

    def _find_guests(self, module: str) -> Guests:
        guests = self._outside.get(module)
        return self._inside[module].layer.guests if guests is None else guests

    def _find_place(self, module: str) -> _Place:
        """Return the place of a module; raises LoraNotApplied for what is no Linear or fixed."""
        if module in self._inside:
            return self._inside[module]
        linear = self._own.find_linear(module)
        parent, _, leaf = module.rpartition(".")
        guests = Guests(linear.in_features, linear.out_features)
        layer = GuestLinear(self._transformer.get_submodule(module), guests)
        return _Place(self._transformer.get_submodule(parent), leaf, layer)
