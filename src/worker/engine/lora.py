"""LoRA adapters beside the base weights, switched per job without touching them."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from torch import Tensor, nn
from torch.nn import functional

from worker.errors import LoraNotApplied

# The twelve Linears of a block that Lightning's LoRAs reach (720 modules in 60 blocks); they hold
# no img_mod or txt_mod, so modulation rows serve every adapter.
LIGHTNING_MODULES: Final = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "img_mlp.net.0.proj",
    "img_mlp.net.2",
    "txt_mlp.net.0.proj",
    "txt_mlp.net.2",
)
PREFIXES: Final = ("diffusion_model.", "transformer.")
DOWN: Final = (".lora_down.weight", ".lora_A.weight")
UP: Final = (".lora_up.weight", ".lora_B.weight")


def lightning_modules(blocks: int) -> list[str]:
    """Name every module that a Lightning LoRA must reach in a transformer of `blocks` blocks."""
    return [
        f"transformer_blocks.{block}.{module}"
        for block in range(blocks)
        for module in LIGHTNING_MODULES
    ]


def _named(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in state.items():
        name = key
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        yield name, tensor


def canonical(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a LoRA as `<module>.lora_A.weight` [rank, in] and `.lora_B.weight` [out, rank].

    Accepts lora_down/lora_up or lora_A/lora_B keys, bare or under a prefix. `alpha / rank` is
    folded into A in A's own dtype, as diffusers does (its private converter of Qwen LoRAs), so
    that the adapter's scale is 1 and results are equal to the last bit.

    Raises LoraNotApplied for a key that is neither, or for half a pair.
    """
    downs: dict[str, Tensor] = {}
    ups: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for name, tensor in _named(state):
        if name.endswith(".alpha"):
            alphas[name.removesuffix(".alpha")] = float(tensor.item())
            continue
        for side, endings in ((downs, DOWN), (ups, UP)):
            ending = next((e for e in endings if name.endswith(e)), None)
            if ending:
                side[name.removesuffix(ending)] = tensor
                break
        else:
            raise LoraNotApplied(f"the LoRA has a key of unknown form: {name}")
    odd = sorted((downs.keys() ^ ups.keys()) | (alphas.keys() - downs.keys()))
    if odd or not downs:
        raise LoraNotApplied(f"the LoRA is not whole: {len(odd)} modules lack a part, {odd[:3]}")
    canonical_state: dict[str, Tensor] = {}
    for module, down in downs.items():
        scale = alphas[module] / down.shape[0] if module in alphas else 1.0
        canonical_state[f"{module}.lora_A.weight"] = down * scale
        canonical_state[f"{module}.lora_B.weight"] = ups[module]
    return canonical_state


class LoraLinear(nn.Module):
    """A Linear of any precision with adapters beside it: y = base(x) + B(A(x)) of the active."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.active: str | None = None

    def add(self, name: str, down: Tensor, up: Tensor) -> None:
        """Hold an adapter: `down` [rank, in], `up` [out, rank]."""
        self.register_buffer(f"{name}_down", down, persistent=False)
        self.register_buffer(f"{name}_up", up, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        y: Tensor = self.base(x)
        if self.active is None:
            return y
        down, up = self._buffers[f"{self.active}_down"], self._buffers[f"{self.active}_up"]
        if down is None or up is None:
            raise LoraNotApplied(f"adapter {self.active} is not held by this module")
        low = functional.linear(x.to(down.dtype), down)
        return (y + functional.linear(low, up)).to(y.dtype)


def _linear(transformer: Any, name: str) -> tuple[nn.Module, str, nn.Module]:
    parent_name, _, leaf = name.rpartition(".")
    try:
        parent = transformer.get_submodule(parent_name)
        return parent, leaf, parent.get_submodule(leaf)
    except AttributeError:
        raise LoraNotApplied(f"the LoRA names a module that the model lacks: {name}") from None


class Adapters:
    """The adapters of one transformer; at most one is active."""

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        self._wrapped: dict[str, LoraLinear] = {}
        self._held: dict[str, frozenset[str]] = {}
        self.active: str | None = None

    @property
    def held(self) -> tuple[str, ...]:
        """Name the adapters held, in the order they were attached."""
        return tuple(self._held)

    def attach(
        self, name: str, state: Mapping[str, Tensor], *, expected: list[str] | None = None
    ) -> int:
        """Hold a canonical adapter beside the base and return how many modules it reaches.

        `expected` names the modules that it must reach, neither more nor fewer (Lightning: all of
        `lightning_modules`). Raises LoraNotApplied on any miss; nothing is attached then.
        """
        modules = sorted({key.rsplit(".lora_", 1)[0] for key in state})
        if expected is not None and set(expected) != set(modules):
            missing, extra = set(expected) - set(modules), set(modules) - set(expected)
            raise LoraNotApplied(
                f"the LoRA reaches {len(modules)} modules: {len(missing)} of the model's are"
                f" missing and {len(extra)} are not the model's"
            )
        places = []
        for module in modules:
            down, up = state[f"{module}.lora_A.weight"], state[f"{module}.lora_B.weight"]
            parent, leaf, linear = _linear(self._transformer, module)
            base = linear.base if isinstance(linear, LoraLinear) else linear
            if not isinstance(base, nn.Linear):
                raise LoraNotApplied(f"{module} is a {type(base).__name__}, not a Linear")
            if (base.in_features, base.out_features) != (down.shape[1], up.shape[0]):
                raise LoraNotApplied(
                    f"{module} maps {base.in_features} to {base.out_features}, the LoRA"
                    f" {down.shape[1]} to {up.shape[0]}"
                )
            places.append((module, parent, leaf, linear, down, up))
        for module, parent, leaf, linear, down, up in places:
            wrapped = linear if isinstance(linear, LoraLinear) else LoraLinear(linear)
            wrapped.add(name, down, up)
            setattr(parent, leaf, wrapped)
            self._wrapped[module] = wrapped
        self._held[name] = frozenset(modules)
        return len(modules)

    def use(self, name: str | None) -> None:
        """Make one adapter active, or none.

        Raises LoraNotApplied for an adapter that is not held.
        """
        if name == self.active:
            return
        if name is not None and name not in self._held:
            raise LoraNotApplied(f"adapter {name} is not held; held: {', '.join(self._held)}")
        reached = self._held[name] if name is not None else frozenset()
        for module, wrapped in self._wrapped.items():
            wrapped.active = name if module in reached else None
        self.active = name


def fused(weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Return `weight` [out, in] with B @ A added in float32, in the weight's own dtype."""
    return (weight.float() + up.float() @ down.float()).to(weight.dtype)


def rank(state: Mapping[str, Tensor]) -> int:
    """Return the largest rank in a canonical LoRA."""
    return max((t.shape[0] for k, t in state.items() if k.endswith(".lora_A.weight")), default=0)


def bytes_of(state: Mapping[str, Tensor]) -> int:
    """Return the size of a LoRA's tensors in bytes."""
    return sum(math.prod(t.shape) * t.element_size() for t in state.values())
