"""A LoRA's scale is the one its file states, as the stock stack follows it, or it is refused."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImagePipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import Tensor

from worker.engine import lora_file, lora_scale
from worker.engine.lora import Adapters
from worker.engine.lora_scale import Own, compute_scales, read_stated
from worker.errors import LoraNotApplied
from worlds.loras import REACHED, predict, published_lora, small_transformer

ROUNDING = 1e-5  # of a LoRA's whole effect, in float32

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "r 4, alpha 16": {"r": 4, "lora_alpha": 16},
    "r 16, alpha 8": {"r": 16, "lora_alpha": 8},
    "alpha is r": {"r": 4, "lora_alpha": 4},
    "rslora": {"r": 4, "lora_alpha": 16, "use_rslora": True},
    "rank_pattern": {
        "r": 4,
        "lora_alpha": 16,
        "rank_pattern": {"to_q": 8, r"^transformer_blocks\.1\.attn\.to_k": 2, "0.proj": 3},
    },
    "alpha_pattern": {
        "r": 4,
        "lora_alpha": 4,
        "alpha_pattern": {r"transformer_blocks\.\d+\.attn\.to_v": 32, "net.2": 1.5, "img_in": 7},
    },
    "all of them": {
        "r": 4,
        "lora_alpha": 6,
        "use_rslora": True,
        "rank_pattern": {r".*\.1\.attn.*": 5, "to_q": 8},
        # in the order of their names, in which both stacks save them: the first match counts
        "alpha_pattern": {".*mlp.*": 100, "^transformer_blocks.0.attn.to_q": 3, "to_q": 9},
    },
}


def trained(seed: int = 5, **facts: Any) -> Any:
    """Return a transformer with a peft adapter of random weights, as a training leaves it."""
    model = small_transformer()
    model.add_adapter(LoraConfig(target_modules=REACHED, init_lora_weights=False, **facts))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def saved(folder: Path, **facts: Any) -> tuple[Path, Tensor]:
    """Save such an adapter as diffusers' training script does; return its file and the picture."""
    model = trained(**facts)
    described = model.peft_config["default"].to_dict()
    QwenImagePipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(model),
        transformer_lora_adapter_metadata=described,
    )
    return folder / "pytorch_lora_weights.safetensors", predict(model)


def stock(file: Path) -> Tensor:
    """Return what the stock stack predicts with a LoRA file."""
    model = small_transformer()
    state, metadata = QwenImagePipeline.lora_state_dict(
        file.parent, weight_name=file.name, return_lora_metadata=True
    )
    QwenImagePipeline.load_lora_into_transformer(state, model, "a", metadata=metadata)
    return predict(model)


def ours(file: Path, *, fits: Any = None) -> Tensor:
    """Return what we predict with a LoRA file."""
    model = small_transformer() if fits is None else fits
    adapters = Adapters(model)
    adapters.attach("a", lora_file.read(file, adapters.modules, lora_file.read_config(file)))
    adapters.use("a")
    return predict(model)


def error(found: Tensor, expected: Tensor) -> float:
    """Return how far a picture is off, in parts of the LoRA's whole effect."""
    base = predict(small_transformer())
    return float((found - expected).abs().max() / (expected - base).abs().max())


@pytest.mark.parametrize("facts", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_what_diffusers_saves_has_the_scale_that_it_was_trained_with(
    facts: dict[str, Any], tmp_path: Path
) -> None:
    file, expected = saved(tmp_path, **facts)
    assert error(stock(file), expected) < ROUNDING
    assert error(ours(file), expected) < ROUNDING


def test_what_a_model_saves_of_its_own_adapter_has_it_too(tmp_path: Path) -> None:
    """save_lora_adapter writes the same record without a component's prefix."""
    model = trained(r=4, lora_alpha=16, rank_pattern={"to_q": 2})
    model.save_lora_adapter(tmp_path, weight_name="a.safetensors")
    assert error(ours(tmp_path / "a.safetensors"), predict(model)) < ROUNDING


def test_what_peft_saves_has_the_scale_of_the_configuration_beside_it(tmp_path: Path) -> None:
    """save_pretrained states nothing in the file, everything in adapter_config.json."""
    config = LoraConfig(
        target_modules=REACHED,
        init_lora_weights=False,
        **CONFIGURATIONS["all of them"],
    )
    torch.manual_seed(3)
    model = get_peft_model(small_transformer(), config)
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    assert next(iter(load_file(file))).startswith("base_model.model.")
    expected = predict(model.base_model.model)
    assert error(ours(file), expected) < ROUNDING
    (tmp_path / lora_scale.ADAPTER_CONFIG).unlink()
    assert error(ours(file), expected) > 0.1  # the scale was not in the file itself


def plain(folder: Path, metadata: dict[str, str] | None, **changes: Tensor) -> Path:
    """Save a LoRA of rank 4 without alphas under a header's metadata."""
    state = {k: v for k, v in published_lora(small_transformer(), 3).items() if "alpha" not in k}
    save_file({k: v * 0.1 for k, v in state.items()} | changes, folder / "a.safetensors", metadata)
    return folder / "a.safetensors"


def scale_of(file: Path, module: str = "transformer_blocks.0.attn.to_q") -> float:
    """Return by what the A of a module was multiplied."""
    after = lora_file.read(file, None, lora_file.read_config(file))[f"{module}.lora_A.weight"]
    before = load_file(file)[f"{module}.lora_down.weight"]
    return float((after / before).mean())


RECORD = {"transformer.r": 4, "transformer.lora_alpha": 16}


@pytest.mark.parametrize(
    ("metadata", "scale"),
    [
        (None, 1),
        ({"format": "pt"}, 1),
        ({"lora_alpha": "16", "r": "4"}, 4),
        ({"lora_alpha": "2.0", "r": "4"}, 0.5),
        ({"lora_alpha": "16"}, 4),
        ({"lora_alpha": "16", "r": "4", "use_rslora": "True"}, 8),
        ({"lora_alpha": "16", "r": "4", "use_rslora": "true"}, 8),
        ({"lora_alpha": "16", "r": "4", "use_rslora": "False"}, 4),
        ({"lora_alpha": "16", "r": "4", "alpha_pattern": '{"to_q": 2}'}, 0.5),
        ({"lora_alpha": "16", "r": "9", "rank_pattern": '{".*": 4}'}, 4),
        ({"lora_alpha": "16", "r": "4", "use_rslora": "None", "rank_pattern": "None"}, 4),
        ({"lora_alpha": "16", "r": "4", "alpha_pattern": '{"' + "a" * 500 + '": 2}'}, 4),
        ({"lora_adapter_metadata": json.dumps({**RECORD, "peft_type": "LORA"})}, 4),
        ({"lora_adapter_metadata": json.dumps({**RECORD, "transformer.peft_type": "LORA"})}, 4),
        ({"lora_alpha": "4", "r": "1", "rank_pattern": '{".*": 4}'}, 1),
        ({"lora_adapter_metadata": json.dumps({**RECORD, "init_lora_weights": True})}, 4),
        ({"lora_adapter_metadata": json.dumps({**RECORD, "init_lora_weights": "gaussian"})}, 4),
        ({"r": "64"}, 1),  # no alpha: of a training, not of a scale
        ({"ss_network_alpha": "16", "ss_network_dim": "4", "ss_network_module": "x"}, 1),
        ({"lora_adapter_metadata": json.dumps(RECORD)}, 4),
        ({"lora_adapter_metadata": json.dumps({**RECORD, "text_encoder.lora_alpha": 1})}, 4),
        ({"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 2})}, 0.5),
        ({"lora_adapter_metadata": json.dumps({"lora_alpha": 0})}, 0),
        ({"lora_adapter_metadata": json.dumps({"lora_alpha": -4, "r": 4.0})}, -1),
        ({"lora_adapter_metadata": json.dumps(RECORD), "lora_alpha": "16", "r": "4"}, 4),
    ],
)
def test_the_scale_is_alpha_by_rank_of_whatever_states_it(
    metadata: dict[str, str] | None, scale: float, tmp_path: Path
) -> None:
    assert scale_of(plain(tmp_path, metadata)) == pytest.approx(scale)


def test_a_configuration_beside_counts_where_the_file_states_nothing(tmp_path: Path) -> None:
    file = plain(tmp_path, {"format": "pt"})
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 12}')
    assert scale_of(file) == pytest.approx(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.float64])
@pytest.mark.parametrize("shape", [[], [1]])
def test_a_modules_own_alpha_may_be_any_number_beside_the_same_metadata(
    dtype: torch.dtype, shape: list[int], tmp_path: Path
) -> None:
    """22.63 in bf16 is 22.625: an alpha's own rounding is no disagreement."""
    root = math.sqrt(512) if dtype.is_floating_point else 22
    alpha = {"transformer_blocks.0.attn.to_q.alpha": torch.full(shape, root).to(dtype)}
    file = plain(tmp_path, {"lora_alpha": str(root), "r": "4"}, **alpha)
    assert scale_of(file) == pytest.approx(root / 4, rel=2**-8)
    assert scale_of(file, "transformer_blocks.0.attn.to_k") == pytest.approx(root / 4)


@pytest.mark.parametrize(
    ("alpha", "metadata", "configuration", "names"),
    [
        (8.0, {"lora_alpha": "16"}, None, ("its own alpha", "the metadata's lora_alpha")),
        (8.0, {"lora_adapter_metadata": json.dumps(RECORD)}, None, ("alpha", "lora_adapter_meta")),
        (8.0, None, {"lora_alpha": 16}, ("its own alpha", "adapter_config.json")),
        (None, {"lora_alpha": "8"}, {"lora_alpha": 8.1}, ("lora_alpha", "adapter_config.json")),
        (
            None,
            {"lora_alpha": "8", "lora_adapter_metadata": json.dumps(RECORD)},
            None,
            ("lora_adapter_metadata", "the metadata's lora_alpha"),
        ),
        # alpha / sqrt(r) against alpha / r
        (16.0, {"lora_alpha": "16", "use_rslora": "True"}, None, ("4 by its own", "8 by the")),
    ],
)
def test_two_sources_that_disagree_are_refused_and_named(
    alpha: float | None,
    metadata: dict[str, str] | None,
    configuration: dict[str, Any] | None,
    names: tuple[str, str],
    tmp_path: Path,
) -> None:
    own = {} if alpha is None else {"transformer_blocks.1.attn.to_k.alpha": torch.tensor(alpha)}
    file = plain(tmp_path, metadata, **own)
    if configuration is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(configuration))
    with pytest.raises(LoraNotApplied) as raised:
        scale_of(file)
    assert all(name in raised.value.message for name in names)
    assert "transformer_blocks." in raised.value.message


@pytest.mark.parametrize("facts", [{"r": 8}, {"rank_pattern": {"to_q": 8}}, {"r": 2}])
def test_a_rank_that_is_not_the_tensors_is_refused(facts: dict[str, Any], tmp_path: Path) -> None:
    """Modules are of the stated rank in peft: the stock stack cannot load such a file either."""
    record = {"lora_alpha": 16, **facts}
    with pytest.raises(LoraNotApplied, match=r"has rank 4, but [28] by .*lora_adapter_metadata"):
        scale_of(plain(tmp_path, {"lora_adapter_metadata": json.dumps(record)}))


DEEP = "[" * 100_000
BROKEN_VALUES: dict[str, list[Any]] = {
    "r": [0, -4, 4.5, "4", None, True, [4], math.nan, math.inf],
    "lora_alpha": ["16", None, True, [16], {}, math.nan, math.inf, -math.inf, 10**400],
    "use_rslora": [1, 0, "true", [], 1.0],
    "rank_pattern": [[], "to_q", 4, {"to_q": 0}, {"to_q": "4"}, {"to_q": None}],
    "alpha_pattern": [{"(": 4}, {"to_q": math.nan}, {"to_q": True}, {"a" * 501: 4}],
    "peft_type": ["LOKR", "LOHA", 4],
    "use_dora": [True],
    "init_lora_weights": ["pissa", "PiSSA_niter_4", "olora", "corda", "loftq", "lora_ga"],
}
BROKEN_RECORDS = [
    "",
    "{",
    "null",
    "[]",
    "16",
    '"16"',
    DEEP,
    "{}",
    '{"text_encoder.lora_alpha": 16}',
    '{"r": 4}',
    *(
        json.dumps({"r": 4, "lora_alpha": 16, key: value})
        for key, values in BROKEN_VALUES.items()
        for value in values
    ),
]


@pytest.mark.parametrize("text", BROKEN_RECORDS, ids=lambda text: text[:60])
def test_a_scale_that_cannot_be_read_is_refused_not_guessed(text: str, tmp_path: Path) -> None:
    with pytest.raises(LoraNotApplied, match="lora_adapter_metadata"):
        scale_of(plain(tmp_path, {"lora_adapter_metadata": text}))
    file = plain(tmp_path, None)
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(LoraNotApplied, match=r"adapter_config\.json"):
        scale_of(file)


@pytest.mark.parametrize(
    ("field", "value"),
    [(f, v) for f in lora_scale.FIELDS for v in BROKEN_VALUES[f]],
    ids=lambda given: str(given)[:30],
)
def test_the_field_that_cannot_be_read_is_named(field: str, value: Any) -> None:
    record = {"r": 4, "lora_alpha": 16, field: value}
    with pytest.raises(LoraNotApplied, match=f"^{field} of adapter_config.json cannot be read"):
        read_stated(None, json.dumps(record).encode())


@pytest.mark.parametrize("text", ["", "sixteen", "nan", "NaN", "Infinity", "true", "[16]", DEEP])
def test_a_bare_alpha_that_is_no_number_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(LoraNotApplied, match="lora_alpha"):
        scale_of(plain(tmp_path, {"lora_alpha": text, "r": "4"}))


def test_a_configuration_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = plain(tmp_path, None)
    (tmp_path / "adapter_config.json").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(LoraNotApplied, match="not JSON"):
        scale_of(file)


def test_a_pattern_that_would_never_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A regular expression from an unknown author must not block the worker."""
    monkeypatch.setattr(lora_scale, "PATTERNS_S", 0.1)
    record = {"lora_alpha": 4, "alpha_pattern": {"(.|.)*(.|.)*[A-Z]": 8}}
    sources = read_stated({lora_scale.RECORD: json.dumps(record)}, None)
    with pytest.raises(LoraNotApplied, match="too long"):
        compute_scales({"transformer_blocks.0.attn.to_q": Own(4)}, sources)


def test_a_pattern_that_takes_its_time_is_matched() -> None:
    """Some hundredths of a second, of the ten that there are."""
    record = {"lora_alpha": 4, "alpha_pattern": {"(.|.)*[A-Z]": 8}}
    sources = read_stated({lora_scale.RECORD: json.dumps(record)}, None)
    assert compute_scales({"a" * 17: Own(4)}, sources) == {"a" * 17: 1}


def test_a_pattern_gets_a_moment_once_the_time_is_over() -> None:
    """Which is enough for a usual one, and does not let one run that takes half a second."""
    over = time.monotonic() - 1
    record = {"lora_alpha": 4, "alpha_pattern": {"to_q": 8}}
    (usual,) = read_stated({lora_scale.RECORD: json.dumps(record)}, None)
    assert usual.compute_scale("attn.to_q", 4, over) == 2
    record = {"lora_alpha": 4, "alpha_pattern": {"(.|.)*[A-Z]": 8}}
    (slow,) = read_stated({lora_scale.RECORD: json.dumps(record)}, None)
    with pytest.raises(LoraNotApplied, match="too long"):
        slow.compute_scale("a" * 20, 4, over)


PIECES = st.sampled_from(
    ["^", "transformer_blocks", ".", r"\.", "0", "1", r"\d+", "attn", "to_q", "to_[qk]", ".*", "q$"]
)
PATTERNS = st.lists(PIECES, min_size=1, max_size=5).map("".join)


@settings(deadline=None)
@given(st.dictionaries(PATTERNS, st.integers(1, 64), max_size=4))
def test_patterns_match_as_pefts_do(alphas: dict[str, int]) -> None:
    """The first that matches counts, from the start of the name or after any of its dots."""
    record = {"lora_alpha": 0.5, "alpha_pattern": alphas}
    sources = read_stated({lora_scale.RECORD: json.dumps(record)}, None)
    found = compute_scales({name: Own(1) for name in REACHED}, sources)
    for name in REACHED:
        assert found[name] == alphas.get(get_pattern_key(alphas, name), 0.5)
