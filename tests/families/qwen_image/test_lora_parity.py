"""LoRAs of jobs give what the stock stack gives with them, to the last bit, in every key form."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor

from worker.bundle.layout import name_adapter
from worker.bundle.prepare import prepare
from worker.engine.lora import LoraLinear, make_canonical
from worker.engine.quantise import Precision
from worker.engine.schedule import make_schedule
from worker.families.clock import Clock
from worker.families.qwen_image.lightning import make_lightning_schedule
from worker.families.qwen_image.model import QwenImage
from worker.families.qwen_image.modulation import RowModulation
from worker.families.qwen_image.opening import open_bundle
from worker.families.sharing import Sharing
from worker.loras.ready import ReadyLora
from worker.seam import Unheard
from worker.tasks.picture import PictureWish
from worlds import prepared
from worlds.loras import FORMS, RANK, TWINS, random_pairs, table_of, write_form
from worlds.stock import Pair

ALPHA = 3.0  # of rank 4: a scale that is rounded where it is folded
STRONG = 0.15
TOKENS = 16
MODULES = (
    "attn.to_q",
    "attn.to_out.0",
    "attn.add_k_proj",
    "attn.to_add_out",
    "img_mlp.net.0.proj",
    "img_mlp.net.2",
    "txt_mlp.net.2",
    "img_mod.1",
    "txt_mod.1",
)
ENDS = ("img_in", "txt_in", "proj_out", "norm_out.linear")
BASE = PictureWish(
    task="text-to-image",
    prompt="a large red star on a blue background, on the left",
    negative_prompt=None,
    references=(),
    width=64,
    height=64,
    steps=2,
    true_cfg_scale=1.0,
    lightning=False,
    seed=7,
)
WISHES = {"base": BASE, "lightning": replace(BASE, steps=4, lightning=True)}
pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),
    pytest.mark.parametrize("kind", WISHES),
]


class Files:
    """One LoRA in every form, and a second one, for the embedded transformer."""

    def __init__(self, folder: Path) -> None:
        path = prepared.folder_of("tiny-image") / "transformer"
        self.transformer = QwenImageTransformer2DModel.from_pretrained(path)
        blocks = range(len(self.transformer.transformer_blocks))
        modules = [*(f"transformer_blocks.{n}.{one}" for n in blocks for one in MODULES), *ENDS]
        self.pairs = random_pairs(self.transformer, modules, 5, STRONG)
        self.loras: dict[str, ReadyLora] = {}
        for name, form in FORMS.items():
            file = folder / f"{len(self.loras)}.safetensors"
            beside = write_form(self.pairs, ALPHA, form, file)
            self.loras[name] = ReadyLora(name, f"sha256:{name}", 1.0, file, beside, is_callers=True)
        second = random_pairs(self.transformer, modules[::2], 6, STRONG)
        file = folder / "second.safetensors"
        write_form(second, ALPHA, FORMS["diffusers"], file)
        self.loras["second"] = ReadyLora(
            "second", "sha256:second", 1.0, file, None, is_callers=True
        )

    def find_twin(self, name: str) -> str:
        """Return the form in which the stock loader reads what this form means."""
        form = FORMS[name]
        return name if form.is_stock else TWINS[form.record]

    def use(self, scales: Mapping[str, float]) -> tuple[ReadyLora, ...]:
        """Return these LoRAs at their scales."""
        return tuple(replace(self.loras[name], scale=scale) for name, scale in scales.items())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("loras"))


class Stock:
    """The stock pipeline with LoRAs that its own loader read, and ours of the same weights."""

    def __init__(self, files: Files, dtype: torch.dtype) -> None:
        self.files = files
        self.pair = Pair("tiny-image", zero_cond_t=False, dtype=dtype)
        self.found: dict[Any, Tensor] = {}
        self.loaded: set[str] = set()

    def predict(self, kind: str, scales: Mapping[str, float]) -> Tensor:
        """Return the latents of the stock pipeline."""
        key = kind, tuple(scales.items())
        if key not in self.found:
            for name in scales.keys() - self.loaded:
                self.load(name)
            self.found[key] = self.pair.stock_latents(WISHES[kind], loras=scales)
        return self.found[key]

    def load(self, name: str) -> None:
        """Have the stock loader read a LoRA, and copy what it maps from the file.

        Unaligned, as it is there, a CPU rounds its products otherwise.
        """
        self.pair.stock.load_lora_weights(
            self.files.loras[name].path, adapter_name=name, use_safetensors=True
        )
        for parameter in self.pair.stock.transformer.parameters():
            parameter.data = parameter.data.clone()
        self.loaded.add(name)

    def predict_ours(self, kind: str, scales: Mapping[str, float]) -> Tensor:
        """Return our latents."""
        wish = replace(WISHES[kind], loras=self.files.use(scales))
        return self.pair.our_latents(wish)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def stock(request: pytest.FixtureRequest, files: Files) -> Stock:
    return Stock(files, request.param)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_latents_of_the_stock_pipeline(
    stock: Stock, files: Files, name: str, kind: str
) -> None:
    """To the last bit in fp32 and bf16; in a form that it reads where it does not read this one."""
    expected = stock.predict(kind, {files.find_twin(name): 0.8})
    assert torch.equal(stock.predict_ours(kind, {name: 0.8}), expected)
    plain = stock.predict_ours(kind, {})
    assert torch.equal(plain, stock.predict(kind, {}))
    assert (plain - expected).abs().max() > 0.05 * (plain.max() - plain.min())


def test_two_at_once_give_what_the_stock_pipeline_gives(stock: Stock, kind: str) -> None:
    """In the order of the job, to the last bit; their order is no more than rounding."""
    scales = {"diffusers": 0.7, "second": -0.3}
    expected = stock.predict(kind, scales)
    found = stock.predict_ours(kind, scales)
    assert torch.equal(found, expected)
    one = stock.predict_ours(kind, {"diffusers": 0.7})
    assert not torch.allclose(one, expected, atol=1e-2)
    other = stock.predict_ours(kind, dict(reversed(scales.items())))
    rounding = 1e-3 if found.dtype == torch.float32 else 0.2
    assert (other - found).abs().max() < rounding * (found.max() - found.min())


class Bundle:
    """A bundle with LoRAs of jobs, and again with what defines them.

    The definition is peft next to the same weights of the bundle, and rows that the published
    modulation weights give with peft next to them: a bundle has no such weights itself.
    """

    def __init__(self, files: Files, home: Path, precision: Precision) -> None:
        self.files = files
        folder = prepare(prepared.order_of("tiny-image", home, precision))
        self.parts, self.theirs = (open_bundle(folder, prepared.CPU) for _ in range(2))
        self.model = prepared.model("tiny-image", self.parts)
        for name, module in list(self.theirs.transformer.named_modules()):
            if isinstance(module, LoraLinear):
                owner, _, leaf = name.rpartition(".")
                setattr(self.theirs.transformer.get_submodule(owner), leaf, module.base)
        steps = WISHES["lightning"].steps
        path = prepared.lightning_files("tiny-image")[name_adapter(steps)]
        self.weights = copy.deepcopy(files.transformer).to(torch.bfloat16)
        self.load(self.theirs.transformer, "lightning", make_canonical(load_file(path)), 1.0)
        self.found: dict[tuple[str, str], Tensor] = {}

    def load(self, model: Any, name: str, state: Mapping[str, Tensor], scale: float) -> None:
        """Have peft put an adapter next to a model's weights, in bf16."""
        rank = next(iter(state.values())).shape[0]
        targets = [key.removesuffix(".lora_A.weight") for key in state if "lora_A" in key]
        model.load_lora_adapter(
            {key: tensor.bfloat16() for key, tensor in state.items()},
            prefix=None,
            adapter_name=name,
            metadata={"r": rank, "lora_alpha": scale * rank, "target_modules": targets},
        )
        for key, parameter in model.named_parameters():
            if ".lora_" in key:  # next to int8 weights peft makes them float32
                parameter.data = parameter.data.bfloat16()

    def define(self, record: str, kind: str) -> Tensor:
        """Return the latents with the LoRA at 0.8, its scale stated as a form's record does."""
        if (record, kind) in self.found:
            return self.found[record, kind]
        folded, scale = {"alpha": (ALPHA / RANK, 1.0), "none": (1.0, 1.0)}.get(
            record, (1.0, ALPHA / RANK)
        )
        name = f"{record}_{kind}"
        state = {}
        for module, (down, up) in self.files.pairs.items():
            state[f"{module}.lora_A.weight"] = down * folded
            state[f"{module}.lora_B.weight"] = up
        rows = {key: tensor for key, tensor in state.items() if "_mod.1." in key}
        rest = {key: tensor for key, tensor in state.items() if key not in rows}
        self.load(self.weights, name, rows, scale)
        self.load(self.theirs.transformer, name, rest, scale)
        self.weights.set_adapters([name], [0.8])
        used = {"lightning": 1.0, name: 0.8} if kind == "lightning" else {name: 0.8}
        self.theirs.transformer.set_adapters(list(used), list(used.values()))
        steps = WISHES[kind].steps
        schedule = (
            make_lightning_schedule(steps, TOKENS)
            if kind == "lightning"
            else make_schedule(self.theirs.scheduler, steps, TOKENS)
        )
        table = table_of(self.weights, schedule.timesteps)
        modulation = RowModulation(self.theirs.transformer, table, prepared.CPU)
        model = prepared.model("tiny-image", replace(self.theirs, modulation=modulation))
        self.found[record, kind] = run(model, WISHES[kind])
        return self.found[record, kind]


def run(model: QwenImage, wish: PictureWish) -> Tensor:
    """Return the latents of one wish."""
    sharing = Sharing([Unheard()], drops=True)
    return model.make_latents([wish], sharing, Clock(prepared.CPU))


@pytest.fixture(scope="module", params=["bf16", "8bit", "4bit"])
def bundle(
    request: pytest.FixtureRequest, files: Files, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    return Bundle(files, tmp_path_factory.mktemp("home"), request.param)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_latents_of_its_definition_on_a_bundle(
    bundle: Bundle, files: Files, name: str, kind: str
) -> None:
    """To the last bit, at every precision; then as if there had been none."""
    before = run(bundle.model, WISHES[kind])
    found = run(bundle.model, replace(WISHES[kind], loras=files.use({name: 0.8})))
    assert torch.equal(found, bundle.define(FORMS[name].record, kind))
    assert (found - before).abs().max() > 0.05 * (before.max() - before.min())
    assert torch.equal(run(bundle.model, WISHES[kind]), before)
