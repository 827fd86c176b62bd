"""The names of tensors in public LoRA files, mapped to the transformer's own modules."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn

from torch import Tensor

from worker.errors import LoraNotApplied

# Each may come once, in any order: peft, ComfyUI, diffusers, musubi and kohya, LyCORIS, OneTrainer.
PREFIXES: Final = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "unet.",
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
)
# ".lora_A.NAME.weight" is peft's own form while a model is in memory; NAME is the adapter's.
ENDING: Final = re.compile(
    r"(?P<module>.+)\.lora(?:_linear_layer)?"
    r"(?:_(?P<side>down|up|A|B)|\.(?P<old>down|up))"
    r"(?:(?:\.(?P<name>[^.]+))?\.weight)?",
    re.DOTALL,
)
ALPHA_ENDING: Final = ".alpha"
DOWN: Final = ("down", "A")
# What else such files contain, by the names that peft, LyCORIS, kohya and ComfyUI write.
OF_TEXT: Final = (
    r"^(?:base_model\.model\.|lycoris_)?"
    r"(?:text_(?:encoders?(?:_\d)?[._]|model\.)|(?:lora_)?te\d?[._]|conditioner\.)"
)
OTHER_KINDS: Final = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("a LoRA of the text encoder", OF_TEXT),
        ("DoRA", r"\.dora_scale$|\.lora_magnitude_vector\b"),
        ("LoKr", r"\.lokr_"),
        ("LoHa", r"\.hada_"),
        ("OFT", r"\.(?:b?oft_|boft\b)"),
        ("GLoRA", r"\.[ab][12]\.weight$"),
        ("(IA)3", r"\.(?:ia3_l\b|on_input$)"),
        ("VeRA", r"\bvera_lambda_"),
        ("a middle weight (LoCon)", r"\.lora_mid\b"),
        ("an embedding's LoRA", r"\.lora_embedding_[AB]\b"),
        ("the difference of a whole weight", r"\.(?:diff(?:_[bm])?|set_weight|[wb]_norm)$"),
        ("whole modules that were trained", r"\.modules_to_save\."),
        ("scales of quantised weights", r"scale_(?:weight|input)$|(?:weight|input)_scale(?:_\d)?$"),
        ("a bias", r"\.bias$"),
    )
)
LONGEST_KEY: Final = 160  # characters of a key that a message shows


@dataclass(slots=True)
class ModuleTensors:
    """One module's tensors as they are in the file, and their keys, by side."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def down(self) -> Tensor:
        """Return A."""
        return self.tensors["down"]

    @property
    def up(self) -> Tensor:
        """Return B."""
        return self.tensors["up"]

    @property
    def alpha(self) -> Tensor | None:
        """Return the alpha, if the file has one."""
        return self.tensors.get("alpha")


def show(key: str) -> str:
    """Return a key as messages show it: on one line, and cut when it is long."""
    text = key.encode("unicode_escape").decode("ascii")
    return text if len(text) <= LONGEST_KEY else f"{text[:LONGEST_KEY]}..."


# Names under which publishers know several Linears as one, or one by another name -> ours, in the
# order in which the outputs of one follow each other.
Joined = Mapping[str, Sequence[str]]
NONE_JOINED: Final[Joined] = {}


class Names:
    """The modules of one transformer by the names that a file may give them.

    A flat name ("blocks_0_attn_to_q") is looked up among the modules' own names with
    "_" for ".": no underscore is guessed to be a dot.
    """

    def __init__(self, modules: Iterable[str]) -> None:
        self._dotted = frozenset(modules)
        self._flat: dict[str, list[str]] = {}
        for module in sorted(self._dotted):
            self._flat.setdefault(module.replace(".", "_"), []).append(module)

    def find(self, name: str) -> str | None:
        """Return the module of that name; raises LoraNotApplied when several have it."""
        if name in self._dotted:
            return name
        found = self._flat.get(name, [])
        if len(found) > 1:
            raise LoraNotApplied(
                f"the LoRA's flat name {show(name)} may mean {' or '.join(found[:3])}"
            )
        return next(iter(found), None)


def sort_by_module(
    state: Mapping[str, Tensor], modules: Collection[str] | None = None
) -> dict[str, ModuleTensors]:
    """Sort a file's tensors by module.

    `modules` names the transformer's own; without them a flat name is not resolved. Raises
    LoraNotApplied, naming the key, for anything but a plain LoRA, for a module that the
    transformer lacks, for a second tensor of the same part, for a second adapter and for half a
    pair.
    """
    names = None if modules is None else Names(modules)
    found: dict[str, ModuleTensors] = {}
    adapters: dict[str, str] = {}
    for key, tensor in state.items():
        bare, side, adapter = _split(key)
        if adapter is not None:
            adapters.setdefault(adapter, key)
        part = found.setdefault(_resolve(bare, key, names), ModuleTensors())
        if side in part.keys:
            raise LoraNotApplied(
                f"the LoRA has one part twice: {show(part.keys[side])} and {show(key)}"
            )
        part.tensors[side], part.keys[side] = tensor, key
    if len(adapters) > 1:
        first, second = list(adapters.values())[:2]
        raise LoraNotApplied(
            f"the file holds {len(adapters)} adapters: {show(first)} and {show(second)}"
        )
    odd = sorted(key for part in found.values() for key in _find_half(part))
    if odd or not found:
        raise LoraNotApplied(
            f"the LoRA is incomplete: {len(odd)} modules lack a part,"
            f" {[show(key) for key in odd[:3]]}"
        )
    return found


def _find_half(part: ModuleTensors) -> list[str]:
    """Return one key of a module that lacks its A or B, in a list."""
    return [] if {"down", "up"} <= part.keys.keys() else list(part.keys.values())[:1]


def _split(key: str) -> tuple[str, str, str | None]:
    """Return a key's module as it is written, its side, and the adapter's name."""
    for kind, pattern in OTHER_KINDS:
        if pattern.search(key):
            raise LoraNotApplied(f"the LoRA holds {kind}, which is not served: {show(key)}")
    if key.endswith(ALPHA_ENDING):
        return key.removesuffix(ALPHA_ENDING), "alpha", None
    match = ENDING.fullmatch(key)
    if match is None:
        _refuse(key)
    side = match["side"] or match["old"]
    return match["module"], "down" if side in DOWN else "up", match["name"]


def _resolve(bare: str, key: str, names: Names | None) -> str:
    """Return the transformer's name for a module, with each prefix removed at most once."""
    name, left = bare, list(PREFIXES)
    while True:
        if names is not None and (module := names.find(name)) is not None:
            return module
        prefix = next((p for p in left if name.startswith(p)), None)
        if prefix is None:
            break
        left.remove(prefix)
        name = name.removeprefix(prefix)
    if not name:
        _refuse(key)
    if names is not None:
        raise LoraNotApplied(f"the LoRA names a module that the model lacks: {show(key)}")
    if "." not in name and bare.endswith(f"_{name}"):
        raise LoraNotApplied(
            f"a flat name means a module of one transformer alone, and none was given: {show(key)}"
        )
    return name


def _refuse(key: str) -> NoReturn:
    raise LoraNotApplied(f"the LoRA has a key of unknown form: {show(key)}")
