"""Every form of key that public LoRA files use means the same modules; what is no LoRA is named."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from worker.engine import lora_file
from worker.engine.lora import Adapters, make_canonical
from worker.engine.lora_keys import LONGEST_KEY, show
from worker.errors import LoraNotApplied
from worlds.loras import RANK, REACHED, published_lora, renamed, small_transformer

MODEL = small_transformer()
STATE = published_lora(MODEL, 3, modules=REACHED)
MODULES = Adapters(MODEL).modules
SIDES = {
    "lora_down": {"down": "lora_down.weight", "up": "lora_up.weight"},
    "lora_A": {"down": "lora_A.weight", "up": "lora_B.weight"},
    "lora_A.default": {"down": "lora_A.default.weight", "up": "lora_B.default.weight"},
    "lora_A.weight": {"down": "lora_A.weight.weight", "up": "lora_B.weight.weight"},
    "lora_down.x": {"down": "lora_down.x.weight", "up": "lora_up.x.weight"},
    "lora.down": {"down": "lora.down.weight", "up": "lora.up.weight"},
    "lora_linear_layer": {
        "down": "lora_linear_layer.down.weight",
        "up": "lora_linear_layer.up.weight",
    },
    "lora_A alone": {"down": "lora_A", "up": "lora_B"},
}
PREFIXES = [
    "",
    "transformer.",
    "diffusion_model.",
    "model.diffusion_model.",
    "base_model.model.",
    "base_model.model.transformer.",
    "base_model.model.diffusion_model.",
    "transformer.base_model.model.",
    "lora_unet_",
    "lycoris_",
    "lycoris_lora_unet_",
    "lora_transformer_",
    "unet.",
]


def named(prefix: str, side: str, *, flat: bool) -> Callable[[str, str], str]:
    """Return how one form writes a module's part."""

    def name(module: str, part: str) -> str:
        written = module.replace(".", "_") if flat else module
        return f"{prefix}{written}.{SIDES[side].get(part, part)}"

    return name


@pytest.mark.parametrize("flat", [False, True], ids=["dotted", "flat"])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_form_is_the_same_lora(prefix: str, side: str, *, flat: bool) -> None:
    expected = make_canonical(STATE)
    found = make_canonical(renamed(STATE, named(prefix, side, flat=flat)), MODULES)
    assert found.keys() == expected.keys()
    assert len(found) == 2 * len(REACHED)
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("prefix", [p for p in PREFIXES if not p.endswith("_")])
def test_a_dotted_name_needs_no_list_of_modules(prefix: str, side: str) -> None:
    found = make_canonical(renamed(STATE, named(prefix, side, flat=False)))
    assert found.keys() == make_canonical(STATE).keys()


def test_forms_may_differ_from_module_to_module() -> None:
    forms = [
        named(p, s, flat=f) for p in PREFIXES for s in SIDES if ".x" not in s for f in (False, True)
    ]
    forms = [form for form in forms if "weight.weight" not in form("", "down")]
    index = {module: forms[i % len(forms)] for i, module in enumerate(REACHED)}
    found = make_canonical(
        renamed(STATE, lambda module, part: index[module](module, part)), MODULES
    )
    assert found.keys() == make_canonical(STATE).keys()


def test_a_flat_name_is_looked_up_never_guessed() -> None:
    """Without the list of modules nobody knows which underscores were dots."""
    state = renamed(STATE, named("lora_unet_", "lora_down", flat=True))
    with pytest.raises(LoraNotApplied, match=r"flat name .*lora_unet_"):
        make_canonical(state)


def test_a_flat_name_that_may_mean_two_modules_is_refused() -> None:
    down, up = torch.ones(1, 2), torch.ones(2, 1)
    modules = ["blocks.0.a_b", "blocks.0.a.b", "blocks.0.c"]

    def read(name: str) -> set[str]:
        return {*make_canonical({f"{name}.lora_A": down, f"{name}.lora_B": up}, modules)}

    with pytest.raises(LoraNotApplied, match=r"blocks_0_a_b may mean blocks\.0\.a\.b or blocks"):
        read("lora_unet_blocks_0_a_b")
    assert read("blocks.0.a_b") == {"blocks.0.a_b.lora_A.weight", "blocks.0.a_b.lora_B.weight"}
    assert read("lora_unet_blocks_0_c") == {"blocks.0.c.lora_A.weight", "blocks.0.c.lora_B.weight"}


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_transformer_blocks_7_attn_to_q",
        "lora_unet_double_blocks_0_img_attn_qkv",
        "transformer.single_transformer_blocks.0.attn.to_q",
        "transformer.transformer.transformer_blocks.0.attn.to_q",  # a prefix comes once
        "down_blocks.0.attentions.0.to_q",
        "transformer_blocks..attn.to_q",
        "transformer",
        "transformer.",
        "lora_unet_",
        "forward",
        ".",
    ],
)
def test_a_name_that_is_none_of_the_models_is_refused_with_its_key(name: str) -> None:
    state = {f"{name}.lora_A.weight": torch.ones(1, 4), f"{name}.lora_B.weight": torch.ones(4, 1)}
    with pytest.raises(LoraNotApplied) as raised:
        make_canonical(state, MODULES)
    assert name in raised.value.message
    with pytest.raises(LoraNotApplied):
        Adapters(MODEL).attach("a", state)


TO_Q = "transformer_blocks.0.attn.to_q"


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (f"{TO_Q}.dora_scale", "DoRA"),
        (f"lora_unet_{TO_Q.replace('.', '_')}.dora_scale", "DoRA"),
        (f"{TO_Q}.lora_magnitude_vector", "DoRA"),
        (f"{TO_Q}.lora_magnitude_vector.default.weight", "DoRA"),
        (f"{TO_Q}.lora_magnitude_vector.weight", "DoRA"),
        (f"{TO_Q}.lokr_w1", "LoKr"),
        (f"lycoris_{TO_Q.replace('.', '_')}.lokr_w2_a", "LoKr"),
        (f"diffusion_model.{TO_Q}.lokr_w2_b", "LoKr"),
        (f"{TO_Q}.lokr_t2", "LoKr"),
        (f"{TO_Q}.hada_w1_a", "LoHa"),
        (f"{TO_Q}.hada_t1", "LoHa"),
        (f"{TO_Q}.oft_blocks", "OFT"),
        (f"{TO_Q}.oft_R.default.weight", "OFT"),
        (f"{TO_Q}.boft_R", "OFT"),
        (f"{TO_Q}.a1.weight", "GLoRA"),
        (f"{TO_Q}.b2.weight", "GLoRA"),
        (f"{TO_Q}.ia3_l", r"\(IA\)3"),
        (f"{TO_Q}.vera_lambda_b", "VeRA"),
        (f"{TO_Q}.lora_mid.weight", "LoCon"),
        ("txt_in.lora_embedding_A", "embedding"),
        (f"diffusion_model.{TO_Q}.diff", "difference of a whole weight"),
        (f"diffusion_model.{TO_Q}.diff_b", "difference of a whole weight"),
        (f"diffusion_model.{TO_Q}.set_weight", "difference of a whole weight"),
        (f"{TO_Q}.w_norm", "difference of a whole weight"),
        (f"{TO_Q}.lora_B.bias", "a bias"),
        (f"{TO_Q}.lora_B.default.bias", "a bias"),
        (f"{TO_Q}.lora_up.bias", "a bias"),
        (f"{TO_Q}.bias", "a bias"),
        ("base_model.model.proj_out.modules_to_save.weight", "whole modules"),
        (f"{TO_Q}.lora_A.weight_scale", "scales of quantised"),
        (f"{TO_Q}.lora_down.scale_weight", "scales of quantised"),
        ("text_encoder.model.layers.0.self_attn.q_proj.lora_A.weight", "text encoder"),
        ("text_encoder_2.layers.0.q_proj.lora_A.weight", "text encoder"),
        ("text_encoders.qwen25_7b.transformer.model.layers.0.q.lora_up.weight", "text encoder"),
        ("lora_te_model_layers_0_self_attn_q_proj.lora_down.weight", "text encoder"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", "text encoder"),
        ("base_model.model.text_model.encoder.layers.0.q_proj.lora_A.weight", "text encoder"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_its_kinds_name(key: str, kind: str) -> None:
    with pytest.raises(LoraNotApplied, match=f"(?<!_){kind}") as raised:
        make_canonical({**STATE, key: torch.ones(RANK)}, MODULES)
    assert key in raised.value.message


@pytest.mark.parametrize(
    "key",
    [
        f"{TO_Q}.weight",
        f"{TO_Q}.lora_A.default",
        f"{TO_Q}.lora_A.a.b.weight",
        f"{TO_Q}.lora_C.weight",
        f"{TO_Q}.alpha.default",
        f"{TO_Q}.lora_alpha",
        "lora_A.weight",
        "alpha",
        "",
        "\n\x00\u202e",
    ],
)
def test_a_key_of_unknown_form_is_refused(key: str) -> None:
    with pytest.raises(LoraNotApplied) as raised:
        make_canonical({**STATE, key: torch.ones(RANK, RANK)}, MODULES)
    assert raised.value.message.isprintable()


def test_a_key_is_shown_on_one_line_and_not_without_end() -> None:
    with pytest.raises(LoraNotApplied) as raised:
        make_canonical({"a\nb\x1b[2J" + "x" * 100_000: torch.ones(1)})
    assert raised.value.message.isprintable()
    assert r"a\nb\x1b[2J" in raised.value.message
    assert len(raised.value.message) < 300


@pytest.mark.parametrize(
    "double",
    [
        f"transformer.{TO_Q}.lora_down.weight",
        f"diffusion_model.{TO_Q}.lora_A.weight",
        f"{TO_Q}.lora_A.weight",
        f"{TO_Q}.lora.down.weight",
        f"{TO_Q}.lora_A.default.weight",
        f"lora_unet_{TO_Q.replace('.', '_')}.lora_down.weight",
        f"transformer.{TO_Q}.alpha",
    ],
)
def test_a_part_that_comes_twice_is_refused_with_both_keys(double: str) -> None:
    side = "alpha" if double.endswith("alpha") else "lora_down.weight"
    with pytest.raises(LoraNotApplied, match="one part twice") as raised:
        make_canonical({**STATE, double: STATE[f"{TO_Q}.{side}"]}, MODULES)
    assert double in raised.value.message
    assert f"{TO_Q}.{side}" in raised.value.message


def test_two_adapters_in_one_file_are_refused() -> None:
    """Which of them is meant the file does not say."""
    other = "transformer_blocks.1.attn.to_q"
    state: dict[str, Tensor] = {}
    for module, name in ((TO_Q, "default"), (other, "style")):
        state[f"{module}.lora_A.{name}.weight"] = STATE[f"{module}.lora_down.weight"]
        state[f"{module}.lora_B.{name}.weight"] = STATE[f"{module}.lora_up.weight"]
    with pytest.raises(LoraNotApplied, match=r"2 adapters: .*lora_A\.default.*lora_A\.style"):
        make_canonical(state, MODULES)


@pytest.mark.parametrize("missing", ["lora_down.weight", "lora_up.weight"])
def test_half_a_pair_is_refused_with_the_key_that_is_alone(missing: str) -> None:
    state = {key: tensor for key, tensor in STATE.items() if key != f"{TO_Q}.{missing}"}
    with pytest.raises(LoraNotApplied, match=f"1 modules lack a part.*{TO_Q}"):
        make_canonical(state, MODULES)


def test_an_alpha_alone_is_no_lora() -> None:
    with pytest.raises(LoraNotApplied, match="lack a part"):
        make_canonical({f"{TO_Q}.alpha": torch.tensor(4.0)}, MODULES)
    with pytest.raises(LoraNotApplied, match="is incomplete"):
        make_canonical({}, MODULES)


def test_a_files_names_are_read_as_a_states_are(tmp_path: Path) -> None:
    state = renamed(STATE, named("lora_unet_", "lora_down", flat=True))
    save_file(state, tmp_path / "a.safetensors")
    found = lora_file.read(tmp_path / "a.safetensors", MODULES)
    assert found.keys() == make_canonical(STATE).keys()
    assert load_file(tmp_path / "a.safetensors").keys() == state.keys()


def test_a_key_is_shown_whole_as_long_as_it_fits() -> None:
    longest = "a" * LONGEST_KEY
    assert show(longest) == longest
    assert show(f"{longest}b") == f"{longest}..."
    assert show("to_\u20ac") == r"to_\u20ac"


def test_any_number_of_adapters_in_one_file_is_refused_with_the_first_two() -> None:
    state: dict[str, Tensor] = {}
    for name in ("a", "b", "c"):
        state[f"x{name}.lora_A.{name}.weight"] = torch.ones(1, 2)
        state[f"x{name}.lora_B.{name}.weight"] = torch.ones(2, 1)
    with pytest.raises(LoraNotApplied, match=r"3 adapters: xa\.lora_A\.a.* and xb\.lora_A\.b"):
        make_canonical(state)


@pytest.mark.parametrize(
    ("name", "is_flat"),
    [
        ("proj_out", False),
        ("transformer.proj_out", False),
        ("lora_unet_proj_out", True),
        ("lycoris_lora_unet_proj_out", True),
        ("lora_unet_blocks.0.to_q", False),
    ],
)
def test_without_a_list_of_modules_only_a_flat_name_means_nothing(
    name: str, *, is_flat: bool
) -> None:
    pair = {f"{name}.lora_A.weight": torch.ones(1, 2), f"{name}.lora_B.weight": torch.ones(2, 1)}
    if not is_flat:
        assert len(make_canonical(pair)) == 2
        return
    with pytest.raises(LoraNotApplied, match="a flat name means a module of one transformer"):
        make_canonical(pair)


@pytest.mark.parametrize("name", ["transformer.", "lora_unet_", "base_model.model.transformer."])
def test_a_prefix_alone_names_no_module(name: str) -> None:
    pair = {f"{name}.lora_A.weight": torch.ones(1, 2), f"{name}.lora_B.weight": torch.ones(2, 1)}
    for modules in (None, MODULES):
        with pytest.raises(LoraNotApplied, match="a key of unknown form"):
            make_canonical(pair, modules)
