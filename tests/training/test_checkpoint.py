"""The embedded checkpoint: two complete, small folders of the published classes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

ROOT = Path(__file__).parents[2] / "checkpoints" / "tiny"
VARIANTS = ("image", "edit")
LORA_MODULES = {
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.to_add_out"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    *("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
}
# the text stream ends with the last block: what only feeds its end can learn nothing
IDLE = {
    f"transformer_blocks.5.{name}"
    for name in ("attn.add_q_proj", "attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")
}


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _shapes(path: Path) -> dict[str, tuple[list[int], str]]:
    with safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}


def test_both_variants_fit_in_32_megabytes_of_real_files() -> None:
    assert not [path for path in ROOT.rglob("*") if path.is_symlink()]
    paths = [path for variant in ("edit", "image") for path in (ROOT / variant).rglob("*")]
    assert sum(path.stat().st_size for path in paths if path.is_file()) <= 32_000_000


def test_the_flux_is_one_folder_of_less_than_10_megabytes() -> None:
    paths = [path for path in (ROOT / "flux").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in paths) < 10_000_000
    index = _json(ROOT / "flux" / "model_index.json")
    assert (index["_class_name"], index["is_distilled"]) == ("Flux2KleinPipeline", True)
    assert index["transformer"] == ["diffusers", "Flux2Transformer2DModel"]
    assert index["vae"] == ["diffusers", "AutoencoderKLFlux2"]
    assert index["text_encoder"] == ["transformers", "Qwen3ForCausalLM"]


def test_the_weights_of_flux_are_bf16_and_its_blocks_suit_4_bit_kernels() -> None:
    transformer = _shapes(ROOT / "flux" / "transformer" / "diffusion_pytorch_model.safetensors")
    encoder = _shapes(ROOT / "flux" / "text_encoder" / "model.safetensors")
    assert {dtype for _, dtype in (transformer | encoder).values()} == {"BF16"}
    layers = [
        (name, shape)
        for name, (shape, _) in (transformer | encoder).items()
        if len(shape) == 2 and ("blocks." in name or name.startswith("model.layers."))
    ]
    assert len(layers) == 2 * 12 + 6 * 2 + 4 * 7
    assert not [name for name, (out, inner) in layers if out % 32 or inner % 64]


def test_the_tokenizer_of_flux_is_the_trainings_own() -> None:
    from transformers import AutoTokenizer  # noqa: PLC0415 - takes seconds; only here

    from training.tiny.flux.words import build_tokenizer, fill  # noqa: PLC0415 - the same

    stored, built = AutoTokenizer.from_pretrained(ROOT / "flux" / "tokenizer"), build_tokenizer()
    text = fill("put the shape of image 1 on the background of image 2")
    assert stored(text).input_ids == built(text).input_ids
    assert len(stored) == len(built) == 556


def test_the_style_is_less_than_a_megabyte() -> None:
    (path,) = (ROOT / "style").glob("*.safetensors")
    assert path.stat().st_size < 1_000_000


def test_the_variants_share_encoder_vae_and_tokenizer_files() -> None:
    for part in ("text_encoder", "vae", "tokenizer", "scheduler"):
        digests = [
            {
                path.relative_to(ROOT / variant): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in (ROOT / variant / part).rglob("*")
            }
            for variant in VARIANTS
        ]
        assert digests[0] == digests[1], part


def test_model_index_names_the_published_classes() -> None:
    for variant, pipeline in (
        ("image", "QwenImagePipeline"),
        ("edit", "QwenImageEditPlusPipeline"),
    ):
        index = _json(ROOT / variant / "model_index.json")
        assert index["_class_name"] == pipeline
        assert index["transformer"] == ["diffusers", "QwenImageTransformer2DModel"]
        assert index["vae"] == ["diffusers", "AutoencoderKLQwenImage"]
        assert index["text_encoder"] == ["transformers", "Qwen2_5_VLForConditionalGeneration"]
        assert ("processor" in index) == (variant == "edit")


def test_only_the_edit_variant_sets_zero_cond_t() -> None:
    configs = {v: _json(ROOT / v / "transformer" / "config.json") for v in VARIANTS}
    assert {v: config["zero_cond_t"] for v, config in configs.items()} == {
        "image": False,
        "edit": True,
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_are_bf16_and_quantised_layers_suit_4_bit_kernels(variant: str) -> None:
    transformer = _shapes(ROOT / variant / "transformer" / "diffusion_pytorch_model.safetensors")
    encoder = _shapes(ROOT / variant / "text_encoder" / "model.safetensors")
    assert {dtype for _, dtype in (transformer | encoder).values()} == {"BF16"}
    layers = [
        (name, shape)
        for name, (shape, _) in (transformer | encoder).items()
        if len(shape) == 2 and name.startswith(("transformer_blocks.", "model.layers."))
    ]
    assert len(layers) == 6 * 14 + 2 * 7
    assert not [name for name, (out, inner) in layers if out % 32 or inner % 64]


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_lightning_lora_changes_twelve_modules_a_block(variant: str) -> None:
    about = _json(ROOT / variant / "worker.json")
    assert set(about["lightning"]) == {"4", "8"}
    transformer = _shapes(ROOT / variant / "transformer" / "diffusion_pytorch_model.safetensors")
    expected = {f"transformer_blocks.{i}.{name}" for i in range(6) for name in LORA_MODULES}
    for file in about["lightning"].values():
        lora = _shapes(ROOT / variant / file)
        assert {name.split(".lora_")[0].removesuffix(".alpha") for name in lora} == expected
        for module in expected:
            (out, inner), _ = transformer[f"{module}.weight"]
            rank, down = lora[f"{module}.lora_down.weight"][0]
            assert (down, lora[f"{module}.lora_up.weight"][0]) == (inner, [out, rank])
        with safe_open(ROOT / variant / file, "pt") as tensors:
            still = {m for m in expected if not tensors.get_tensor(f"{m}.lora_up.weight").any()}
        assert still <= IDLE


def test_the_tokenizer_gives_34_and_64_tokens_for_the_template_prefixes() -> None:
    from transformers import Qwen2Tokenizer  # noqa: PLC0415 - takes seconds; only here

    from training.tiny.tokenizer import templates  # noqa: PLC0415 - the same

    tokenizer = Qwen2Tokenizer.from_pretrained(ROOT / "image" / "tokenizer")
    counts = {
        task: len(tokenizer(template.split("{}")[0]).input_ids)
        for task, template in templates().items()
    }
    assert counts == {"text-to-image": 34, "edit": 64}
