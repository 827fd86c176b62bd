"""Adapters that jobs bring: several give what peft gives, bit for bit, and leave nothing."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from worker.engine.guests import GuestAdapters, Guests
from worker.engine.lora import Adapters, ScaledLora, make_canonical, make_scaled
from worker.engine.lora_scale import read_stated
from worker.errors import LoraNotApplied
from worlds.loras import REACHED, predict, published_lora, small_transformer

WEAK = 0.1
# peft warns of a second adapter next to the first
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")


def weak(seed: int, **more: Any) -> dict[str, Tensor]:
    """Return a LoRA whose effect is small beside the weights."""
    state = published_lora(small_transformer(), seed, **more)
    return {key: t if key.endswith(".alpha") else t * WEAK for key, t in state.items()}


STATES = {
    "all": weak(2, modules=REACHED),
    "ends": weak(3, modules=["img_in", "proj_out", REACHED[0]], alpha=7.0),
    "lightning": weak(4),
}


class Pair:
    """A small transformer twice: with peft's adapters, and with guests next to one of its own."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.stock, self.ours = small_transformer().to(dtype), small_transformer().to(dtype)
        self.own = Adapters(self.ours)
        self.own.attach("own", self.cast(STATES["lightning"]))
        self.guests = GuestAdapters(self.ours, self.own, {})
        for name, state in STATES.items():
            canonical = make_canonical(state)
            self.stock.load_lora_adapter(dict(canonical), prefix=None, adapter_name=name)
            if name != "lightning":
                self.guests.attach(name, ScaledLora(self.cast(state), make_scaled(state).scales))

    def cast(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a LoRA's tensors in the transformer's dtype, its alpha folded in."""
        return {key: t.to(self.dtype) for key, t in make_canonical(state).items()}

    def predict_stock(self, scales: dict[str, float]) -> Tensor:
        """Return what peft predicts with these adapters."""
        self.stock.set_adapters(list(scales), list(scales.values()))
        return predict(self.stock, self.dtype)

    def predict_ours(self, own: str | None, scales: dict[str, float]) -> Tensor:
        """Return what is predicted with one adapter of the model's own, or none, and guests."""
        self.own.use(own)
        self.guests.use(scales)
        return predict(self.ours, self.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_gives_what_peft_gives_in_the_order_of_the_job(dtype: torch.dtype) -> None:
    """Next to the model's own or without it, of every module and of few, at any scale."""
    pair = Pair(dtype)
    base = predict(small_transformer().to(dtype), dtype)
    for scales in (
        {"all": 1.0},
        {"all": 0.7, "ends": -0.3},
        {"ends": 1.5, "all": -2.0},
        {"ends": 0.0},
    ):
        beside = {"lightning": 1.0, **scales}
        assert torch.equal(pair.predict_ours("own", scales), pair.predict_stock(beside))
        alone = pair.predict_ours(None, scales)
        assert torch.equal(alone, pair.predict_stock(scales))
        assert torch.equal(alone, base) is (scales == {"ends": 0.0})
        assert torch.equal(pair.predict_ours(None, {}), base)


def test_only_while_they_are_used_do_they_stand_in_for_modules() -> None:
    """So that what was compiled for the transformer finds its modules as they were."""
    pair = Pair()
    before = dict(pair.ours.named_modules())
    pair.guests.use({"ends": 1.0})
    during = dict(pair.ours.named_modules())
    changed = {name for name in before if during[name] is not before[name] and "base" not in name}
    assert changed == {"img_in", "proj_out", REACHED[0]}
    pair.guests.use({})
    after = dict(pair.ours.named_modules())
    assert after.keys() == before.keys()
    assert all(after[name] is module for name, module in before.items())


def test_attaching_ends_the_use_of_all() -> None:
    pair = Pair()
    pair.guests.use({"ends": 1.0})
    pair.guests.attach("more", make_scaled(STATES["all"]))
    assert pair.guests.used == {}
    assert torch.equal(predict(pair.ours), predict(small_transformer()))


def test_a_stated_scale_is_applied_after_b_and_an_alpha_folded_as_the_stock_converter_does() -> (
    None
):
    """Folded, 0.1 of a bf16 A would be rounded; peft multiplies the product."""
    plain = {key: t for key, t in STATES["all"].items() if not key.endswith(".alpha")}
    stated = read_stated({"lora_alpha": "0.4", "r": "4"}, None)
    lora = make_scaled(plain, None, stated)
    assert set(lora.scales.values()) == {0.1}
    key = "img_in.lora_A.weight"
    assert torch.equal(lora.tensors[key], plain["img_in.lora_down.weight"])
    own = make_scaled(STATES["all"])
    assert set(own.scales.values()) == {1.0}
    assert torch.equal(own.tensors[key], STATES["all"]["img_in.lora_down.weight"] * 0.5)
    eighth = make_scaled({**STATES["ends"], "img_in.alpha": torch.tensor(0.5)})
    assert torch.equal(eighth.tensors[key], STATES["ends"]["img_in.lora_down.weight"] * 0.25)
    assert torch.equal(
        eighth.tensors["img_in.lora_B.weight"], STATES["ends"]["img_in.lora_up.weight"] * 0.5
    )
    pair = Pair()
    pair.guests.attach("stated", lora)
    pair.guests.attach("plain", make_scaled(plain))
    assert torch.equal(
        pair.predict_ours(None, {"stated": 0.5}), pair.predict_ours(None, {"plain": 0.05})
    )


def test_a_stated_scale_that_no_number_can_hold_is_refused() -> None:
    plain = {key: t for key, t in STATES["ends"].items() if not key.endswith(".alpha")}
    with pytest.raises(LoraNotApplied, match=r"the scale of \S+ is 2.5e\+39"):
        make_scaled(plain, None, read_stated({"lora_alpha": "1e40"}, None))
    of_one = {"lora_alpha": "1", "alpha_pattern": '{"proj_out": 1e40}'}
    with pytest.raises(LoraNotApplied, match="the scale of proj_out is"):
        make_scaled(plain, None, read_stated(of_one, None))


@pytest.mark.parametrize(
    ("module", "down", "up", "message"),
    [
        ("img_in", (2, 15), (64, 2), "img_in maps 16 to 64, the LoRA 15 to 64"),
        ("img_in", (2, 16), (63, 2), "img_in maps 16 to 64, the LoRA 16 to 63"),
        ("txt_norm", (2, 16), (64, 2), "txt_norm is a RMSNorm, not a Linear"),
        ("elsewhere", (2, 5), (4, 2), "elsewhere maps 3 to 4, the LoRA 5 to 4"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_of_it_is_attached(
    module: str, down: tuple[int, int], up: tuple[int, int], message: str
) -> None:
    transformer, place = small_transformer(), Guests(3, 4)
    guests = GuestAdapters(transformer, Adapters(transformer), {"elsewhere": place})
    tensors = {
        "proj_out.lora_A.weight": torch.ones(2, 64),
        "proj_out.lora_B.weight": torch.ones(16, 2),
        f"{module}.lora_A.weight": torch.ones(*down),
        f"{module}.lora_B.weight": torch.ones(*up),
    }
    with pytest.raises(LoraNotApplied, match=message):
        guests.attach("a", ScaledLora(tensors, {"proj_out": 1.0, module: 1.0}))
    assert guests.attached == ()
    with pytest.raises(LoraNotApplied, match=r"adapter a is not attached; attached: $"):
        guests.use({"a": 1.0})


def test_a_name_is_attached_once() -> None:
    pair = Pair()
    with pytest.raises(LoraNotApplied, match="called all is attached already"):
        pair.guests.attach("all", make_scaled(STATES["ends"]))
    assert pair.guests.count_modules("all") == len(REACHED)


def test_what_is_computed_elsewhere_gets_them_too() -> None:
    transformer, place = small_transformer(), Guests(3, 4)
    guests = GuestAdapters(transformer, Adapters(transformer), {"elsewhere": place})
    down, up = torch.ones(1, 3), torch.arange(4.0)[:, None]
    tensors = {"elsewhere.lora_A.weight": down, "elsewhere.lora_B.weight": up}
    assert guests.attach("a", ScaledLora(tensors, {"elsewhere": 2.0})) == 1
    x, y = torch.ones(2, 3), torch.ones(2, 4)
    assert torch.equal(place.add_to(y, x), y)
    guests.use({"a": 0.5})
    assert torch.equal(place.add_to(y, x), y + 3 * torch.arange(4.0))
    assert place.key == (("a", 1.0),)
    guests.use({})
    guests.detach("a")
    guests.attach("a", ScaledLora(tensors, {"elsewhere": 1.0}))


def test_one_that_is_detached_leaves_no_tensor_behind_at_any_module() -> None:
    pair = Pair()
    made = make_scaled(STATES["all"])
    lora = ScaledLora({key: tensor.clone() for key, tensor in made.tensors.items()}, made.scales)
    tensors = [weakref.ref(tensor) for tensor in lora.tensors.values()]
    pair.guests.attach("more", lora)
    pair.guests.use({"more": 1.0})
    with pytest.raises(LoraNotApplied, match="adapter more is in use"):
        pair.guests.detach("more")
    pair.guests.use({})
    pair.guests.detach("more")
    assert pair.guests.attached == ("all", "ends")
    del lora
    gc.collect()
    assert [ref() for ref in tensors] == [None] * len(tensors)
