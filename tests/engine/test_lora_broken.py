"""A broken LoRA is LORA_NOT_APPLIED with its key, before anything is attached."""

import json
import math
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from worker.engine import lora_file
from worker.engine.lora import Adapters, make_canonical
from worker.engine.lora_scale import read_stated
from worker.errors import LoraNotApplied
from worker.families.qwen_image.lightning import list_lightning_modules
from worlds.loras import BLOCKS, REACHED, predict, published_lora, small_transformer

TO_Q = "transformer_blocks.0.attn.to_q"
DOWN, UP, ALPHA = (f"{TO_Q}.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha"))
MODEL = small_transformer()
STATE = published_lora(MODEL, 3)
BASE = predict(MODEL)
Change = Callable[[Tensor], Tensor]


def holed(number: float) -> Change:
    """Return what puts a number into the middle of a tensor."""

    def change(tensor: Tensor) -> Tensor:
        found = tensor.clone()
        found.view(-1)[found.numel() // 2] = number
        return found

    return change


def cast(dtype: torch.dtype) -> Change:
    return lambda tensor: tensor.to(dtype)


BROKEN: dict[str, tuple[str, Change]] = {
    "A of another rank": (DOWN, lambda t: t[:2]),
    "B of another rank": (UP, lambda t: t[:, :3]),
    "A with 1 dimension": (DOWN, lambda t: t[0]),
    "A with 0 dimensions": (DOWN, lambda t: t[0, 0]),
    "A with 3 dimensions": (DOWN, lambda t: t[None]),
    "A of a convolution of 1": (DOWN, lambda t: t[:, :, None, None]),
    "B of a convolution of 1": (UP, lambda t: t[:, :, None, None]),
    "B with 1 dimension": (UP, lambda t: t[:, 0]),
    "rank 0 in A": (DOWN, lambda t: t[:0]),
    "rank 0 in B": (UP, lambda t: t[:, :0]),
    "no input": (DOWN, lambda t: t[:, :0]),
    "NaN in A": (DOWN, holed(math.nan)),
    "NaN in B": (UP, holed(math.nan)),
    "infinity in A": (DOWN, holed(math.inf)),
    "minus infinity in B": (UP, holed(-math.inf)),
    "more than bf16 holds": (DOWN, lambda t: holed(1e39)(t.double())),
    "less than bf16 holds": (UP, lambda t: holed(-1e39)(t.double())),
    "alpha of two numbers": (ALPHA, lambda t: t.repeat(2)),
    "alpha of no number": (ALPHA, lambda t: t.repeat(0)),
    "alpha NaN": (ALPHA, lambda t: t * math.nan),
    "alpha infinite": (ALPHA, lambda t: t / 0),
    "alpha beyond all weights": (ALPHA, lambda t: t.double() * 1e300),
    "alpha true": (ALPHA, lambda t: t.bool()),
    "alpha complex": (ALPHA, lambda t: t.to(torch.complex64)),
    "A transposed": (DOWN, lambda t: t.T.contiguous()),
    "B of another width": (UP, lambda t: t[:-1]),
    **{
        f"{side} {dtype}": (key, cast(dtype))
        for side, key in (("A", DOWN), ("B", UP))
        for dtype in (torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool)
    },
    "A complex": (DOWN, lambda t: t.to(torch.complex64)),
    "A of powers of two alone": (DOWN, lambda t: t.to(torch.float8_e8m0fnu)),
}


@pytest.mark.parametrize(("key", "change"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("attached_as", ["published", "canonical", "file"])
def test_a_broken_tensor_is_refused_with_its_key_and_nothing_is_attached(
    key: str, change: Change, attached_as: str, tmp_path: Path
) -> None:
    state = {**STATE, key: change(STATE[key]).contiguous()}
    adapters = Adapters(MODEL)

    def attach() -> None:
        if attached_as == "file":
            save_file(state, tmp_path / "a.safetensors")
            adapters.attach("a", lora_file.read(tmp_path / "a.safetensors", adapters.modules))
        elif attached_as == "canonical":
            adapters.attach("a", make_canonical(state))
        else:
            adapters.attach("a", state)

    with pytest.raises(LoraNotApplied) as raised:
        attach()
    assert TO_Q in raised.value.message
    assert raised.value.message.isprintable()
    assert adapters.attached == ()
    assert torch.equal(predict(MODEL), BASE)


@pytest.mark.parametrize(
    ("key", "dtype", "message"),
    [
        (DOWN, torch.int8, "is int8 without scales; weights are floating numbers"),
        (ALPHA, torch.bool, r"is bool \[\]; an alpha is one number"),
    ],
)
def test_a_number_format_is_told_by_its_own_name(
    key: str, dtype: torch.dtype, message: str
) -> None:
    with pytest.raises(LoraNotApplied, match=f"{key} {message}"):
        make_canonical({**STATE, key: STATE[key].to(dtype)})


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz]
)
def test_float8_weights_are_cast_before_they_are_multiplied(dtype: torch.dtype) -> None:
    """Every float8 is a float32; what they lost when they were stored is the file's own."""
    narrow = {k: v.to(dtype) for k, v in STATE.items()}
    wide = {k: v.to(torch.float32) for k, v in narrow.items()}
    found, expected = make_canonical(narrow), make_canonical(wide)
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    model = small_transformer()
    adapters = Adapters(model)
    adapters.attach("a", narrow)
    adapters.use("a")
    assert torch.isfinite(predict(model)).all()
    assert not torch.equal(predict(model), BASE)


def test_a_and_b_in_two_number_formats_are_brought_to_one() -> None:
    """float16 and bf16 have no product; both are exact in float32."""
    mixed = {k: v.half() if k.endswith("down.weight") else v.bfloat16() for k, v in STATE.items()}
    model = small_transformer()
    adapters = Adapters(model)
    adapters.attach("a", mixed)
    adapters.use("a")
    state = make_canonical(mixed)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert torch.isfinite(predict(model)).all()


def test_a_scale_that_a_number_format_cannot_hold_is_refused() -> None:
    """Folded in A's own dtype, as the stock converter does, float16 overflows at 65504."""
    state = {k: v.half() for k, v in published_lora(MODEL, 3, alpha=60_000.0).items()}
    state = {k: v * 10 if k.endswith("down.weight") else v for k, v in state.items()}
    with pytest.raises(LoraNotApplied, match="once it is scaled"):
        make_canonical(state)


def header(facts: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file of a header and data, whatever they are."""
    text = facts if isinstance(facts, bytes) else json.dumps(facts).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str, shape: list[int], end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


FILES: dict[str, bytes] = {
    "nothing": b"",
    "seven bytes": b"\x01" * 7,
    "a pickle": b"PK\x03\x04" + bytes(200),
    "a page": b"<!DOCTYPE html><html><body>404</body></html>",
    "a pointer to a large file": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    "a length beyond the file": header({}, length=1 << 40),
    "a length beyond all": header({}, length=(1 << 64) - 1),
    "no JSON": header(b"{" * 50),
    "deep JSON": header(b"[" * 100_000),
    "a list": header([]),
    "no tensors": header({}),
    "metadata alone": header({"__metadata__": {"lora_alpha": "4"}}),
    "metadata that is no text": header({"__metadata__": {"lora_alpha": 4}}),
    "data cut short": header({f"{TO_Q}.lora_A.weight": entry("F32", [2, 2], 16)}, bytes(8)),
    "a format without a name": header({f"{TO_Q}.lora_A.weight": entry("Q4_K", [4], 4)}, bytes(4)),
    "six bits": header({f"{TO_Q}.lora_A.weight": entry("F6_E2M3", [4], 3)}, bytes(3)),
    "four bits": header({f"{TO_Q}.lora_A.weight": entry("F4", [2, 4], 4)}, bytes(4)),
    "alpha in four bits": header({f"{TO_Q}.alpha": entry("F4", [2], 1)}, bytes(1)),
    "one in int16": header({f"{TO_Q}.lora_A.weight": entry("U16", [2, 1], 4)}, bytes(4)),
}


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_a_file_that_is_no_lora_is_refused(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "secret-folder.safetensors"
    file.write_bytes(data)
    with pytest.raises(LoraNotApplied) as raised:
        lora_file.read(file, REACHED)
    assert "secret-folder" not in raised.value.message
    assert raised.value.message.isprintable()


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_a_header_that_cannot_be_read_states_no_scale(data: bytes) -> None:
    """Reading the whole file shows what is wrong with it; no byte past its end is requested."""

    def read_range(start: int, end: int) -> bytes:
        assert start < end <= len(data)
        return data[start:end]

    stated = lora_file.read_stated_scale(read_range, len(data))
    assert stated.keys() == ({"lora_alpha"} if b"lora_alpha" in data else set())


@pytest.mark.parametrize(
    ("metadata", "relevant"),
    [
        ({"format": "pt", "ss_network_alpha": "8", "r": "4", "use_rslora": "true"}, set()),
        ({"lora_alpha": "8", "format": "pt"}, {"lora_alpha"}),
        ({"lora_alpha": "8", "r": "4", "rank_pattern": "{}"}, {"lora_alpha", "r", "rank_pattern"}),
        ({"lora_adapter_metadata": "{}", "r": "4"}, {"lora_adapter_metadata"}),
    ],
)
def test_a_header_tells_what_bears_on_the_scale_and_nothing_else(
    metadata: dict[str, str], relevant: set[str]
) -> None:
    data = header({"__metadata__": metadata})
    found = lora_file.read_stated_scale(lambda start, end: data[start:end], len(data))
    assert found == {key: metadata[key] for key in relevant}


@pytest.mark.parametrize(
    ("length", "behind", "asked"),
    [(0, 0, 1), (0, 9, 1), (1, 0, 1), (53, 0, 2), (53, 3, 2), (54, 0, 1), (100_000_001, 0, 1)],
)
def test_no_more_of_a_file_is_asked_for_than_its_header(
    length: int, behind: int, asked: int
) -> None:
    """A length that no header can have is not believed: it would be downloaded."""
    text = json.dumps({"__metadata__": {"lora_alpha": "8", "format": "pt"}}).encode()
    assert len(text) == 53
    data = header(text, bytes(behind), length)
    ranges: list[tuple[int, int]] = []

    def read_range(start: int, end: int) -> bytes:
        ranges.append((start, end))
        return data[start:end]

    stated = lora_file.read_stated_scale(read_range, len(data) if length < 10**8 else 1 << 40)
    assert ranges == [(0, 8), (8, 8 + length)][:asked]
    assert stated == ({"lora_alpha": "8"} if asked == 2 else {})


@pytest.mark.parametrize("length", [2, 100_000_000])
def test_the_shortest_and_the_longest_header_that_the_format_allows_is_asked_for(
    length: int,
) -> None:
    ranges: list[tuple[int, int]] = []

    def read_range(start: int, end: int) -> bytes:
        ranges.append((start, end))
        return b"{}" if start else length.to_bytes(8, "little")

    assert lora_file.read_stated_scale(read_range, 1 << 40) == {}
    assert ranges == [(0, 8), (8, 8 + length)]


def test_a_configuration_beside_is_read_and_its_absence_is_none(tmp_path: Path) -> None:
    assert lora_file.read_config(tmp_path / "a.safetensors") is None
    (tmp_path / "adapter_config.json").write_bytes(b"{}")
    assert lora_file.read_config(tmp_path / "a.safetensors") == b"{}"


def test_a_folder_is_no_file_and_a_missing_file_is_told_apart(tmp_path: Path) -> None:
    """Another worker of the volume may have dropped it: then it is fetched again."""
    with pytest.raises(LoraNotApplied, match=r"not a readable safetensors file \(\w+Error\)$"):
        lora_file.read(tmp_path)
    with pytest.raises(FileNotFoundError):
        lora_file.read(tmp_path / "none.safetensors")


DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8),
    *(torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.uint16, torch.uint64, torch.float8_e8m0fnu),
]
NUMBERS = [0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e38, 3.4e38, -1e300, 1e-300]
KEYS = sorted(STATE)
WORDS = [
    *("transformer.", "diffusion_model.", "base_model.model.", "lora_unet_", "lycoris_", "."),
    *(".lora_A.weight", ".lora_B.weight", ".lora_A.x.weight", ".lora.up.weight", ".alpha", ".bias"),
    *(".lokr_w1", ".dora_scale", ".diff", "img_in", "time_text_embed", "forward", "dtype", "base"),
    *(
        "transformer_blocks.0.attn",
        "transformer_blocks_1_img_mlp_net_2",
        "weight",
        "\ud800",
        "%",
        "é",
    ),
]


def real(tensor: Tensor) -> Tensor:
    """Return the real part: torch warns of a cast that would drop the imaginary one."""
    return tensor.real if tensor.is_complex() else tensor


@st.composite
def states(draw: Callable[[Any], Any]) -> dict[str, Any]:
    """Draw a distorted LoRA: tensors and keys changed, dropped, doubled and made up."""
    few = draw(st.lists(st.sampled_from(sorted({k.split(".lora_")[0] for k in KEYS})), max_size=3))
    state: dict[str, Any] = {k: v for k, v in STATE.items() if k.startswith(tuple(few) or "\0")}
    for _ in range(draw(st.integers(0, 4))):
        key = draw(st.sampled_from(sorted(state))) if state else ""
        word = draw(st.sampled_from(WORDS))
        match draw(st.integers(0, 7)):
            case 0:
                state.pop(key, None)
            case 1:
                shape = draw(st.lists(st.integers(0, 5), max_size=4))
                number = draw(st.sampled_from(NUMBERS))
                state[key] = torch.full(shape, number, dtype=torch.float64)
            case 2 if key:
                dtype = draw(st.sampled_from(DTYPES))
                state[key] = real(state[key]).float().to(dtype)
            case 3 if key:
                number = draw(st.sampled_from(NUMBERS))
                state[key] = (
                    holed(number)(real(state[key]).double()) if state[key].numel() else state[key]
                )
            case 4 if key:
                state[word + key] = state.pop(key)
            case 5 if key:
                state[key + word] = state[key]
            case 6 if key:
                at = draw(st.integers(0, len(key)))
                state[key[:at] + word + key[at + 1 :]] = state.pop(key)
            case _:
                state[word + draw(st.sampled_from(WORDS))] = torch.ones(draw(st.integers(1, 3)), 2)
    return state


VALUES: list[Any] = [
    *(4, 8, 0, -1, 2.5, "4", True, None, [], {}, {"to_q": 4}, {"(": 1}, 10**400),
]
RECORDS = st.dictionaries(
    st.sampled_from(["lora_alpha", "r", "use_rslora", "rank_pattern", "alpha_pattern", "x"]),
    st.sampled_from(VALUES),
    max_size=4,
)
METADATA = st.none() | st.dictionaries(
    st.sampled_from(["lora_adapter_metadata", "lora_alpha", "r", "use_rslora", "format"]),
    RECORDS.map(json.dumps)
    | st.sampled_from(["4", "16", "pt", "", "{", "NaN", "true", "[" * 9999]),
    max_size=3,
)


@settings(deadline=None, max_examples=300)
@given(states(), METADATA, st.none() | RECORDS.map(lambda record: json.dumps(record).encode()))
def test_whatever_a_file_holds_it_is_refused_or_sound(
    state: dict[str, Tensor], metadata: dict[str, str] | None, configuration: bytes | None
) -> None:
    """Sound: pairs of finite matrices of one rank, and a forward that ends in numbers."""
    model = small_transformer() if state else MODEL
    adapters = Adapters(model)
    found: dict[str, Tensor] = {}
    with suppress(LoraNotApplied):
        found = make_canonical(state, adapters.modules, read_stated(metadata, configuration))
        adapters.attach("a", found)
    if not adapters.attached:
        return
    for key, up in found.items():
        if key.endswith(".lora_B.weight"):
            down = found[key.replace(".lora_B.", ".lora_A.")]
            assert down.shape[0] == up.shape[1] > 0
            assert torch.isfinite(down.bfloat16()).all()
            assert torch.isfinite(up.bfloat16()).all()
    adapters.use("a")
    assert predict(model, torch.float32).shape == BASE.shape


def test_the_published_lora_is_sound() -> None:
    """The property above would hold for a reader that refuses everything."""
    model = small_transformer()
    expected = list_lightning_modules(BLOCKS)
    assert Adapters(model).attach("a", STATE, expected=expected) == len(expected)


def test_what_is_wrong_with_a_file_is_told_in_safetensors_words(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(FILES["a length beyond the file"])
    with pytest.raises(LoraNotApplied, match=r"safetensors file \(.*header"):
        lora_file.read(file)
