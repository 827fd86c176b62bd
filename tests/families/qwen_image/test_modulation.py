"""Rows instead of modulation weights: the same numbers to the last bit, or an error."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from worker.engine.guests import GuestAdapters
from worker.engine.lora import Adapters, ScaledLora, make_scaled
from worker.errors import Internal, LoraNotApplied
from worker.families.qwen_image.modulation import (
    RowModulation,
    RowTable,
    WeightModulation,
    round_timesteps,
)
from worlds.loras import MODULATION, TIME, published_lora, table_of

LIGHTNING = torch.tensor([1000.0, 954.5455, 900.0, 833.3333, 750.0, 642.8572, 500.0, 300.0])


def small(*, seed: int = 0, **config: Any) -> Any:
    """Return a small bf16 transformer with the real classes and random weights."""
    torch.manual_seed(seed)
    model = QwenImageTransformer2DModel(
        **{
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": 4,
            "joint_attention_dim": 64,
            "axes_dims_rope": (8, 12, 12),
            **config,
        }
    )
    return model.to(torch.bfloat16).eval()


def forward(model: Any, timestep: torch.Tensor, *, batch: int = 1, side: int = 4) -> torch.Tensor:
    torch.manual_seed(7)
    shapes = [[(1, side, side), (1, 4, 4)]] * batch
    tokens = side * side + 16
    with torch.inference_mode():
        out: torch.Tensor = model(
            hidden_states=torch.randn(batch, tokens, 16, dtype=torch.bfloat16),
            encoder_hidden_states=torch.randn(batch, 5, 64, dtype=torch.bfloat16),
            timestep=round_timesteps(timestep).expand(batch),
            img_shapes=shapes,
            return_dict=False,
        )[0]
    return out


@pytest.mark.parametrize(
    "config",
    [{}, {"zero_cond_t": True}, {"use_layer3d_rope": True}],
    ids=["base", "zero_cond_t", "layered"],
)
@pytest.mark.parametrize("side", [4, 6])
def test_rows_equal_weights_to_the_last_bit(config: dict[str, Any], side: int) -> None:
    weights, rows = small(**config), small(**config)
    modulation = RowModulation(rows, table_of(weights, LIGHTNING), torch.device("cpu"))
    modulation.load(LIGHTNING)
    for step, timestep in enumerate(LIGHTNING):
        modulation.select(step)
        assert torch.equal(
            forward(rows, timestep, side=side), forward(weights, timestep, side=side)
        )


@pytest.mark.parametrize("zero_cond_t", [False, True])
def test_a_batch_gets_the_row_of_its_timestep_for_each_member(zero_cond_t: bool) -> None:
    weights, rows = small(zero_cond_t=zero_cond_t), small(zero_cond_t=zero_cond_t)
    modulation = RowModulation(rows, table_of(weights, LIGHTNING), torch.device("cpu"))
    modulation.load(LIGHTNING)
    modulation.select(3)
    batched = forward(rows, LIGHTNING[3], batch=3)
    stock = forward(weights, LIGHTNING[3], batch=3)
    # GEMMs of other row counts round differently, so a batch equals stock to bf16, not to the bit.
    torch.testing.assert_close(batched, stock, rtol=0.05, atol=0.05)
    temb = torch.zeros(6 if zero_cond_t else 3, 1)
    image = rows.transformer_blocks[0].img_mod(temb)
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])
    if zero_cond_t:
        assert torch.equal(image[3], image[5])
        assert not torch.equal(image[0], image[3])


def test_a_timestep_without_a_row_is_an_error_never_a_neighbours_row() -> None:
    model = small()
    modulation = RowModulation(model, table_of(small(), LIGHTNING), torch.device("cpu"))
    with pytest.raises(Internal, match=r"952\.0"):
        modulation.load(torch.tensor([1000.0, 952.0]))
    for outside in (1.0, 1004.0):
        with pytest.raises(Internal):
            modulation.load(torch.tensor([outside]))


def test_timesteps_that_the_transformer_sees_as_one_share_a_row() -> None:
    model = small()
    modulation = RowModulation(model, table_of(small(), LIGHTNING), torch.device("cpu"))
    drawn = []
    for timestep in (LIGHTNING[1], torch.tensor(955.0)):  # both are seen as bf16(956 / 1000)
        modulation.load(timestep[None])
        modulation.select(0)
        drawn.append(forward(model, timestep))
    assert torch.equal(*drawn)
    assert drawn[0].isfinite().all()


@pytest.mark.parametrize("zero_cond_t", [False, True])
def test_a_forward_without_a_selection_is_nan_never_an_earlier_step(zero_cond_t: bool) -> None:
    """Neither of the image stream nor of the text's, before a first load too."""
    model, weights = small(zero_cond_t=zero_cond_t), small(zero_cond_t=zero_cond_t)
    modulation = RowModulation(model, table_of(weights, LIGHTNING), torch.device("cpu"))

    def are_unknown() -> bool:
        layers = [(block.img_mod, block.txt_mod) for block in model.transformer_blocks]
        return all(mod(torch.zeros(2, 1))[0].isnan().all() for pair in layers for mod in pair)

    assert are_unknown()
    modulation.load(LIGHTNING)
    modulation.select(0)
    assert not forward(model, LIGHTNING[0]).isnan().any()
    modulation.load(LIGHTNING)
    assert are_unknown()
    assert forward(model, LIGHTNING[0]).isnan().any()


def test_lightnings_rows_are_read_once_whatever_comes_between() -> None:
    """Those of 8 and of 4 steps; a longer schedule is read again once another was loaded."""
    read: list[int] = []
    schedules = [LIGHTNING, LIGHTNING[::2], LIGHTNING.repeat(2)]
    table = table_of(small(), LIGHTNING)
    parts = tuple(replace(p, ahead=lambda index: read.append(len(index))) for p in table.parts)
    modulation = RowModulation(small(), RowTable(table.keys, parts), torch.device("cpu"))
    for schedule in (0, 0, 1, 2, 2, 0, 1, 2):
        modulation.load(schedules[schedule])
    assert len(LIGHTNING) == 8
    assert read[:: len(parts)] == [8, 4, 16, 16]


def test_the_rows_of_a_long_schedule_are_gone_before_the_next_are_read() -> None:
    """Memory is planned for one schedule that is too long to be kept."""
    before: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def look(_index: torch.Tensor) -> None:
        alive.extend(rows() is not None for rows in before)

    table = table_of(small(), LIGHTNING)
    parts = tuple(replace(part, ahead=look) for part in table.parts)
    modulation = RowModulation(small(), RowTable(table.keys, parts), torch.device("cpu"))
    for schedule in (LIGHTNING.repeat(2), LIGHTNING.repeat(3)):
        modulation.load(schedule)
        assert modulation._loaded is not None
        before.append(weakref.ref(modulation._loaded))
    assert alive == [False] * len(parts)


def test_a_schedule_that_could_not_be_loaded_leaves_the_one_before_loadable() -> None:
    """Its rows were dropped to make room: they are read again."""
    table, fails = table_of(small(), LIGHTNING), [False]

    def fail(_index: torch.Tensor) -> None:
        if fails[0]:
            raise torch.OutOfMemoryError

    parts = tuple(replace(part, ahead=fail) for part in table.parts)
    modulation = RowModulation(small(), RowTable(table.keys, parts), torch.device("cpu"))
    modulation.load(LIGHTNING)
    fails[0] = True
    with pytest.raises(torch.OutOfMemoryError):
        modulation.load(LIGHTNING[:3])
    with pytest.raises(Internal):
        modulation.select(0)
    fails[0] = False
    modulation.load(LIGHTNING)
    modulation.select(7)


def test_the_rows_of_a_loop_are_on_the_device() -> None:
    """The meta device stands for one."""
    meta = torch.device("meta")
    model = small(zero_cond_t=True).to(meta)
    modulation = RowModulation(model, table_of(small(zero_cond_t=True), LIGHTNING), meta)
    modulation.load(LIGHTNING)
    modulation.select(0)
    assert modulation._loaded is not None
    assert modulation._loaded.device == meta
    for block in model.transformer_blocks:
        for mod, rows in ((block.img_mod, 2), (block.txt_mod, 1)):
            assert mod(torch.zeros(rows, 1, device=meta)).device == meta
            assert mod(torch.zeros(rows, 1, device=meta)).dtype == torch.bfloat16


def test_selecting_before_loading_is_an_error() -> None:
    with pytest.raises(Internal):
        RowModulation(small(), table_of(small(), LIGHTNING), torch.device("cpu")).select(0)


def test_no_modulation_weight_is_left_in_the_transformer() -> None:
    model = small()
    before = sum(p.numel() for p in model.parameters())
    mod = sum(p.numel() for n, p in model.named_parameters() if "_mod." in n)
    RowModulation(model, table_of(small(), LIGHTNING), torch.device("cpu"))
    assert sum(p.numel() for p in model.parameters()) == before - mod
    assert not [n for n, _ in model.named_parameters() if "_mod" in n]


def test_rows_of_another_model_are_refused() -> None:
    table = table_of(small(), LIGHTNING)
    for other in ({"num_layers": 3}, {"zero_cond_t": True}, {"num_attention_heads": 2}):
        with pytest.raises(Internal):
            RowModulation(small(**other), table, torch.device("cpu"))
    with pytest.raises(Internal):
        RowModulation(small(), RowTable(table.keys, table.parts[:1]), torch.device("cpu"))


def test_weights_serve_every_timestep() -> None:
    model, modulation = small(), WeightModulation()
    timesteps = torch.tensor([13.7, 952.0])  # neither has a row
    alone = [forward(model, timestep) for timestep in timesteps]
    modulation.load(timesteps)
    for step, expected in enumerate(alone):
        modulation.select(step)
        assert torch.equal(forward(model, timesteps[step]), expected)
    assert not torch.equal(*alone)


def test_the_transformer_sees_lightnings_eight_steps_in_bf16() -> None:
    assert (round_timesteps(LIGHTNING) * 1000).float().tolist() == pytest.approx(
        [1000, 956, 900, 832, 752, 644, 500, 300], rel=1 / 256
    )
    expected = torch.tensor([1000.0, 956, 900, 832, 752, 644, 500, 300]).bfloat16() / 1000
    assert torch.equal(round_timesteps(LIGHTNING), expected)


def test_rows_are_gathered_for_each_step_in_its_own_order_and_format() -> None:
    table = table_of(small(), LIGHTNING)
    index = table.find(LIGHTNING[[3, 0, 3]])
    calls: list[torch.Tensor] = []
    parts = tuple(replace(part, ahead=calls.append) for part in table.parts)
    rows = RowTable(table.keys, parts).gather(index, 2, torch.device("cpu"))
    assert rows.dtype == torch.bfloat16
    assert rows.shape == (3, 2, 2, table.width)
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])
    assert torch.equal(rows[1, 0], table.parts[0].rows[-1])
    assert torch.equal(rows[1, 1], table.parts[1].rows[-1])
    assert [one.tolist() for one in calls] == [index.tolist()] * 2


LAYERS = [*MODULATION, "transformer_blocks.0.attn.to_q", "norm_out.linear", "img_in", "txt_in"]
SCALES = {"first": 0.7, "second": -0.3}


def lora_for(model: Any, seed: int, modules: list[str] = LAYERS) -> ScaledLora:
    """Return a LoRA in bf16 for modules of a model with all its weights."""
    state = published_lora(model, seed, modules=modules)
    small_state = {k: t if k.endswith("alpha") else 0.2 * t.bfloat16() for k, t in state.items()}
    return make_scaled(small_state)


class Rows:
    """A model with rows, and adapters of jobs next to it: `first` and `second`."""

    def __init__(self, **config: Any) -> None:
        self.weights, self.model = small(**config), small(**config)
        self.modulation = RowModulation(
            self.model, table_of(self.weights, LIGHTNING), torch.device("cpu")
        )
        own = Adapters(self.model, self.modulation.fixed)
        self.guests = GuestAdapters(self.model, own, self.modulation.outside)
        self.loras = {"first": lora_for(small(**config), 1), "second": lora_for(small(**config), 2)}
        for name, lora in self.loras.items():
            self.guests.attach(name, lora)

    def predict(self, step: int) -> torch.Tensor:
        """Return what the model predicts at a step of Lightning's schedule."""
        self.modulation.load(LIGHTNING)
        self.modulation.select(step)
        return forward(self.model, LIGHTNING[step])

    def predict_stock(self, scales: dict[str, float], step: int) -> torch.Tensor:
        """Return what it would predict with its weights, through peft."""
        for name in scales:
            if name not in getattr(self.weights, "peft_config", {}):
                tensors = dict(self.loras[name].tensors)
                self.weights.load_lora_adapter(tensors, prefix=None, adapter_name=name)
        self.weights.set_adapters(list(scales), list(scales.values()))
        return forward(self.weights, LIGHTNING[step])


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.parametrize(
    "config",
    [{}, {"zero_cond_t": True}, {"use_layer3d_rope": True}],
    ids=["base", "zero_cond_t", "layered"],
)
def test_loras_of_jobs_change_rows_as_they_would_change_weights(config: dict[str, Any]) -> None:
    """To the last bit, one and several, references' rows of t = 0 too; then as if never."""
    rows = Rows(**config)
    before = [rows.predict(step) for step in (0, 3, 7)]
    for scales in ({"first": 1.0}, SCALES, {"second": -0.3, "first": 0.7}):
        rows.guests.use(scales)
        for step in (0, 3, 7):
            expected = rows.predict_stock(scales, step)
            assert torch.equal(rows.predict(step), expected)
        assert not torch.equal(expected, before[-1])
    rows.guests.use({})
    assert all(torch.equal(rows.predict(s), b) for s, b in zip((0, 3, 7), before, strict=True))


def test_rows_of_loras_are_computed_once_for_their_timesteps_and_scales() -> None:
    rows = Rows(zero_cond_t=True)
    computed: list[torch.Tensor] = []
    rows.model.time_text_embed.register_forward_hook(lambda *given: computed.append(given[0]))

    def load(scales: dict[str, float], timesteps: torch.Tensor) -> int:
        """Return for how many timesteps something is computed."""
        before = len(computed)
        rows.guests.use(scales)
        rows.modulation.load(timesteps)
        return len(computed) - before

    one, both, few = {"first": 1.0}, {"first": 1.0, "second": 1.0}, LIGHTNING[:2]
    found = [
        *(load(one, few), load({}, few), load(one, few), load(one, LIGHTNING[2:4])),
        *(load(both, few), load({"first": 0.9}, few), load(one, few)),
    ]
    assert found == [2, 0, 0, 2, 2, 2, 0]


@pytest.mark.parametrize("zero_cond_t", [False, True])
def test_rows_of_a_lora_for_both_lightnings_are_kept_and_no_more(zero_cond_t: bool) -> None:
    rows = Rows(zero_cond_t=zero_cond_t)
    computed: list[int] = []
    rows.model.time_text_embed.register_forward_hook(lambda *_: computed.append(1))
    rows.guests.use({"first": 1.0})
    found = []
    for timesteps in (LIGHTNING, LIGHTNING[::2], LIGHTNING, LIGHTNING[::2], LIGHTNING[:1]):
        computed.clear()
        rows.modulation.load(timesteps)
        found.append(len(computed))
    computed.clear()
    rows.modulation.load(LIGHTNING)
    assert (found, len(computed)) == ([8, 4, 0, 0, 1], 8)


def test_a_lora_of_the_time_embedding_is_refused_beside_rows_and_added_beside_weights() -> None:
    """Rows were computed from it, and the weights that others would need are gone."""
    lora = lora_for(small(), 1, [*TIME, *MODULATION])
    rows = Rows()
    with pytest.raises(LoraNotApplied, match=r"time_text_embed\S+ changes the modulation"):
        rows.guests.attach("time", lora)
    weights = small()
    guests = GuestAdapters(weights, Adapters(weights), WeightModulation().outside)
    assert guests.attach("time", lora) == len(TIME) + len(MODULATION)


def test_a_lora_of_few_layers_leaves_the_rows_of_others_as_they_are() -> None:
    rows = Rows(zero_cond_t=True)
    rows.modulation.load(LIGHTNING)
    rows.modulation.select(2)
    blocks, temb = rows.model.transformer_blocks, torch.zeros(2, 1)
    before = [block.img_mod(temb).clone() for block in blocks]
    texts = [block.txt_mod(temb[:1]).clone() for block in blocks]
    rows.guests.attach("few", lora_for(small(zero_cond_t=True), 3, MODULATION[:1]))
    rows.guests.use({"few": 1.0})
    rows.modulation.load(LIGHTNING)
    rows.modulation.select(2)
    changed = blocks[0].img_mod(temb)
    assert [bool((changed[row] != before[0][row]).any()) for row in (0, 1)] == [True, True]
    assert torch.equal(blocks[1].img_mod(temb), before[1])
    assert all(torch.equal(b.txt_mod(temb[:1]), t) for b, t in zip(blocks, texts, strict=True))
