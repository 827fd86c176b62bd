"""Modulation rows as they are prepared: what the blocks compute, for every timestep there is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from worlds import prepared

from worker.bundle import rows, tensors
from worker.engine import schedule
from worker.engine.modulation import RowModulation, RowTable, seen
from worker.errors import Internal

CPU = torch.device("cpu")
SCHEDULER = json.loads(
    (prepared.folder_of("tiny-image") / "scheduler/scheduler_config.json").read_text()
)
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "zero_cond_t": {"zero_cond_t": True},
    "layered": {"use_additional_t_cond": True, "use_layer3d_rope": True},
}


def small(config: dict[str, Any]) -> Any:
    """Return a small bf16 transformer of the real class with random weights."""
    torch.manual_seed(0)
    model = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=64,
        axes_dims_rope=(8, 12, 12),
        **config,
    )
    return model.to(torch.bfloat16).eval()


def table(model: Any, folder: Path) -> RowTable:
    """Compute a model's rows, a file a block as if each block were a shard, and map them."""
    state = model.state_dict()
    weights = {name: t for name, t in state.items() if name.startswith(rows.PREFIX)}
    embedding = rows.TimeEmbedding(weights, model.config, rows.keys(SCHEDULER), CPU)
    paths = []
    for block in range(model.config.num_layers):
        found = rows.Collector(embedding, model.config.num_layers, layers=2)
        for stream in ("img_mod", "txt_mod"):
            name = f"transformer_blocks.{block}.{stream}.1."
            found.add(block, stream, state[f"{name}weight"], state[f"{name}bias"])
        name, _ = tensors.write(folder, f"modulation-{block}", found.tensors())
        paths.append(folder / name)
    return rows.table(paths)


def forward(model: Any, timestep: torch.Tensor, side: int) -> torch.Tensor:
    torch.manual_seed(7)
    layered = model.config.use_additional_t_cond
    with torch.inference_mode():
        out: torch.Tensor = model(
            hidden_states=torch.randn(1, side * side + 16, 16, dtype=torch.bfloat16),
            encoder_hidden_states=torch.randn(1, 5, 64, dtype=torch.bfloat16),
            timestep=seen(timestep).expand(1),
            img_shapes=[[(1, side, side), (1, 4, 4)]],
            additional_t_cond=torch.zeros(1, dtype=torch.long) if layered else None,
            return_dict=False,
        )[0]
    return out


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("side", [4, 6])
@pytest.mark.parametrize("steps", [4, 8, 40])
def test_forwards_with_prepared_rows_equal_those_with_weights_to_the_last_bit(
    variant: str, side: int, steps: int, tmp_path: Path
) -> None:
    weights, mine = small(VARIANTS[variant]), small(VARIANTS[variant])
    modulation = RowModulation(mine, table(weights, tmp_path), CPU)
    loop = (
        schedule.lightning(steps, side * side)
        if steps in (4, 8)
        else schedule.schedule(SCHEDULER, steps, side * side)
    )
    modulation.load(loop.timesteps)
    for step in range(0, steps, max(1, steps // 8)):
        modulation.select(step)
        timestep = loop.timesteps[step]
        assert torch.equal(forward(mine, timestep, side), forward(weights, timestep, side))


def test_every_step_of_every_schedule_has_its_row() -> None:
    found = RowTable(rows.keys(SCHEDULER), ())
    for tokens in (256, 1024, 4096, 6889, 8192):
        for steps in range(2, 101):
            found.find(schedule.schedule(SCHEDULER, steps, tokens).timesteps)
        for steps in (4, 8):
            found.find(schedule.lightning(steps, tokens).timesteps)
    with pytest.raises(Internal):
        found.find(torch.tensor([19.0]))


def test_keys_are_all_that_bf16_can_say_between_the_ends() -> None:
    keys = rows.keys(SCHEDULER)
    assert len(keys) == 716
    every = torch.linspace(20, 1000, 100_000)
    assert torch.equal(torch.unique(seen(every).float()), keys.float())
    assert len(rows.keys({})) > len(keys)  # without shift_terminal a schedule ends lower


def test_files_of_other_timesteps_are_not_mixed(tmp_path: Path) -> None:
    paths = []
    for number, keys in enumerate((torch.tensor([0.5]), torch.tensor([0.75]))):
        held = {
            "keys": keys.bfloat16(),
            "rows": torch.zeros(1, 1, 6).bfloat16(),
            "slots": torch.tensor([number]),
            "zero": torch.zeros(0, 6).bfloat16(),
            "zero_blocks": torch.tensor([], dtype=torch.int64),
        }
        paths.append(tmp_path / tensors.write(tmp_path, f"modulation-{number}", held)[0])
    with pytest.raises(Internal, match="differ in their timesteps"):
        rows.table(paths)
    with pytest.raises(Internal, match="no modulation rows"):
        rows.table([])
