"""What does not fit is found in small files and headers, and named, before any weights come."""

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from worker import boot, settings
from worker.bundle.expected import build_expected
from worker.bundle.prepare import compute_sizes, prepare
from worker.engine.schedule import make_schedule
from worker.errors import WeightsUnavailable
from worker.families.qwen_image import check, rows, schedules
from worker.families.qwen_image.modulation import round_timesteps
from worker.families.qwen_image.opening import open_bundle
from worker.families.qwen_image.parts import TRANSFORMER, VAE
from worker.families.qwen_image.planning import MOST_STEPS
from worker.weights.snapshot import LocalSnapshot
from worlds import altered, prepared
from worlds.altered import Raw
from worlds.hub import Hub, running
from worlds.repository import Copying, in_shards

CPU = torch.device("cpu")
# a tensor of each component, by its published name
ONE = {
    "transformer": "transformer_blocks.3.txt_mlp.net.2.weight",
    "text_encoder": "model.layers.1.mlp.up_proj.weight",
    "vae": "decoder.conv_out.bias",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An edit model of the embedded sizes that a test may alter."""
    return altered.copied("tiny-edit", tmp_path / "published")


def refused(folder: Path, home: Path, name: str = "tiny-edit") -> str:
    """Return why a published folder is not prepared; not a byte of weights was fetched."""
    source = Copying(folder)
    order = prepared.order_of(name, home, snapshot=source)
    for act in (compute_sizes, prepare):
        with pytest.raises(WeightsUnavailable) as caught:
            act(order)
    assert source.fetched == []
    assert not order.folder.exists()
    assert not caught.value.retryable
    assert caught.value.message.startswith("org/model")
    return caught.value.message


def accepted(folder: Path, home: Path, name: str = "tiny-edit") -> None:
    assert prepared.shards_of(prepared.order_of(name, home, snapshot=Copying(folder)))


def missing(role: str) -> Callable[[dict[str, Raw]], None]:
    def change(tensors: dict[str, Raw]) -> None:
        del tensors[ONE[role]]

    return change


def extra(role: str) -> Callable[[dict[str, Raw]], None]:
    def change(tensors: dict[str, Raw]) -> None:
        tensors[f"{ONE[role]}_too_many"] = tensors[ONE[role]]

    return change


def shaped(role: str) -> Callable[[dict[str, Raw]], None]:
    def change(tensors: dict[str, Raw]) -> None:
        dtype, shape, data = tensors[ONE[role]]
        tensors[ONE[role]] = (dtype, [*shape, 1], data)

    return change


FAULTS = {
    "missing": (missing, "lacks {name}"),
    "extra": (extra, "{name}_too_many of"),
    "shape": (shaped, "{name} of {role}/"),
}


@pytest.mark.parametrize("role", ONE)
@pytest.mark.parametrize("fault", FAULTS)
def test_one_tensor_that_does_not_fit_is_named(
    fault: str, role: str, folder: Path, tmp_path: Path
) -> None:
    make, reason = FAULTS[fault]
    altered.alter(altered.weights_of(folder, role), make(role))
    message = refused(folder, tmp_path / "home")
    assert reason.format(name=ONE[role], role=role) in message
    assert f"{role}/config.json" in message


@pytest.mark.parametrize("part", ["img_mod.1.bias", "txt_mod.1.weight", "attn.norm_added_k.weight"])
def test_a_modulation_layer_is_missed_as_any_other(part: str, folder: Path, tmp_path: Path) -> None:
    """Its weights are not in the bundle; its rows cannot be computed without them."""
    name = f"transformer_blocks.2.{part}"
    path = altered.weights_of(folder, "transformer")
    altered.alter(path, lambda tensors: tensors.pop(name))  # type: ignore[arg-type]
    assert f"lacks {name}" in refused(folder, tmp_path / "home")


def test_how_many_more_there_are_is_reported(folder: Path, tmp_path: Path) -> None:
    path = altered.weights_of(folder, "transformer")
    state = load_file(path)
    save_file({k: v for k, v in state.items() if ".5." not in k}, path)
    dropped = sum(".5." in name for name in state)
    assert f"(and {dropped - 1} more such)" in refused(folder, tmp_path / "home")


@pytest.mark.parametrize("role", ONE)
def test_a_tensor_in_two_shards_is_named_with_both(role: str, folder: Path, tmp_path: Path) -> None:
    path = altered.weights_of(folder, role)
    stem = path.name.removesuffix(".safetensors")
    first, second = (path.with_name(f"{stem}-0000{n}-of-00002.safetensors") for n in (1, 2))
    tensors = altered.read(path)
    names = sorted(tensors)
    path.unlink()
    altered.write(first, {name: tensors[name] for name in names[:50]})
    altered.write(second, {name: tensors[name] for name in {*names[50:], names[7]}})
    message = refused(folder, tmp_path / "home")
    assert f"{names[7]} is in {role}/{first.name} and again in {role}/{second.name}" in message


def test_two_names_of_one_tensor_are_a_double(folder: Path, tmp_path: Path) -> None:
    """Transformers 4 and 5 name the text encoder's layers differently."""

    def change(tensors: dict[str, Raw]) -> None:
        name = ONE["text_encoder"]
        tensors[name.replace("model.", "model.language_model.")] = tensors[name]

    altered.alter(altered.weights_of(folder, "text_encoder"), change)
    assert "again in" in refused(folder, tmp_path / "home")


def test_a_header_that_names_a_tensor_twice_is_no_safetensors_file(
    folder: Path, tmp_path: Path
) -> None:
    path = altered.weights_of(folder, "vae")
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"decoder.conv_in.bias"', b'"decoder.conv_out.bias"')
    path.write_bytes(data[:8] + header.ljust(length) + data[8 + length :])
    assert "a name comes twice" in refused(folder, tmp_path / "home")


BROKEN_HEADERS = {
    "nested": b"[" * 100_000,
    "a list": b"[]",
    "no JSON": b"{",
    "no shape": b'{"x": {"dtype": "BF16", "data_offsets": [0, 2]}}',
    "a negative size": b'{"x": {"dtype": "BF16", "shape": [-1], "data_offsets": [0, 2]}}',
    "another size": b'{"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 2]}}',
    "offsets that are words": b'{"x": {"dtype": "BF16", "shape": [1], "data_offsets": ["0", "2"]}}',
}


@pytest.mark.parametrize("kind", BROKEN_HEADERS)
def test_a_broken_header_is_reported_with_its_file(kind: str, folder: Path, tmp_path: Path) -> None:
    header = BROKEN_HEADERS[kind]
    path = altered.weights_of(folder, "transformer")
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    message = refused(folder, tmp_path / "home")
    assert "transformer/diffusion_pytorch_model.safetensors is not a readable" in message


def test_a_header_longer_than_the_format_allows_is_not_read(folder: Path, tmp_path: Path) -> None:
    path = altered.weights_of(folder, "transformer")
    path.write_bytes((100_000_001).to_bytes(8, "little") + bytes(100))
    assert "a header of 100000001 bytes" in refused(folder, tmp_path / "home")


def test_a_file_with_bytes_after_its_tensors_is_refused(folder: Path, tmp_path: Path) -> None:
    path = altered.weights_of(folder, "vae")
    path.write_bytes(path.read_bytes() + b"x")
    assert "bytes instead of" in refused(folder, tmp_path / "home")


def test_what_modules_compute_themselves_may_be_published(folder: Path, tmp_path: Path) -> None:
    """Rotary tables and the lm_head are left out of the bundle, which opens without them."""

    def change(tensors: dict[str, Raw]) -> None:
        for name in ("model.rotary_emb.inv_freq", "visual.rotary_pos_emb.inv_freq"):
            tensors[name] = ("F32", [4], bytes(16))

    altered.alter(altered.weights_of(folder, "text_encoder"), change)
    source = Copying(folder)
    parts = open_bundle(
        prepare(prepared.order_of("tiny-edit", tmp_path / "home", snapshot=source)), CPU
    )
    assert bool(parts.text_encoder.model.language_model.rotary_emb.inv_freq.any())


def test_an_lm_head_need_not_be_published(folder: Path, tmp_path: Path) -> None:
    path = altered.weights_of(folder, "text_encoder")
    altered.alter(path, lambda tensors: tensors.pop("lm_head.weight"))  # type: ignore[arg-type]
    accepted(folder, tmp_path)


def test_a_bias_of_the_lm_head_is_of_another_model(folder: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, Raw]) -> None:
        tensors["lm_head.bias"] = ("BF16", [704], bytes(1408))

    altered.alter(altered.weights_of(folder, "text_encoder"), change)
    assert "lm_head.bias" in refused(folder, tmp_path / "home")


def test_the_index_decides_which_files_are_shards(tmp_path: Path) -> None:
    """What an earlier publishing left next to them is not read."""
    folder = in_shards(prepared.folder_of("tiny-edit"), tmp_path / "published", 3)
    name = "diffusion_pytorch_model-00001-of-0000{}.safetensors"
    shutil.copy(folder / "transformer" / name.format(3), folder / "transformer" / name.format(9))
    accepted(folder, tmp_path / "home")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not an index of shards"),
        ("[]", "is not an index of shards"),
        ('{"weight_map": 5}', "is not an index of shards"),
        (
            '{"weight_map": {"x": "diffusion_pytorch_model-00004-of-00004.safetensors"}}',
            "lacks transformer/diffusion_pytorch_model-00004-of-00004.safetensors",
        ),
        ('{"weight_map": {"x": "../../secret.safetensors"}}', "lacks transformer/../../secret"),
    ],
)
def test_a_wrong_index_is_reported(text: str, reason: str, tmp_path: Path) -> None:
    folder = in_shards(prepared.folder_of("tiny-edit"), tmp_path / "published", 3)
    (folder / "transformer/diffusion_pytorch_model.safetensors.index.json").write_text(text)
    assert reason in refused(folder, tmp_path / "home")


SMALL = [
    "model_index.json",
    "transformer/config.json",
    "text_encoder/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    "worker.json",
]


@pytest.mark.parametrize("path", SMALL)
@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "broken JSON"), ("\xff", "broken JSON"), ("[1]", "not a JSON object")],
)
def test_a_small_file_that_is_no_json_object_is_named(
    text: str, reason: str, path: str, folder: Path, tmp_path: Path
) -> None:
    (folder / path).write_bytes(text.encode("latin-1"))
    assert f"{path} is {reason}" in refused(folder, tmp_path / "home")


@pytest.mark.parametrize(
    "path", ["tokenizer/tokenizer.json", "text_encoder/generation_config.json"]
)
def test_every_small_file_that_is_copied_is_complete(
    path: str, folder: Path, tmp_path: Path
) -> None:
    (folder / path).write_text("{")
    assert f"{path} is broken JSON" in refused(folder, tmp_path / "home")


@pytest.mark.parametrize("path", SMALL[:-1])
def test_a_small_file_that_is_not_there_is_named(path: str, folder: Path, tmp_path: Path) -> None:
    (folder / path).unlink()
    assert path in refused(folder, tmp_path / "home")


@pytest.mark.parametrize("area", [0, -4, "96", 1.5, True, [1]])
def test_a_condition_area_is_a_number_of_pixels(area: object, folder: Path, tmp_path: Path) -> None:
    altered.configure(folder / "worker.json", condition_area=area)
    assert "condition_area" in refused(folder, tmp_path / "home")


def test_the_smallest_condition_area_is_one_pixel(folder: Path, tmp_path: Path) -> None:
    altered.configure(folder / "worker.json", condition_area=1)
    accepted(folder, tmp_path / "home")


CONFIGURATIONS: list[tuple[str, dict[str, Any], str]] = [
    # what is set, and what the message names
    ("transformer/config.json", {"num_layers": ...}, "lacks transformer_blocks.6."),
    ("transformer/config.json", {"num_layers": None}, "no model that can be built"),
    ("transformer/config.json", {"num_layers": "six"}, "no model that can be built"),
    ("transformer/config.json", {"num_layers": 5}, "transformer_blocks.5."),
    ("transformer/config.json", {"num_layers": 7}, "lacks transformer_blocks.6."),
    ("transformer/config.json", {"num_layers": 0}, "transformer_blocks.0."),
    ("transformer/config.json", {"attention_head_dim": 64}, "has the shape"),
    ("transformer/config.json", {"joint_attention_dim": 64}, "has the shape"),
    ("transformer/config.json", {"guidance_embeds": True}, "guidance_embeds"),
    ("transformer/config.json", {"use_additional_t_cond": True}, "addition_t_embedding"),
    ("transformer/config.json", {"axes_dims_rope": [8, 12, 8]}, "axes_dims_rope of 28"),
    ("transformer/config.json", {"axes_dims_rope": "wide"}, "no model that can be built"),
    ("transformer/config.json", {"axes_dims_rope": [8, 12, 12, 4]}, "axes_dims_rope of 36"),
    ("transformer/config.json", {"_class_name": "FluxTransformer2DModel"}, "FluxTransformer2D"),
    ("transformer/config.json", {"use_new_rope": True}, "use_new_rope"),
    ("vae/config.json", {"z_dim": 8}, "vae/"),
    ("vae/config.json", {"latents_mean": [0.0]}, "latents_mean of 1"),
    ("vae/config.json", {"latents_std": [1.0] * 15}, "latents_std of 15, and z_dim is 16"),
    ("vae/config.json", {"latents_std": None}, "list of numbers"),
    ("vae/config.json", {"latents_std": ["a"] * 16}, "list of numbers"),
    ("vae/config.json", {"temperal_downsample": [False, True]}, "vae/config.json"),
    ("vae/config.json", {"_class_name": "AutoencoderKLWan"}, "AutoencoderKLWan"),
    ("vae/config.json", {"is_residual": True}, "is_residual"),
    ("text_encoder/config.json", {"architectures": ["Qwen2VLForConditionalGeneration"]}, "Qwen2VL"),
    ("text_encoder/config.json", {"model_type": "qwen3_vl"}, "qwen3_vl"),
    ("text_encoder/config.json", {"text_config": {"num_hidden_layers": "x"}}, "can be built"),
    ("text_encoder/config.json", {"text_config": 5}, "no model that can be built"),
]


@pytest.mark.parametrize(("path", "changes", "reason"), CONFIGURATIONS)
def test_a_configuration_of_another_model_is_refused(
    path: str, changes: dict[str, Any], reason: str, folder: Path, tmp_path: Path
) -> None:
    altered.configure(folder / path, **changes)
    message = refused(folder, tmp_path / "home")
    assert reason in message
    assert path.partition("/")[0] in message


def test_a_field_of_a_wrong_kind_that_no_module_is_built_of_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    """The module takes the first three."""
    altered.configure(folder / "transformer/config.json", axes_dims_rope=[8, 12, 12, "wide"])
    assert "a config.json has a field of a wrong kind" in refused(folder, tmp_path / "home")


def test_an_additional_condition_with_its_weight_is_refused_too(
    folder: Path, tmp_path: Path
) -> None:
    """Only the layered pipeline gives it a value."""

    def change(tensors: dict[str, Raw]) -> None:
        name = "time_text_embed.addition_t_embedding.weight"
        tensors[name] = ("BF16", [2, 128], bytes(512))

    altered.alter(altered.weights_of(folder, "transformer"), change)
    altered.configure(folder / "transformer/config.json", use_additional_t_cond=True)
    assert "QwenImageLayeredPipeline" in refused(folder, tmp_path / "home")


def test_a_transformer_must_give_what_it_takes(folder: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, Raw]) -> None:
        for name in ("proj_out.weight", "proj_out.bias"):
            dtype, shape, data = tensors[name]
            tensors[name] = (dtype, [32, *shape[1:]], data[: len(data) // 2])

    altered.alter(altered.weights_of(folder, "transformer"), change)
    altered.configure(folder / "transformer/config.json", out_channels=8)
    assert "gives channels 32, and vae/ takes 64" in refused(folder, tmp_path / "home")


def test_an_rgba_vae_is_the_layered_model_s(folder: Path, tmp_path: Path) -> None:
    altered.configure(folder / "vae/config.json", input_channels=4)

    def change(tensors: dict[str, Raw]) -> None:
        fit = build_expected(VAE, json.loads((folder / "vae/config.json").read_bytes()))
        for name, shape in fit.kept.items():
            size = 2
            for side in shape:
                size *= side
            tensors[name] = ("BF16", list(shape), bytes(size))

    altered.alter(altered.weights_of(folder, "vae"), change)
    assert "input_channels 4, and pictures have 3" in refused(folder, tmp_path / "home")


@pytest.mark.parametrize(
    "changes",
    [
        # what the published models' files have, and what says nothing of the modules
        {"pooled_projection_dim": 768},
        {"_name_or_path": "x", "_use_default_values": ["zero_cond_t"]},
        {"use_something": False},
        {"guidance_embeds": ...},
        {"zero_cond_t": False},
        {"use_layer3d_rope": True},
    ],
)
def test_a_field_that_changes_nothing_is_let_pass(
    changes: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    altered.configure(folder / "transformer/config.json", **changes)
    accepted(folder, tmp_path)


def test_the_number_format_that_a_text_encoder_names_is_not_asked_for(
    folder: Path, tmp_path: Path
) -> None:
    """That of its weights counts."""
    altered.configure(folder / "text_encoder/config.json", dtype="int8")
    accepted(folder, tmp_path / "home")


def test_a_full_model_without_num_layers_has_diffusers_default() -> None:
    assert build_expected(TRANSFORMER, {}).config["num_layers"] == 60


CLASSES: list[tuple[dict[str, Any], str]] = [
    ({"vae": ["diffusers", "AutoencoderKLWan"]}, "AutoencoderKLWan"),
    ({"vae": ["diffusers", "AutoencoderKL"]}, "AutoencoderKL"),
    ({"text_encoder": ["transformers", "Qwen3VLForConditionalGeneration"]}, "Qwen3VL"),
    ({"text_encoder": ["transformers", "T5EncoderModel"]}, "T5EncoderModel"),
    ({"transformer": ["diffusers", "FluxTransformer2DModel"]}, "FluxTransformer2DModel"),
    ({"transformer": ["my_code", "QwenImageTransformer2DModel"]}, "my_code"),
    ({"transformer": [None, None]}, "names no transformer"),
    ({"transformer": 5}, "transformer"),
    ({"scheduler": ["diffusers", "UniPCMultistepScheduler"]}, "UniPCMultistepScheduler"),
    ({"scheduler": ["diffusers", "FlowMatchHeunDiscreteScheduler"]}, "FlowMatchHeun"),
    ({"processor": ["transformers", "CLIPProcessor"]}, "CLIPProcessor"),
    ({"_class_name": "QwenImageEditPipeline"}, "QwenImageEditPipeline"),
]


@pytest.mark.parametrize(("changes", "reason"), CLASSES)
def test_another_class_than_the_one_that_is_opened_is_refused(
    changes: dict[str, Any], reason: str, folder: Path, tmp_path: Path
) -> None:
    altered.configure(folder / "model_index.json", **changes)
    message = refused(folder, tmp_path / "home")
    assert reason in message
    assert "model_index.json" in message


@pytest.mark.parametrize("kind", ["Qwen2VLProcessor", "Qwen2_5_VLProcessor"])
def test_a_processor_may_be_called_by_either_name(kind: str, folder: Path, tmp_path: Path) -> None:
    altered.configure(folder / "model_index.json", processor=["transformers", kind])
    accepted(folder, tmp_path)


def test_an_index_may_name_any_processor_of_a_model_that_draws_from_text(tmp_path: Path) -> None:
    """It is not opened."""
    folder = altered.copied("tiny-image", tmp_path / "published")
    altered.configure(folder / "model_index.json", processor=["transformers", "CLIPProcessor"])
    accepted(folder, tmp_path / "home", "tiny-image")


def test_an_index_that_names_no_components_is_checked_by_their_files(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "model_index.json").write_text('{"_class_name": "QwenImageEditPlusPipeline"}')
    accepted(folder, tmp_path)


SCHEDULES: list[tuple[dict[str, Any], str]] = [
    ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "FlowMatchHeunDiscreteScheduler"),
    ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "UniPC"),
    ({"use_flow_sigmas": True}, "use_flow_sigmas"),
    ({"invert_sigmas": True}, "invert_sigmas"),
    ({"stochastic_sampling": True}, "stochastic_sampling"),
    ({"use_karras_sigmas": True, "use_exponential_sigmas": True}, "Only one of"),
    ({"time_shift_type": "cubic"}, "time_shift_type"),
    ({"time_shift_type": "linear", "shift_terminal": None}, "modulation from 1000 to 10"),
    ({"use_dynamic_shifting": False, "shift": 0.5, "shift_terminal": None}, "to 5.02513"),
    ({"num_train_timesteps": 2000}, "from 2000"),
    ({"shift_terminal": 1.0}, "timesteps that do not fall"),
    ({"shift_terminal": -0.1}, "scheduler_config.json"),
    ({"shift_terminal": "low"}, "gives no schedule"),
    ({"base_shift": None}, "gives no schedule"),
    ({"max_image_seq_len": 256}, "gives no schedule"),
    ({"num_train_timesteps": "many"}, "gives no schedule"),
]


@pytest.mark.parametrize(("changes", "reason"), SCHEDULES)
def test_a_schedule_that_would_not_be_honoured_is_refused(
    changes: dict[str, Any], reason: str, folder: Path, tmp_path: Path
) -> None:
    altered.configure(folder / "scheduler/scheduler_config.json", **changes)
    message = refused(folder, tmp_path / "home")
    assert reason in message
    assert "scheduler" in message


HONOURED: list[dict[str, Any]] = [
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"time_shift_type": "linear"},
    {"use_dynamic_shifting": False, "shift": 3.0},
    {"use_dynamic_shifting": False, "shift": 1.0, "shift_terminal": None},
    {"shift_terminal": None},
    {"base_shift": 0.5, "max_shift": 1.15, "max_image_seq_len": 4096},
    {"_class_name": ..., "flow_shift": 3.0},
]


@pytest.mark.parametrize("changes", HONOURED)
def test_what_diffusers_own_scheduler_does_is_honoured_to_every_step(
    changes: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    """Every timestep of every count that a job may ask for has its modulation row."""
    path = folder / "scheduler/scheduler_config.json"
    altered.configure(path, **changes)
    accepted(folder, tmp_path)
    config = json.loads(path.read_bytes())
    there = rows.compute_keys(config).float()
    for steps in range(2, 101):
        for tokens in (*schedules.TOKENS, 4096):
            found = round_timesteps(make_schedule(config, steps, tokens).timesteps).float()
            assert bool(torch.isin(found, there).all()), (steps, tokens)


def test_a_schedule_is_tried_at_the_ends_of_what_a_job_may_ask_for() -> None:
    """Of steps, and of sides of 64 to 2048 pixels in tokens of 16 x 16."""
    assert schedules.STEPS == (2, MOST_STEPS)
    assert schedules.TOKENS == ((64 // 16) ** 2, (2048 // 16) ** 2)


def test_beta_sigmas_are_honoured_where_scipy_is(folder: Path, tmp_path: Path) -> None:
    altered.configure(folder / "scheduler/scheduler_config.json", use_beta_sigmas=True)
    if importlib.util.find_spec("scipy") is None:
        assert "scipy" in refused(folder, tmp_path / "home")
    else:
        accepted(folder, tmp_path)


def test_a_model_that_edits_needs_a_processor(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "processor")
    altered.configure(folder / "model_index.json", processor=...)
    message = refused(folder, tmp_path / "home")
    assert "there is no processor/preprocessor_config.json: without it no reference" in message


def test_a_model_that_draws_from_text_needs_none(tmp_path: Path) -> None:
    """Not even a whole one: it is left out of the bundle."""
    folder = altered.copied("tiny-image", tmp_path / "published")
    (folder / "processor").mkdir()
    (folder / "processor/preprocessor_config.json").write_text("{")
    order = prepared.order_of("tiny-image", tmp_path / "home", snapshot=Copying(folder))
    assert open_bundle(prepare(order), CPU).processor is None


def preprocessor(folder: Path, **changes: Any) -> None:
    """Publish the processor as transformers 4 did, in preprocessor_config.json."""
    whole = folder / "processor/processor_config.json"
    values = json.loads(whole.read_bytes())["image_processor"]
    whole.unlink()
    values |= {"processor_class": "Qwen2_5_VLProcessor", **changes}
    (folder / "processor/preprocessor_config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    "kind",
    [
        "Qwen2VLImageProcessor",
        "Qwen2VLImageProcessorFast",
        "Qwen2_5_VLImageProcessor",
        "Qwen2_5_VLImageProcessorFast",
    ],
)
def test_qwen_2_5_vl_s_processor_is_qwen2_vl_s(kind: str, folder: Path, tmp_path: Path) -> None:
    preprocessor(folder, image_processor_type=kind)
    order = prepared.order_of("tiny-edit", tmp_path / "home", snapshot=Copying(folder))
    parts = open_bundle(prepare(order), CPU)
    assert parts.processor is not None
    assert type(parts.processor.image_processor).__name__ == "Qwen2VLImageProcessor"


def test_the_name_may_be_inside_a_complete_processor_s_file(folder: Path, tmp_path: Path) -> None:
    path = folder / "processor/processor_config.json"
    text = path.read_text().replace("Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor")
    path.write_text(text.replace("Qwen2VLVideoProcessor", "Qwen2_5_VLVideoProcessor"))
    order = prepared.order_of("tiny-edit", tmp_path / "home", snapshot=Copying(folder))
    assert open_bundle(prepare(order), CPU).processor is not None


def test_each_file_of_a_processor_gets_the_names_that_are_known(folder: Path) -> None:
    names = [f"{kind}preprocessor_config.json" for kind in ("", "video_")]
    for name, field in zip(names, ("image", "video"), strict=True):
        old = {f"{field}_processor_type": f"Qwen2_5_VL{field.title()}Processor"}
        (folder / "processor" / name).write_text(json.dumps(old))
    small = check._read_small(LocalSnapshot(folder, "org/model"), edits=True)["processor"]
    assert [b"Qwen2VL" in small[name] for name in names] == [True, True]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "processor/ cannot be opened"),
        ({"image_processor_type": "NoSuchProcessor"}, "processor/ cannot be opened"),
        ({"patch_size": 16}, "patch_size of 16, and text_encoder/ takes 14"),
        ({"merge_size": 4}, "merge_size of 4"),
    ],
)
def test_a_processor_of_another_model_is_refused(
    changes: dict[str, Any], reason: str, folder: Path, tmp_path: Path
) -> None:
    preprocessor(folder, **changes)
    assert reason in refused(folder, tmp_path / "home")


def test_an_image_processor_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    preprocessor(folder, image_processor_type="ViTImageProcessor", size=64)
    video = {"video_processor_type": "Qwen2VLVideoProcessor"}
    (folder / "processor/video_preprocessor_config.json").write_text(json.dumps(video))
    assert "has a ViTImageProcessor where" in refused(folder, tmp_path / "home")


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    """The templates' beginnings, which are dropped, have a fixed number of tokens."""
    path = folder / "tokenizer/tokenizer.json"
    value = json.loads(path.read_bytes())
    value["model"]["merges"] = value["model"]["merges"][:20]
    path.write_text(json.dumps(value))
    assert "where Qwen2.5-VL's gives 64" in refused(folder, tmp_path / "home")


def test_a_tokenizer_without_the_template_s_words_is_refused(folder: Path, tmp_path: Path) -> None:
    for path in (folder / "tokenizer").iterdir():
        path.write_text(path.read_text().replace("<|image_pad|>", "<|picture|>"))
    assert "does not know <|image_pad|>" in refused(folder, tmp_path / "home")


def test_a_tokenizer_that_knows_more_words_than_the_text_encoder_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    path = altered.weights_of(folder, "text_encoder")

    def change(tensors: dict[str, Raw]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            dtype, (_, width), data = tensors[name]
            tensors[name] = (dtype, [656, width], data[: 656 * width * 2])

    altered.alter(path, change)
    config = folder / "text_encoder/config.json"
    text = json.loads(config.read_bytes())["text_config"]
    altered.configure(config, text_config={**text, "vocab_size": 656})
    assert "text_encoder/ holds 656" in refused(folder, tmp_path / "home")


def test_a_tokenizer_that_is_not_there_is_missed(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer/tokenizer.json").unlink()
    assert refused(folder, tmp_path / "home").endswith("there is no tokenizer/tokenizer.json")


def test_a_tokenizer_may_be_published_as_its_words_and_merges(folder: Path, tmp_path: Path) -> None:
    """As that of Qwen-Image is, without a tokenizer.json."""
    place = folder / "tokenizer"
    whole = json.loads((place / "tokenizer.json").read_bytes())
    (place / "tokenizer.json").unlink()
    (place / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    (place / "merges.txt").write_text("\n".join(map(" ".join, whole["model"]["merges"])))
    added = {token["content"]: token["id"] for token in whole["added_tokens"]}
    (place / "added_tokens.json").write_text(json.dumps(added))
    accepted(folder, tmp_path / "home")


def test_no_code_of_a_repository_is_run(folder: Path, tmp_path: Path) -> None:
    """A processor that asks for its own code is refused, without a question at a terminal."""
    (folder / "processor/code.py").write_text("raise SystemExit")
    preprocessor(
        folder,
        image_processor_type="Mine",
        auto_map={"AutoImageProcessor": "code.Mine", "AutoProcessor": "code.Mine"},
    )
    assert "processor/ cannot be opened" in refused(folder, tmp_path / "home")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with running() as given:
        yield given


@pytest.mark.parametrize("where", ["hub", "folder"])
def test_it_is_refused_wherever_it_lies_and_is_not_begun_at_the_next_start(
    where: str, hub: Hub, folder: Path, tmp_path: Path
) -> None:
    altered.alter(altered.weights_of(folder, "text_encoder"), missing("text_encoder"))
    hub.add("someone/painter", folder)
    environ = {
        "MODEL": "someone/painter" if where == "hub" else str(folder),
        "MODEL_DIR": str(tmp_path / "home"),
        "RUNPOD_CACHE_DIR": str(tmp_path / "none"),
        "HF_ENDPOINT": hub.endpoint,
        "MIN_STORAGE_FREE_GB": "0",
    }
    for _ in range(2):
        with pytest.raises(WeightsUnavailable, match=f"lacks {ONE['text_encoder']}") as caught:
            boot.boot(settings.read(environ))
        assert not caught.value.retryable
        assert str(tmp_path) not in caught.value.message
    assert all(seen.span for seen in hub.requests("bytes", "*.safetensors"))
    assert not list((tmp_path / "home").rglob("*.safetensors"))
