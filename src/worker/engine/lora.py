"""LoRA adapters beside the base weights, switched per job without touching them."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from worker.engine.lora_keys import (
    NONE_JOINED,
    Joined,
    ModuleTensors,
    show,
    sort_by_module,
)
from worker.engine.lora_scale import EXACT, Own, Stated, compute_scales
from worker.errors import LoraNotApplied

FLOATS: Final = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# No operation multiplies in these; they are cast first, which is exact.
NARROW_FLOATS: Final = (
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
)
MATRIX: Final = 2  # dimensions
SIDES: Final = ("down", "up")


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class ScaledLora:
    """A LoRA as `<module>.lora_A.weight` [rank, in] and `.lora_B.weight` [out, rank].

    `scales` is what B(A(x)) of each module is multiplied by.
    """

    tensors: dict[str, Tensor]
    scales: dict[str, float]

    def count_bytes(self) -> int:
        """Return the bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """Return how many features each module has, in and out."""
        pairs = {module: self.find_sides(module) for module in self.scales}
        return {module: (down.shape[1], up.shape[0]) for module, (down, up) in pairs.items()}

    def find_sides(self, module: str) -> tuple[Tensor, Tensor]:
        """Return A and B of a module."""
        return self.tensors[f"{module}.lora_A.weight"], self.tensors[f"{module}.lora_B.weight"]


def make_canonical(
    state: Mapping[str, Tensor],
    modules: Collection[str] | None = None,
    sources: Sequence[Stated] = (),
) -> dict[str, Tensor]:
    """Return a LoRA as `<module>.lora_A.weight` [rank, in] and `.lora_B.weight` [out, rank].

    Accepts the keys of `lora_keys`; `modules` names the transformer's own modules, which flat keys
    need. The scale of `lora_scale` is folded into A and B, so that the adapter's scale is 1. float8
    becomes float32. A canonical LoRA is returned unchanged.

    Raises LoraNotApplied, naming the key or the module, for anything but a plain, complete LoRA.
    """
    return _make_lora(state, modules, sources, is_all=True).tensors


def make_scaled(
    state: Mapping[str, Tensor],
    modules: Collection[str] | None = None,
    sources: Sequence[Stated] = (),
    joined: Joined = NONE_JOINED,
) -> ScaledLora:
    """Return what `make_canonical` does, with a scale only where the stock stack folds it too.

    That is a module's own alpha; what `sources` state stays a scale, as peft applies it. A module
    of `joined` becomes those that it stands for: each has its A, and its own rows of its B. Raises
    LoraNotApplied.
    """
    known = None if modules is None else [*modules, *joined]
    return _split_joined(_make_lora(state, known, sources, is_all=False), joined)


def _split_joined(lora: ScaledLora, joined: Joined) -> ScaledLora:
    """Return a LoRA of the transformer's own modules; raises LoraNotApplied."""
    tensors: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    for module in lora.scales:
        down, up = lora.find_sides(module)
        own = joined.get(module, (module,))
        if up.shape[0] % len(own):
            raise LoraNotApplied(
                f"{module} has {up.shape[0]} outputs, which are not those of {len(own)} modules"
            )
        for name, rows in zip(own, up.chunk(len(own)), strict=True):
            if name in scales:
                raise LoraNotApplied(f"the LoRA has {name} twice, by two of its names")
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = down, rows
            scales[name] = lora.scales[module]
    return ScaledLora(tensors, scales)


def _make_lora(
    state: Mapping[str, Tensor],
    modules: Collection[str] | None,
    sources: Sequence[Stated],
    *,
    is_all: bool,
) -> ScaledLora:
    found = sort_by_module(state, modules)
    scale_of = compute_scales({module: _check_own(part) for module, part in found.items()}, sources)
    tensors: dict[str, Tensor] = {}
    left: dict[str, float] = {}
    for module, part in found.items():
        down, up = _match_dtypes(part.down, part.up)
        is_folded = is_all or part.alpha is not None
        left[module] = 1.0 if is_folded else scale_of[module]
        for_down, for_up = split_scale(scale_of[module] if is_folded else 1.0)
        tensors[f"{module}.lora_A.weight"] = down if for_down == 1 else down * for_down
        tensors[f"{module}.lora_B.weight"] = up if for_up == 1 else up * for_up
    _require_finite(tensors, left)
    return ScaledLora(tensors, left)


def split_scale(scale: float) -> tuple[float, float]:
    """Return what A and B are multiplied by for a scale, which is their product.

    Halves of a small one go to B, so that a float16 A does not vanish: get_alpha_scales of
    diffusers' private LoRA converters. Results are equal to the last bit either way.
    """
    if scale == 0:
        return 0.0, 1.0
    down, up = scale, 1.0
    while abs(down) * 2 < up:
        down, up = down * 2, up / 2
    return down, up


def _check_own(part: ModuleTensors) -> Own:
    """Check the shapes and number formats of a module's tensors and return its rank and alpha."""
    for side, tensor in part.tensors.items():
        key, dtype = show(part.keys[side]), str(tensor.dtype).removeprefix("torch.")
        if side != "alpha":
            if tensor.ndim != MATRIX or not tensor.numel():
                raise LoraNotApplied(
                    f"{key} has the shape {list(tensor.shape)}; A and B are matrices"
                )
            if tensor.dtype not in (*FLOATS, *NARROW_FLOATS):
                raise LoraNotApplied(
                    f"{key} is {dtype} without scales; weights are floating numbers"
                )
        elif tensor.numel() != 1 or tensor.dtype == torch.bool or tensor.is_complex():
            raise LoraNotApplied(f"{key} is {dtype} {list(tensor.shape)}; an alpha is one number")
    rank = part.down.shape[0]
    if rank != part.up.shape[1]:
        keys = f"{show(part.keys['down'])} and {show(part.keys['up'])}"
        raise LoraNotApplied(f"{keys} have the ranks {rank} and {part.up.shape[1]}")
    if part.alpha is None:
        return Own(rank)
    alpha = float(part.alpha.double().item())
    if not math.isfinite(alpha):
        raise LoraNotApplied(f"{show(part.keys['alpha'])} is {alpha}; an alpha is a number")
    rounding = torch.finfo(part.alpha.dtype).eps if part.alpha.is_floating_point() else EXACT
    return Own(rank, alpha, max(rounding, EXACT))


def _match_dtypes(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return A and B in one dtype that supports multiplication."""
    wide = [t.float() if t.dtype in NARROW_FLOATS else t for t in (down, up)]
    dtype = torch.promote_types(wide[0].dtype, wide[1].dtype)
    return wide[0].to(dtype), wide[1].to(dtype)


def _require_finite(state: Mapping[str, Tensor], scales: Mapping[str, float]) -> None:
    """Raise LoraNotApplied for a weight or scale that is not finite, in its own dtype or bf16."""
    most = torch.finfo(torch.bfloat16).max
    # One transfer for all: waiting for the device once, not for each of 1440 tensors.
    ends = torch.stack([end.float() for tensor in state.values() for end in torch.aminmax(tensor)])
    for key, (low, high) in zip(state, ends.view(-1, 2).tolist(), strict=True):
        if not (low >= -most and high <= most):
            raise LoraNotApplied(f"{key} holds NaN or infinity, or does once it is scaled")
    for module, scale in scales.items():
        if abs(scale) > most:
            raise LoraNotApplied(f"the scale of {module} is {scale:g}, more than numbers can hold")


def _name_buffer(adapter: str, side: str) -> str:
    """Name the buffer of an adapter's side: torch allows no dot in it, adapters' names do."""
    return f"{adapter.replace('%', '%25').replace('.', '%2E')}_{side}"


# A Linear, A and B -> its weight [out, in] plus B @ A.
Combine = Callable[[nn.Module, Tensor, Tensor], Tensor]


class LoraLinear(nn.Module):
    """A Linear of any precision with adapters: y = base(x) + B(A(x)) of the active one.

    Or one product with base + B @ A: with the sum that was kept for the active adapter, else with
    what its `combine` makes where it has one.
    """

    down: Tensor | None
    up: Tensor | None
    kept: Tensor | None

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self._combine: Combine | None = None
        self._combine_of: dict[str, Combine] = {}
        self._active: str | None = None
        # the active adapter's, under one name, so that those of a rank share a compiled graph
        for part in (*SIDES, "kept"):
            self.register_buffer(part, None)

    def add(self, name: str, down: Tensor, up: Tensor) -> None:
        """Add an adapter: `down` [rank, in], `up` [out, rank]."""
        for side, tensor in zip(SIDES, (down, up), strict=True):
            self.register_buffer(_name_buffer(name, side), tensor)

    def keep_sum(self, name: str, weight: Tensor) -> None:
        """Keep the weight [out, in] with an adapter's B @ A added."""
        self.register_buffer(_name_buffer(name, "kept"), weight)
        if name == self._active:
            self.kept = weight

    def combine(self, name: str, combine: Combine) -> None:
        """Multiply by one weight, made by `combine` in each forward, while an adapter is active."""
        self._combine_of[name] = combine
        if name == self._active:
            self._combine = combine

    def find_sides(self, name: str) -> tuple[Tensor, Tensor]:
        """Return A and B of an adapter; raise LoraNotApplied for one that lacks a side."""
        down, up = (self._buffers.get(_name_buffer(name, side)) for side in SIDES)
        if down is None or up is None:
            raise LoraNotApplied(f"adapter {name} is not attached to this module")
        return down, up

    @property
    def active(self) -> str | None:
        """Name the active adapter."""
        return self._active

    @active.setter
    def active(self, name: str | None) -> None:
        """Make an adapter active, or none; raise LoraNotApplied for one that lacks a side."""
        self.down, self.up = (None, None) if name is None else self.find_sides(name)
        self.kept = None if name is None else self._buffers.get(_name_buffer(name, "kept"))
        self._combine = None if name is None else self._combine_of.get(name)
        self._active = name

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        if self.down is None or self.up is None:
            plain: Tensor = self.base(x)
            return plain
        base: Any = self.base
        if self.kept is not None:
            return functional.linear(x, self.kept, base.bias)
        if self._combine is not None:
            return functional.linear(x, self._combine(base, self.down, self.up), base.bias)
        y: Tensor = self.base(x)
        low = functional.linear(x.to(self.down.dtype), self.down)
        return (y + functional.linear(low, self.up)).to(y.dtype)


@dataclass(frozen=True, slots=True)
class Fixed:
    """Modules that no adapter can change, because `what` was computed from them before.

    `modules` names published modules that the open model lacks; `sources` are the prefixes of the
    names of those that it still has.
    """

    modules: frozenset[str] = frozenset()
    sources: tuple[str, ...] = ()
    what: str = ""


NOTHING: Final = Fixed()


class Adapters:
    """The adapters of one transformer; at most one is active, and none changes what is `fixed`."""

    def __init__(self, transformer: Any, fixed: Fixed = NOTHING) -> None:
        self._transformer = transformer
        self._fixed = fixed
        self._wrapped: dict[str, LoraLinear] = {}
        self._attached: dict[str, frozenset[str]] = {}
        self.active: str | None = None

    @property
    def attached(self) -> tuple[str, ...]:
        """Name the attached adapters, in the order they were attached."""
        return tuple(self._attached)

    @property
    def modules(self) -> frozenset[str]:
        """Name the modules of the published transformer: a LoRA may name any of them."""
        by_name = dict(self._transformer.named_modules())
        inner = {f"{name}.base" for name in self._wrapped}
        return frozenset(by_name.keys() - inner - {""} | self._fixed.modules)

    def attach(
        self, name: str, state: Mapping[str, Tensor], *, expected: Collection[str] | None = None
    ) -> int:
        """Attach a canonical adapter beside the base and return how many modules it reaches.

        `expected` names the modules that it must reach, no more and no fewer. Raises
        LoraNotApplied on any difference, for anything but a LoRA of this transformer, and for one
        that would change what is fixed; nothing is attached then.
        """
        if name in self._attached:
            raise LoraNotApplied(f"an adapter called {name} is attached already")
        lora = _make_lora(state, self.modules, (), is_all=True)
        modules = sorted(lora.scales)
        if expected is not None and set(expected) != set(modules):
            missing, extra = set(expected) - set(modules), set(modules) - set(expected)
            raise LoraNotApplied(
                f"the LoRA reaches {len(modules)} modules: {len(missing)} of the model's are"
                f" missing and {len(extra)} are not the model's"
            )
        linears = self._find_linears(lora, modules)
        for module, linear in linears.items():
            wrapped = linear if isinstance(linear, LoraLinear) else LoraLinear(linear)
            wrapped.add(name, *lora.find_sides(module))
            parent, _, leaf = module.rpartition(".")
            setattr(self._transformer.get_submodule(parent), leaf, wrapped)
            self._wrapped[module] = wrapped
        self._attached[name] = frozenset(modules)
        return len(modules)

    def find_wrapped(self, name: str) -> dict[str, LoraLinear]:
        """Return the Linears that an adapter reaches, by module."""
        return {module: self._wrapped[module] for module in sorted(self._attached[name])}

    def _find_linears(self, lora: ScaledLora, modules: Sequence[str]) -> dict[str, nn.Module]:
        """Return the Linears that an adapter is attached to; raises LoraNotApplied."""
        found = {}
        widths = lora.widths
        for module in modules:
            base, fits = self.find_linear(module), widths[module]
            if (base.in_features, base.out_features) != fits:
                raise LoraNotApplied(
                    f"{module} maps {base.in_features} to {base.out_features}, the LoRA"
                    f" {fits[0]} to {fits[1]}"
                )
            found[module] = self._transformer.get_submodule(module)
        return found

    def find_linear(self, module: str) -> nn.Linear:
        """Return the Linear of a module without its adapters.

        Raises LoraNotApplied for one that is fixed, and for what is no Linear.
        """
        if module in self._fixed.modules or module.startswith(self._fixed.sources):
            raise LoraNotApplied(
                f"{module} changes {self._fixed.what} that were computed without the LoRA: only"
                " one that is fused before can change it"
            )
        linear = self._transformer.get_submodule(module)
        base = linear.base if isinstance(linear, LoraLinear) else linear
        if not isinstance(base, nn.Linear):
            raise LoraNotApplied(f"{module} is a {type(base).__name__}, not a Linear")
        return base

    def use(self, name: str | None) -> None:
        """Make one adapter active, or none.

        Raises LoraNotApplied for an adapter that is not attached.
        """
        if name == self.active:
            return
        if name is not None and name not in self._attached:
            raise LoraNotApplied(
                f"adapter {name} is not attached; attached: {', '.join(self._attached)}"
            )
        reached = self._attached[name] if name is not None else frozenset()
        for module, wrapped in self._wrapped.items():
            wrapped.active = name if module in reached else None
        self.active = name


def fuse(weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Return `weight` [out, in] with B @ A added in float32, in its own dtype."""
    return (weight.float() + up.float() @ down.float()).to(weight.dtype)
