"""One bundle folder -> the modules of a warm model, filled while its files are read."""

import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from worker.bundle import format as layout
from worker.bundle import modules, rows
from worker.bundle.format import Damaged, Verified
from worker.bundle.read import THREADS, Reader
from worker.bundle.tokenizing import open_processor, open_tokenizer
from worker.engine.components import Components
from worker.engine.lora import Adapters, lightning_modules
from worker.engine.modulation import RowModulation
from worker.engine.quantise import Precision, linear
from worker.errors import LoraNotApplied

# What `shared` maps: (component identity, device) -> a module that several models use.
Shared = MutableMapping[tuple[str, str], nn.Module]
NEEDED: Final = ("transformer", "text_encoder", "vae", "tokenizer", "scheduler")

T = TypeVar("T")


def shared() -> Shared:
    """Return a place where the models of one process find each other's text encoder and VAE.

    It holds them weakly: what no open model uses any more is freed.
    """
    return WeakValueDictionary()


def open_bundle(
    folder: Path,
    device: torch.device,
    *,
    verify: Literal["sizes", "full"] = "sizes",
    text_encoder_device: torch.device | None = None,
    share: Shared | None = None,
    threads: int = THREADS,
) -> Components:
    """Open a bundle with its Lightning LoRAs attached and its modulation as rows, all in bf16.

    Files are read straight into the memory of meta-device modules while the libraries are still
    being imported. `text_encoder_device` keeps the text encoder elsewhere (offload); `share` lets
    models have one text encoder and VAE. Adapters are called `lightning_N`; a bundle with a LoRA in
    its weights answers to that name alone. Raises Damaged, LoraNotApplied, FileNotFoundError.
    """
    found = layout.verify(folder, verify)
    return _Opening(found, device, text_encoder_device or device, share, threads).components()


class _Opening:
    """One bundle being opened."""

    def __init__(
        self,
        found: Verified,
        device: torch.device,
        text_device: torch.device,
        share: Shared | None,
        threads: int,
    ) -> None:
        self._found = found
        self._bundle = found.bundle
        self._text_device = text_device
        self._readers: dict[str, Reader] = {}
        self._device = device
        self._shared: Shared = {} if share is None else share
        self._threads = threads

    def components(self) -> Components:
        """Start every read, build the modules as their files arrive, and check that all is real."""
        for role in NEEDED:
            if role not in self._found.parts:
                raise Damaged(self._found.folder, f"it has no {role}")
        # An offloaded text encoder has memory of its own: the cache of a volume may be taken away.
        mapped = self._device.type == "cpu"
        with (
            Reader(self._device, self._threads, mapped=mapped) as near,
            Reader(self._text_device, self._threads, mapped=mapped) as far,
        ):
            self._readers = {"text_encoder": far, "": near}
            for role in self._found.parts:
                if self._key(role) not in self._shared:
                    for path in self._weights(role):
                        self._reader(role).start(path)
            return self._built()

    def _built(self) -> Components:
        # What is called here imports for seconds; the readers' threads work meanwhile.
        transformer, modulation = self._transformer()
        tokenizer = self._opened("tokenizer", open_tokenizer)
        processor = None
        if "processor" in self._found.parts:
            processor = self._opened("processor", open_processor)
        return Components(
            transformer=transformer,
            text_encoder=self._text_encoder(),
            vae=self._vae(),
            tokenizer=tokenizer,
            processor=processor,
            scheduler=self._json("scheduler", "scheduler_config.json"),
            adapters=self._adapters(transformer),
            modulation=modulation,
            device=self._device,
            dtype=torch.bfloat16,
        )

    def _transformer(self) -> tuple[Any, RowModulation]:
        model = self._made("transformer", modules.transformer)
        table = rows.table(self._files("transformer", layout.ROWS))
        modulation = RowModulation(model, table, self._device)
        self._fill("transformer", model, self._bundle.precision)
        return model, modulation

    def _text_encoder(self) -> Any:
        def made() -> nn.Module:
            model: nn.Module = modules.without_head(
                self._made("text_encoder", modules.text_encoder)
            )
            self._fill("text_encoder", model, self._bundle.precision)
            return model

        return self._once("text_encoder", made)

    def _vae(self) -> Any:
        def made() -> nn.Module:
            model: nn.Module = self._made("vae", modules.vae)
            self._fill("vae", model, "bf16")
            return model

        return self._once("vae", made)

    def _adapters(self, transformer: Any) -> Adapters:
        if self._bundle.fused is not None:
            return FusedAdapter(transformer, layout.adapter_role(self._bundle.fused))
        adapters = Adapters(transformer)
        expected = lightning_modules(len(transformer.transformer_blocks))
        for steps in self._bundle.lightning:
            role = layout.adapter_role(steps)
            state = {key: t.to(self._device) for key, t in self._taken(role).items()}
            adapters.attach(role, state, expected=expected)
        return adapters

    def _once(self, role: str, made: Callable[[], nn.Module]) -> nn.Module:
        """Return a module that another open model has, or make it."""
        key = self._key(role)
        found = self._shared.get(key)
        if found is None:
            found = made()
            self._shared[key] = found
        return found

    def _made(self, role: str, make: Callable[[Mapping[str, Any]], Any]) -> Any:
        """Build a component's modules; raises Damaged when its configuration describes none."""
        config = self._json(role)
        try:
            return make(config)
        except Exception as error:
            # a constructor raises anything; the part goes the way of every damaged one
            raise Damaged(
                self._found.parts[role][0], f"no modules can be built from it: {error}"
            ) from error

    def _opened(self, role: str, opening: Callable[[Path], T]) -> T:
        """Open a component of small files; raises Damaged when it cannot be opened."""
        folder = self._found.parts[role][0]
        try:
            return opening(folder)
        except Exception as error:
            # transformers raises anything; the part goes the way of every damaged one
            raise Damaged(folder, f"it cannot be opened ({type(error).__name__})") from error

    def _fill(self, role: str, model: nn.Module, precision: Precision) -> None:
        try:
            fill(model, self._taken(role), precision, self._place(role))
        except (KeyError, ValueError) as error:
            folder = self._found.parts[role][0]
            raise Damaged(folder, f"it does not fit its modules: {error}") from error

    def _taken(self, role: str) -> dict[str, Tensor]:
        held: dict[str, Tensor] = {}
        for path in self._weights(role):
            held |= self._reader(role).take(path)
        return held

    def _files(self, role: str, stem: str) -> list[Path]:
        folder, part = self._found.parts[role]
        return [folder / name for name in sorted(part.files) if name.startswith(f"{stem}-")]

    def _weights(self, role: str) -> list[Path]:
        return self._files(role, layout.ADAPTER) or self._files(role, layout.WEIGHTS)

    def _reader(self, role: str) -> Reader:
        return self._readers.get(role) or self._readers[""]

    def _place(self, role: str) -> torch.device:
        return self._text_device if role == "text_encoder" else self._device

    def _key(self, role: str) -> tuple[str, str]:
        return self._found.parts[role][1].identity, str(self._place(role))

    def _json(self, role: str, name: str = "config.json") -> dict[str, Any]:
        folder = self._found.parts[role][0]
        try:
            value = json.loads((folder / name).read_bytes())
        except (OSError, ValueError, RecursionError):
            raise Damaged(folder, f"{name} cannot be read") from None
        if not isinstance(value, dict):
            raise Damaged(folder, f"{name} is no JSON object")
        return value


class FusedAdapter(Adapters):
    """The one LoRA that is in the weights: always active, and nothing else can be."""

    def __init__(self, transformer: Any, name: str) -> None:
        super().__init__(transformer)
        self.active = name

    @property
    def held(self) -> tuple[str, ...]:
        """Name the LoRA in the weights."""
        return () if self.active is None else (self.active,)

    def use(self, name: str | None) -> None:
        """Accept the LoRA in the weights; raise LoraNotApplied for another one and for none."""
        if name != self.active:
            raise LoraNotApplied(
                f"{self.active} is in the weights (LIGHTNING_FUSED): this worker serves it alone"
            )


def fill(
    model: nn.Module, held: Mapping[str, Tensor], precision: Precision, device: torch.device
) -> None:
    """Give every parameter of a meta-device model its tensor, quantised Linears their own module.

    `held` is in bf16 where `quantise` did not store it. The model ends in eval mode on `device`.
    Raises KeyError or ValueError when tensors and parameters do not match one to one, or when
    anything is left on meta.
    """
    plain, quantised = _parted(held)
    for name, parts in quantised.items():
        parts["weight"] = plain.pop(f"{name}.weight")
        bias = plain.pop(f"{name}.bias", None)
        moved = None if bias is None else bias.to(device)
        _put(model, name, linear(parts, moved, precision, device))
    for name, old in list(model.named_parameters()):
        if not old.is_meta:
            continue
        tensor = plain.pop(name)
        if tensor.shape != old.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, not {tuple(old.shape)}")
        _put(model, name, nn.Parameter(tensor.to(device), requires_grad=False))
    if plain:
        raise ValueError(f"{len(plain)} tensors have no place, {sorted(plain)[:3]}")
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = buffer.to(device)  # noqa: SLF001 - setting keeps no persistence
    model.eval().requires_grad_(requires_grad=False)
    if lost := sorted(on_meta(model)):
        raise ValueError(f"{len(lost)} tensors have no memory, {lost[:3]}")


def _parted(held: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Part what is a parameter from what belongs to a quantised weight ("MODULE.weight.absmax")."""
    plain: dict[str, Tensor] = {}
    quantised: dict[str, dict[str, Tensor]] = {}
    for name, tensor in held.items():
        module, packed, suffix = name.partition(".weight.")
        if packed:
            quantised.setdefault(module, {})[f"weight.{suffix}"] = tensor
        else:
            plain[name] = tensor
    return plain, quantised


def _put(model: nn.Module, name: str, value: nn.Module | nn.Parameter) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, value)


def on_meta(model: nn.Module) -> Iterator[str]:
    """Name every tensor of a model that is on meta: parameters, buffers and plain attributes."""
    for path, module in model.named_modules():
        for name, tensor in _tensors("", vars(module)):
            if tensor.is_meta:
                yield f"{path}{name}"


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Find the tensors in a value and in the dicts and sequences in it."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _tensors(f"{name}.{index}", item)
