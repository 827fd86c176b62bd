"""Weights published quantised are refused by the name of their format, before they come."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from worker import boot, settings
from worker.bundle import prequantised, refuse
from worker.bundle.prepare import compute_sizes, prepare
from worker.bundle.tensors import TensorEntry
from worker.engine.quantise import is_quantised, quantise
from worker.errors import WeightsUnavailable
from worker.families.catalogue import CATALOGUE
from worker.families.qwen_image.modulation import MODULATION
from worker.families.qwen_image.parts import TRANSFORMER
from worker.weights import checkpoint, sources
from worker.weights.snapshot import LocalSnapshot
from worker.weights.spec import Listing, ModelSpec
from worlds import altered, prepared
from worlds.altered import Raw
from worlds.hub import Hub, running
from worlds.repository import Copying

CPU = torch.device("cpu")
LAYER = "transformer_blocks.1.attn.to_q.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An edit model of the embedded sizes that a test may alter."""
    return altered.copied("tiny-edit", tmp_path / "published")


def refused(folder: Path, home: Path) -> str:
    """Return why a published folder is not prepared; not a byte of weights was fetched."""
    source = Copying(folder)
    order = prepared.order_of("tiny-edit", home, snapshot=source)
    for act in (compute_sizes, prepare):
        with pytest.raises(WeightsUnavailable) as caught:
            act(order)
    assert source.fetched == []
    assert not order.folder.exists()
    assert not caught.value.retryable
    return caught.value.message


CONFIGURED: dict[str, tuple[dict[str, Any], str]] = {
    "bitsandbytes NF4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "bitsandbytes 4-bit (nf4)",
    ),
    "bitsandbytes int8": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True, "bnb_4bit_quant_type": "fp4"},
        "bitsandbytes 8-bit",
    ),
    "AWQ": ({"quant_method": "awq", "bits": 4}, "AWQ (4-bit)"),
    "GPTQ": ({"quant_method": "gptq", "bits": 8}, "GPTQ (8-bit)"),
    "SDNQ": ({"quant_method": "sdnq", "weights_dtype": "uint4"}, "SDNQ (uint4)"),
    "quanto": ({"quant_method": "quanto", "weights_dtype": "float8"}, "quanto (float8)"),
    "torchao": ({"quant_method": "torchao", "quant_type": "int8wo"}, "torchao (int8wo)"),
    "GGUF": ({"quant_method": "gguf"}, "GGUF"),
    "fp8": ({"quant_method": "fp8", "fmt": "e4m3"}, "fp8 (e4m3)"),
    "one that is not known here": ({"quant_method": "new-method"}, "new-method"),
    "no name": ({"bits": 4}, "without a name"),
}


@pytest.mark.parametrize("role", altered.WEIGHTS)
@pytest.mark.parametrize("kind", CONFIGURED)
def test_a_configuration_that_calls_itself_quantised_is_believed(
    kind: str, role: str, folder: Path, tmp_path: Path
) -> None:
    declared, name = CONFIGURED[kind]
    altered.configure(folder / role / "config.json", quantization_config=declared)
    message = refused(folder, tmp_path / "home")
    assert name in message
    assert f"{role}/config.json" in message
    assert "MODEL=Qwen/Qwen-Image-Edit-2511" in message


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("model_index.json", {"quantization_config": {"quant_backend": "bitsandbytes_4bit"}}),
        ("text_encoder/config.json", {"compression_config": {"quant_method": "x"}}),
        ("text_encoder/config.json", {"text_config": {"quantization_config": {"bits": 4}}}),
        ("transformer/config.json", {"quantization_config": "nf4"}),
    ],
)
def test_it_may_be_told_elsewhere(
    path: str, changes: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    altered.configure(folder / path, **changes)
    assert f"says {path}" in refused(folder, tmp_path / "home")


@pytest.mark.parametrize("empty", [None, {}])
def test_an_empty_quantisation_is_none(empty: object, folder: Path, tmp_path: Path) -> None:
    altered.configure(folder / "transformer/config.json", quantization_config=empty)
    order = prepared.order_of("tiny-edit", tmp_path, snapshot=Copying(folder))
    assert prepared.shards_of(order)["transformer"]


WIDTHS = {
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1,
    "F4": 1,
    "F6_E2M3": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "I16": 2,
    "U16": 2,
    "I32": 4,
    "U32": 4,
    "I64": 8,
    "U64": 8,
    "C64": 8,
    "Q4_K": 1,
}


@pytest.mark.parametrize(
    ("written", "words"),
    [("I8", "int8 (I8)"), ("U8", "packed bytes (U8)"), ("F8_E5M2", "fp8 (F8_E5M2)")],
)
def test_the_common_formats_have_the_publishers_words(
    written: str, words: str, folder: Path, tmp_path: Path
) -> None:
    def change(tensors: dict[str, Raw]) -> None:
        _, shape, data = tensors[LAYER]
        tensors[LAYER] = (written, shape, bytes(len(data) // 2))

    altered.alter(altered.weights_of(folder, "transformer"), change)
    assert f"{words}, as {LAYER}" in refused(folder, tmp_path / "home")


@pytest.mark.parametrize("written", WIDTHS)
def test_a_number_format_is_refused_by_its_name(written: str, folder: Path, tmp_path: Path) -> None:
    """One tensor among bf16 ones is enough, with scales beside it or without."""

    def change(tensors: dict[str, Raw]) -> None:
        _, shape, data = tensors[LAYER]
        tensors[LAYER] = (written, shape, bytes(len(data) // 2 * WIDTHS[written]))

    altered.alter(altered.weights_of(folder, "transformer"), change)
    message = refused(folder, tmp_path / "home")
    assert written in message
    assert LAYER in message
    assert "transformer/" in message
    assert "MODEL=Qwen/Qwen-Image-Edit-2511" in message
    assert "not a readable" not in message
    assert ("fp8" in message) == written.startswith("F8")


@pytest.mark.parametrize("role", altered.WEIGHTS)
def test_fp8_is_told_in_every_component(role: str, folder: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, Raw]) -> None:
        for name, (_, shape, data) in tensors.items():
            if name.endswith(".weight"):
                tensors[name] = ("F8_E4M3", shape, bytes(len(data) // 2))

    altered.alter(altered.weights_of(folder, role), change)
    message = refused(folder, tmp_path / "home")
    assert f"{role}/ was published" in message
    assert "fp8 (F8_E4M3)" in message


def test_what_nobody_keeps_may_be_in_any_format(folder: Path, tmp_path: Path) -> None:
    """The lm_head is not used."""

    def change(tensors: dict[str, Raw]) -> None:
        _, shape, data = tensors["lm_head.weight"]
        tensors["lm_head.weight"] = ("F8_E4M3", shape, bytes(len(data) // 2))

    altered.alter(altered.weights_of(folder, "text_encoder"), change)
    order = prepared.order_of("tiny-edit", tmp_path, snapshot=Copying(folder))
    assert prepared.shards_of(order)["text_encoder"]


@pytest.mark.parametrize("modulation", [True, False], ids=["all layers", "not the modulation"])
@pytest.mark.parametrize("precision", ["4bit", "8bit"])
def test_bitsandbytes_own_files_are_told_without_a_configuration(
    precision: Any, modulation: bool, folder: Path, tmp_path: Path
) -> None:
    """4bit: the keys of bitsandbytes' state dicts; 8bit: int8 and SCB, as LLM.int8 has them."""
    path = altered.weights_of(folder, "transformer")
    stored = {}
    for name, tensor in load_file(path).items():
        wide = tensor.ndim == 2 and (modulation or not MODULATION.fullmatch(name))
        if not wide or not is_quantised(TRANSFORMER.quantised, LAYER, tensor.shape, precision):
            stored[name] = tensor
            continue
        parts = quantise(tensor, precision, CPU)
        stored |= {f"{name.removesuffix('weight')}{key}": part for key, part in parts.items()}
    if precision == "8bit":
        stored = {name.replace("weight.scale", "SCB"): tensor for name, tensor in stored.items()}
    save_file(stored, path)
    message = refused(folder, tmp_path / "home")
    assert f"bitsandbytes {'4-bit' if precision == '4bit' else '8-bit'}" in message
    assert ("U8" if precision == "4bit" else "I8") in message


BESIDE: dict[str, tuple[str, dict[str, tuple[str, int]]]] = {
    # what it is -> what the message calls it, and what stands where a weight was
    "scaled fp8": ("scaled: fp8", {"weight": ("F8_E4M3", 1), "weight_scale": ("F32", 4)}),
    "ComfyUI's fp8": ("scaled: fp8", {"weight": ("F8_E4M3", 1), "scale_weight": ("F32", 4)}),
    "DeepSeek's fp8": ("scaled: fp8", {"weight": ("F8_E4M3", 1), "weight_scale_inv": ("F32", 4)}),
    "GPTQ": ("GPTQ or AWQ", {"qweight": ("I32", 4), "qzeros": ("I32", 4), "scales": ("F16", 2)}),
    "quanto": ("quanto", {"weight._data": ("I8", 1), "weight._scale": ("BF16", 2)}),
    "SDNQ": ("scaled: packed bytes", {"weight": ("U8", 1), "scale": ("F32", 4)}),
    "SDNQ with SVD": ("SDNQ", {"weight": ("U8", 1), "svd_up": ("BF16", 2)}),
    "compressed-tensors": (
        "compressed-tensors",
        {"weight_packed": ("I32", 4), "weight_scale": ("BF16", 2)},
    ),
    "Nunchaku": ("Nunchaku", {"qweight": ("I8", 1), "wscales": ("BF16", 2)}),
    "torchao": ("torchao", {"weight:_data:qdata": ("I8", 1)}),
    "torchao, flat": ("torchao", {"_weight_qdata": ("I8", 1), "_weight_scale": ("F32", 4)}),
    "names that nobody knows": ("I32, as", {"kernel": ("I32", 4)}),
    "plain weights with scales": ("scaled", {"weight": ("BF16", 2), "weight_scale": ("F32", 4)}),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_what_lies_beside_the_weights_tells_the_method(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    name, parts = BESIDE[kind]

    def change(tensors: dict[str, Raw]) -> None:
        _, shape, data = tensors.pop(LAYER)
        stem = LAYER.removesuffix("weight")
        for suffix, (dtype, width) in parts.items():
            tensors[stem + suffix] = (dtype, shape, bytes(len(data) // 2 * width))

    altered.alter(altered.weights_of(folder, "transformer"), change)
    assert name in refused(folder, tmp_path / "home")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_plain_numbers_are_cast_as_stock_casts_them(
    dtype: torch.dtype, folder: Path, tmp_path: Path
) -> None:
    path = altered.weights_of(folder, "vae")
    state = {name: tensor.to(dtype) * 1.001 for name, tensor in load_file(path).items()}
    save_file(state, path)
    source = LocalSnapshot(folder, "x")
    bundle = prepare(prepared.order_of("tiny-edit", tmp_path / "home", snapshot=source))
    (made,) = (bundle.parent.parent / "components").glob("vae-*/weights-*.safetensors")
    loaded = load_file(made)
    assert all(torch.equal(loaded[name], state[name].to(torch.bfloat16)) for name in state)


@pytest.mark.parametrize(
    ("repository", "pipeline", "row"),
    [
        ("someone/Qwen-Image-Edit-2509-bnb-4bit", "QwenImageEditPlusPipeline", "2509"),
        ("someone/QwenImageEdit2509-fp8", "QwenImageEditPlusPipeline", "2509"),
        ("someone/Qwen-Edit-2509-bnb-4bit", "QwenImageEditPlusPipeline", "2509"),
        ("someone/Qwen-Image-2509-Edit-4bit", "QwenImageEditPlusPipeline", "2509"),
        ("someone/Qwen-Image-Edit-Plus-2509-nf4", "QwenImageEditPlusPipeline", "2509"),
        ("someone/edit-22509", "QwenImageEditPlusPipeline", "2511"),
        ("someone/QwenImageEdit2511", "", "2511"),
        ("someone/qwen_image_edit_2511_nf4", "QwenImageEditPlusPipeline", "2511"),
        ("someone/painter", "QwenImageEditPlusPipeline", "2511"),
        ("someone/qwen-image-edit-4bit", "QwenImageEditPipeline", "Edit"),
        ("someone/Qwen-Image-2512-SDNQ-uint4", "QwenImagePipeline", "2512"),
        ("someone/Qwen-Image-nf4", "QwenImagePipeline", "Qwen-Image"),
        ("someone/Qwen-Image-Edit-GGUF", "", "Edit"),
    ],
)
def test_the_repository_to_take_instead_is_the_one_that_was_quantised(
    repository: str, pipeline: str, row: str
) -> None:
    assert CATALOGUE.make_listing(repository, pipeline).instead.endswith(row)


def test_without_a_class_or_a_name_nothing_is_guessed() -> None:
    assert CATALOGUE.make_listing("someone/painter").instead == ""


@pytest.mark.parametrize(
    ("instead", "advice"),
    [("a/b", "set MODEL=a/b"), ("", "name the repository that it was made from")],
)
def test_a_refusal_ends_with_what_to_do(instead: str, advice: str) -> None:
    spec = ModelSpec("painter", "someone/painter", "", listing=Listing(instead=instead))
    assert prequantised.make_refusal("transformer", "GGUF", spec).message.endswith(f": {advice}")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with running() as given:
        yield given


def environ(hub: Hub, home: Path, model: str) -> dict[str, str]:
    return {
        "MODEL": model,
        "MODEL_DIR": str(home),
        "RUNPOD_CACHE_DIR": str(home / "none"),
        "HF_ENDPOINT": hub.endpoint,
        "MIN_STORAGE_FREE_GB": "0",
    }


def test_a_hub_is_asked_for_headers_alone(hub: Hub, folder: Path, tmp_path: Path) -> None:
    altered.configure(
        folder / "text_encoder/config.json", quantization_config={"quant_method": "awq"}
    )
    hub.add("someone/Qwen-Image-Edit-2509-awq", folder)
    with pytest.raises(WeightsUnavailable, match=r"AWQ.*MODEL=Qwen/Qwen-Image-Edit-2509") as caught:
        boot.prepare(settings.read(environ(hub, tmp_path, "someone/Qwen-Image-Edit-2509-awq")))
    assert not caught.value.retryable
    assert all(seen.span for seen in hub.requests("bytes", "*.safetensors"))


def test_a_repository_of_gguf_files_is_told_as_that(hub: Hub, tmp_path: Path) -> None:
    hub.add("someone/Qwen-Image-Edit-2511-GGUF", {"qwen-image-edit-2511-Q4_K_M.gguf": b"GGUF"})
    with pytest.raises(WeightsUnavailable, match=r"GGUF.*Qwen/Qwen-Image-Edit-2511"):
        boot.prepare(settings.read(environ(hub, tmp_path, "someone/Qwen-Image-Edit-2511-GGUF")))


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("diffusion_pytorch_model-Q4_K.gguf", "GGUF"),
        ("diffusion_pytorch_model.bin", "pickled"),
        ("diffusion_pytorch_model.fp16.safetensors", "another name or variant"),
    ],
)
@pytest.mark.parametrize("where", ["hub", "folder"])
def test_weights_in_another_form_are_told_by_what_there_is(
    name: str, form: str, where: str, hub: Hub, folder: Path, tmp_path: Path
) -> None:
    path = altered.weights_of(folder, "transformer")
    path.rename(path.with_name(name))
    hub.add("someone/other", folder)
    model = "someone/other" if where == "hub" else str(folder)
    with pytest.raises(WeightsUnavailable, match=f"lacks the weights of transformer/.*{form}"):
        boot.prepare(settings.read(environ(hub, tmp_path / "home", model)))


def test_a_folder_without_other_weights_tells_of_none() -> None:
    assert checkpoint.describe_other_weights(["vae/x.gguf"], "transformer") == ""
    assert checkpoint.describe_other_weights(["vae/config.json"]) == ""


@pytest.mark.parametrize("path", ["model_index.json", "worker.json"])
@pytest.mark.parametrize("text", ["{", "[]", '"x"', "\xff", "[" * 100_000])
def test_a_model_that_describes_itself_in_no_json_object_is_refused(
    path: str, text: str, folder: Path
) -> None:
    (folder / path).write_bytes(text.encode("latin-1"))
    (spec,) = CATALOGUE.resolve(["someone/painter"], settings.read({}), has_gpu=False)
    with pytest.raises(WeightsUnavailable, match=path):
        sources.complete(spec, LocalSnapshot(folder, "someone/painter"), CATALOGUE)


FORMATS = ("bnb_4bit_quant_type", "weights_dtype", "weights", "quant_type", "fmt")
NAMED = {
    **{f"w {key}": ({"quant_method": "w", key: "x4"}, "w (x4)") for key in FORMATS},
    **{
        f"w {key}": ({"quant_method": "w", key: 4}, "w (4-bit)")
        for key in ("bits", "w_bit", "nbits", "weight_bits")
    },
    "in capitals": ({"quant_method": "AWQ"}, "AWQ"),
    "by its backend": ({"quant_backend": "bitsandbytes_8bit"}, "bitsandbytes 8-bit"),
    "8-bit needs no number": (
        {"quant_backend": "bitsandbytes_8bit", "bits": 4},
        "bitsandbytes 8-bit",
    ),
    "4-bit of a backend": ({"quant_backend": "bitsandbytes_4bit"}, "bitsandbytes 4-bit"),
    "fbgemm": ({"quant_method": "fbgemm_fp8"}, "FBGEMM fp8"),
    "hqq": ({"quant_method": "hqq", "nbits": 3, "quant_type": ""}, "HQQ (3-bit)"),
    "bitsandbytes": ({"quant_method": "BitsAndBytes"}, "BitsAndBytes 4-bit"),
    "arguments": (
        {"quant_method": "bitsandbytes", "quant_kwargs": {"load_in_8bit": True}},
        "bitsandbytes 8-bit",
    ),
    "a word before a number": ({"quant_method": "w", "bits": 4, "fmt": "x"}, "w (x)"),
    "several": ({"quant_mapping": {"a": 1}}, "several methods"),
    "none named": ({"bits": 4}, "a method without a name"),
    "a number": ({"quant_method": 4}, "a method without a name"),
    "no mapping": ("nf4", "a method without a name"),
}


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("case", NAMED)
def test_a_method_is_called_as_its_users_call_it(case: str, key: str) -> None:
    config, name = NAMED[case]
    assert prequantised.find_declared({key: config}) == name
    for part in ("text_config", "vision_config"):
        found = prequantised.find_declared({"other": {key: "x"}, part: {key: config}})
        assert found == prequantised.find_declared({key: config})
    assert prequantised.find_declared({"other": {key: config}, key: None}) is None


def test_no_word_of_a_publisher_fills_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prequantised, "LONGEST_WORD", 3)
    config = {"quantization_config": {"quant_method": "wxyz", "fmt": "abcd"}}
    assert prequantised.find_declared(config) == "wxy (abc)"


ENDINGS = {
    "bitsandbytes 4-bit": [
        "absmax",
        "nested_quant_map",
        "quant_state.bitsandbytes__nf4",
        "quant_storage",
    ],
    "bitsandbytes 8-bit": ["SCB", "weight_format"],
    "Nunchaku SVDQuant": ["wscales", "wcscales", "wtscale", "smooth_factor_orig"],
    "GPTQ or AWQ": ["qweight", "qzeros", "g_idx", "scales"],
    "quanto": ["weight._data", "weight._scale", "weight._shift", "output_scale"],
    "torchao": ["weight:_data:scale", "_weight_qdata"],
    "compressed-tensors": [
        "weight_packed",
        "weight_shape",
        "weight_global_scale",
        "weight_zero_point",
    ],
    "HQQ": ["W_q", "W_q.meta"],
    "SDNQ": ["svd_up", "svd_down", "quantized_weight_x"],
    "scaled": [
        "weight_scale",
        "weight_scale_inv",
        "weight_scale_2",
        "weight.scale_x",
        "scale_weight",
        "scale_input",
        "input_scale",
        "scaled_fp8",
        "scale",
        "zero_point",
        "zeros",
        "comfy_quant",
        "weight_quantizer.x",
    ],
}


@pytest.mark.parametrize("label", ENDINGS)
def test_a_quantiser_is_known_by_the_ends_of_names(label: str) -> None:
    plain = TensorEntry(torch.bfloat16, (1,), 0, 2)
    for end in ENDINGS[label]:
        for name, expected in ((f"a.b.{end}", label), (f"a.b.-{end}", None)):
            assert prequantised.find_stored({name: plain}, [], [name]) == expected, name
            assert prequantised.find_stored({name: plain}, [name], []) is None
    assert (
        prequantised.find_stored({"scaled_fp8": plain}, [], ["other.x", "scaled_fp8"][1:])
        == "scaled"
    )


def test_every_format_is_named_with_the_first_tensor_of_the_first() -> None:
    header = {
        name: TensorEntry(dtype, (1,), 0, 1)
        for name, dtype in {
            "a": torch.uint8,
            "b": torch.int8,
            "c": torch.int8,
            "d": torch.bfloat16,
            "e.scale": torch.float32,
        }.items()
    }
    found = prequantised.find_stored(header, ["a", "d", "c"], ["b"])
    assert found == "int8 (I8) and packed bytes (U8), as c"
    assert prequantised.find_stored(header, ["d", "a"], ["e.scale"]) == (
        "scaled: packed bytes (U8), as a"
    )
    assert prequantised.find_stored(header, ["d"], []) is None


@pytest.mark.parametrize(
    ("index", "configs", "where"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, {}, "it"),
        ({}, {"vae": {"quantization_config": {"quant_method": "awq"}}}, "vae/"),
    ],
)
def test_what_calls_itself_quantised_is_named_first(
    index: dict[str, Any], configs: dict[str, Any], where: str
) -> None:
    (spec,) = CATALOGUE.resolve(["someone/painter"], settings.read({}), has_gpu=False)
    with pytest.raises(WeightsUnavailable, match=f"^{where} was published already quantised"):
        refuse.check_configured(index, configs, spec)
