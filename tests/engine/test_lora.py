"""Adapters reach every module they must, or fail; active ones give what peft gives, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from worker.engine.lora import (
    Adapters,
    LoraLinear,
    fuse,
    make_canonical,
    make_scaled,
    split_scale,
)
from worker.engine.lora_scale import read_stated
from worker.errors import LoraNotApplied
from worker.families.qwen_image.lightning import list_lightning_modules
from worker.families.qwen_image.modulation import RowModulation, RowPart, RowTable
from worlds.loras import (
    BLOCKS,
    MODULATION,
    REACHED,
    TIME,
    predict,
    published_lora,
    small_transformer,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_active_adapter_gives_what_peft_gives(tmp_path: Path, dtype: torch.dtype) -> None:
    """Ours and diffusers' load_lora_adapter through peft agree to the last bit."""
    stock, ours = small_transformer().to(dtype), small_transformer().to(dtype)
    state = {k: v.to(dtype) for k, v in published_lora(stock, 3).items()}
    save_file(state, tmp_path / "lora.safetensors")
    stock.load_lora_adapter(make_canonical(state), prefix=None, adapter_name="a")
    adapters = Adapters(ours)
    adapters.attach("a", make_canonical(load_file(tmp_path / "lora.safetensors")))
    adapters.use("a")
    assert torch.equal(predict(ours, dtype), predict(stock, dtype))


def test_switching_off_gives_the_base_back() -> None:
    """A transformer with its adapters off equals one that never had any."""
    plain, ours = small_transformer(), small_transformer()
    adapters = Adapters(ours)
    adapters.attach("a", make_canonical(published_lora(plain, 3)))
    adapters.attach("b", make_canonical(published_lora(plain, 4)))
    outputs: dict[str | None, Tensor] = {}
    for name in ("a", "b", None, "a"):
        adapters.use(name)
        output = predict(ours)
        assert torch.equal(outputs.setdefault(name, output), output)
    assert torch.equal(outputs[None], predict(plain))
    assert not torch.equal(outputs["a"], outputs["b"])


def test_every_module_of_lightning_is_counted() -> None:
    """Twelve modules a block, so 720 in the published 60 blocks."""
    transformer = small_transformer()
    state = make_canonical(published_lora(transformer, 3))
    expected = list_lightning_modules(BLOCKS)
    assert Adapters(transformer).attach("a", state, expected=expected) == 24
    assert len(list_lightning_modules(60)) == 720


def test_keys_under_a_prefix_are_the_same_lora() -> None:
    """`diffusion_model.` before every key changes nothing."""
    state = published_lora(small_transformer(), 3)
    prefixed = {f"diffusion_model.{key}": tensor for key, tensor in state.items()}
    plain = make_canonical(state)
    assert plain.keys() == make_canonical(prefixed).keys()
    assert all(torch.equal(plain[key], tensor) for key, tensor in make_canonical(prefixed).items())


def _without(state: dict[str, Tensor], ending: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if not key.endswith(ending)}


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda s: _without(s, "1.attn.to_q.lora_up.weight"), id="half-a-pair"),
        pytest.param(
            lambda s: {k: v for k, v in s.items() if ".1.attn.to_q." not in k}, id="module-missing"
        ),
        pytest.param(
            lambda s: {k.replace("s.1.", "s.7."): v for k, v in s.items()}, id="no-such-block"
        ),
        pytest.param(
            lambda s: {k: v[:, :-1] if "down" in k else v for k, v in s.items()}, id="wrong-shape"
        ),
        pytest.param(lambda s: {**s, "img_in.dora_scale": torch.ones(1)}, id="unknown-key"),
        pytest.param(lambda _: {}, id="empty"),
    ],
)
def test_any_miss_is_an_error_and_attaches_nothing(broken: Any) -> None:
    """A LoRA that does not reach exactly its modules is LORA_NOT_APPLIED, not a warning."""
    transformer = small_transformer()
    before = predict(transformer)
    adapters = Adapters(transformer)
    with pytest.raises(LoraNotApplied):
        adapters.attach(
            "a",
            make_canonical(broken(published_lora(transformer, 3))),
            expected=list_lightning_modules(BLOCKS),
        )
    assert adapters.attached == ()
    assert torch.equal(predict(transformer), before)


def test_an_adapter_that_is_not_held_cannot_be_used() -> None:
    """Asking for one is LORA_NOT_APPLIED, never a silent base picture."""
    with pytest.raises(LoraNotApplied):
        Adapters(small_transformer()).use("lightning_8")


def test_fusing_adds_the_product_in_float32() -> None:
    """A fused bf16 weight is the rounded exact sum."""
    weight = torch.randn(8, 8).to(torch.bfloat16)
    down, up = torch.randn(2, 8).to(torch.bfloat16), torch.randn(8, 2).to(torch.bfloat16)
    exact = weight.double() + up.double() @ down.double()
    assert torch.allclose(fuse(weight, down, up).double(), exact, rtol=2**-7)


def test_an_adapter_may_be_called_by_a_files_name() -> None:
    """Names with dots and percent signs are kept apart; torch takes no dot in a buffer's name."""
    ours, names = small_transformer(), ("style.v2", "style%2Ev2", "style_v2", "")
    states = [published_lora(ours, seed) for seed in range(len(names))]
    adapters = Adapters(ours)
    for name, state in zip(names, states, strict=True):
        adapters.attach(name, make_canonical(state))
    assert adapters.attached == names
    outputs = []
    for name in names:
        adapters.use(name)
        outputs.append(predict(ours))
    assert len({output.sum().item() for output in outputs}) == len(names)


def test_a_name_is_given_once() -> None:
    """A second adapter of a name would leave parts of the first where it does not reach."""
    ours = small_transformer()
    first, second = (make_canonical(published_lora(ours, seed)) for seed in (1, 2))
    adapters = Adapters(ours)
    adapters.attach("a", first)
    adapters.use("a")
    before = predict(ours)
    with pytest.raises(LoraNotApplied, match="attached already"):
        adapters.attach("a", second)
    assert torch.equal(predict(ours), before)


def test_a_file_is_attached_as_it_is_published() -> None:
    """What was not made canonical is: its alpha is never dropped and its names are resolved."""
    ours, theirs = small_transformer(), small_transformer()
    state = published_lora(ours, 3)
    for model, given in ((ours, state), (theirs, make_canonical(state))):
        adapters = Adapters(model)
        adapters.attach("a", given)
        adapters.use("a")
    assert torch.equal(predict(ours), predict(theirs))


def test_a_lora_of_every_module_gives_what_peft_gives_where_the_weights_are_in_place() -> None:
    """Also of the modulation and of the time embedding: nothing was computed from them before."""
    stock, ours = small_transformer(), small_transformer()
    state = {k: v * 0.1 for k, v in published_lora(ours, 3, modules=REACHED).items()}
    stock.load_lora_adapter(make_canonical(state), prefix=None, adapter_name="a")
    adapters = Adapters(ours)
    assert adapters.attach("a", state) == len(REACHED)
    adapters.use("a")
    assert torch.equal(predict(ours), predict(stock))


def _rows_of(ours: Any) -> RowModulation:
    """Put rows in the place of a transformer's modulation weights."""
    width, keys = 6 * ours.inner_dim, torch.tensor([0.5], dtype=torch.bfloat16)
    rows = torch.zeros(1, 2 * BLOCKS, width, dtype=torch.bfloat16)
    part = RowPart(rows, torch.arange(2 * BLOCKS), rows[0, :0], torch.arange(0))
    return RowModulation(ours, RowTable(keys, (part,)), torch.device("cpu"))


@pytest.mark.parametrize("module", [*TIME, *MODULATION])
@pytest.mark.parametrize("flat", [False, True])
def test_a_lora_that_rows_would_not_see_is_refused(module: str, *, flat: bool) -> None:
    """The rows were computed without it: attached it would change nothing that it should."""
    ours = small_transformer()
    state = published_lora(ours, 3, modules=[module, "img_in"])
    if flat:
        state = {
            f"lora_unet_{k.replace(module, module.replace('.', '_'))}": v for k, v in state.items()
        }
    adapters = Adapters(ours, _rows_of(ours).fixed)
    with pytest.raises(LoraNotApplied, match=f"{module} changes the modulation, which .* rows"):
        adapters.attach("a", state)
    assert adapters.attached == ()
    assert type(ours.img_in).__name__ == "Linear"


def test_beside_rows_every_other_module_is_reached() -> None:
    """norm_out and what is outside the blocks read temb and x as the stock model does."""
    ours = small_transformer()
    others = [name for name in REACHED if name not in (*TIME, *MODULATION)]
    state = published_lora(ours, 3, modules=others)
    adapters = Adapters(ours, _rows_of(ours).fixed)
    assert adapters.attach("a", state) == len(others)
    assert adapters.modules >= {*REACHED}
    assert not {name for name in adapters.modules if name.endswith(".base")}


def test_an_adapter_leaves_the_modules_alone_that_it_does_not_reach() -> None:
    """Also those that another adapter reaches, in whatever order they are used."""
    both, alone = small_transformer(), small_transformer()
    whole, part = published_lora(both, 1), published_lora(both, 2, modules=["img_in", "proj_out"])
    adapters, only = Adapters(both), Adapters(alone)
    assert adapters.attach("whole", whole) == len(whole) // 3
    assert adapters.attach("part", part) == only.attach("part", part) == 2
    only.use("part")
    expected = predict(alone)
    for name in ("part", "whole", "part", None, "part"):
        adapters.use(name)
        assert adapters.active == name
        assert torch.equal(predict(both), expected) is (name == "part")
    only.use(None)
    adapters.use(None)
    assert torch.equal(predict(both), predict(alone))


def test_what_is_not_held_changes_nothing_about_what_is_used() -> None:
    ours = small_transformer()
    adapters = Adapters(ours)
    adapters.attach("a", published_lora(ours, 1))
    adapters.use("a")
    before = predict(ours)
    with pytest.raises(LoraNotApplied, match="adapter b is not attached; attached: a"):
        adapters.use("b")
    assert adapters.active == "a"
    assert torch.equal(predict(ours), before)


def test_how_far_a_lora_misses_its_modules_is_told() -> None:
    ours = small_transformer()
    state = published_lora(ours, 1, modules=[*list_lightning_modules(BLOCKS)[3:], "img_in"])
    with pytest.raises(LoraNotApplied, match=r"reaches 22 modules: 3 of .* missing and 1 are not"):
        Adapters(ours).attach("a", state, expected=list_lightning_modules(BLOCKS))


def test_a_lora_beside_what_is_no_linear_or_has_another_shape_is_told() -> None:
    ours = small_transformer()
    down, up = torch.ones(2, 16), torch.ones(64, 2)

    def attach(module: str, down: Tensor, up: Tensor) -> None:
        given = {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
        Adapters(ours).attach("a", given)

    with pytest.raises(LoraNotApplied, match="img_in maps 16 to 64, the LoRA 15 to 64"):
        attach("img_in", down[:, 1:], up)
    with pytest.raises(LoraNotApplied, match="img_in maps 16 to 64, the LoRA 16 to 63"):
        attach("img_in", down, up[1:])
    with pytest.raises(LoraNotApplied, match="txt_norm is a RMSNorm, not a Linear"):
        attach("txt_norm", down, up)
    attach("img_in", down, up)


@pytest.mark.parametrize("missing", ["a_down", "a_up"])
def test_a_module_that_lacks_a_side_of_its_adapter_draws_nothing(missing: str) -> None:
    """Never the base, silently."""
    linear = LoraLinear(torch.nn.Linear(3, 2))
    linear.add("a", torch.ones(1, 3), torch.ones(2, 1))
    delattr(linear, missing)
    with pytest.raises(LoraNotApplied, match="adapter a is not attached to this module"):
        linear.active = "a"
    assert linear.active is None


def test_what_is_in_use_moves_with_its_module() -> None:
    linear = LoraLinear(torch.nn.Linear(3, 2))
    linear.add("a", torch.ones(1, 3), torch.ones(2, 1))
    linear.keep_sum("a", torch.ones(2, 3))
    linear.active = "a"
    linear.to(torch.float64)
    for used in (linear.down, linear.up, linear.kept):
        assert used is not None
        assert used.dtype == torch.float64


@pytest.mark.parametrize(
    ("scale", "sides"),
    [
        (1.0, (1.0, 1.0)),
        (5.0, (5.0, 1.0)),
        (-5.0, (-5.0, 1.0)),
        (0.5, (0.5, 1.0)),
        (0.375, (0.75, 0.5)),
        (0.25, (0.5, 0.5)),
        (-0.0625, (-0.25, 0.25)),
        (0.0, (0.0, 1.0)),
    ],
)
def test_a_scale_is_divided_so_that_neither_side_vanishes(
    scale: float, sides: tuple[float, float]
) -> None:
    assert split_scale(scale) == sides


def test_a_weight_and_a_scale_may_be_as_large_as_bf16_has_them_and_no_larger() -> None:
    most = torch.finfo(torch.bfloat16).max
    pair = {"a.lora_A.weight": torch.tensor([[most, -most]]), "a.lora_B.weight": torch.ones(1, 1)}
    assert make_canonical(pair).keys() == pair.keys()
    stated = read_stated({"lora_alpha": repr(float(most)), "r": "1"}, None)
    ones = {key: torch.ones_like(tensor) for key, tensor in pair.items()}
    assert make_scaled(ones, None, stated).scales == {"a": most}
    for more in (most * 1.01, -most * 1.01):
        with pytest.raises(LoraNotApplied, match="NaN or infinity"):
            make_canonical({**pair, "a.lora_B.weight": torch.tensor([[more]])})


def test_what_is_canonical_already_is_not_copied() -> None:
    """A LoRA of a gigabyte would be there twice."""
    pair = {"a.lora_A.weight": torch.ones(1, 2), "a.lora_B.weight": torch.ones(2, 1)}
    found = make_canonical(pair)
    assert all(found[key] is tensor for key, tensor in pair.items())
