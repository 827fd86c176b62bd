"""Modulation rows as they are prepared: what the blocks compute, for every timestep there is."""

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from worker.bundle import tensors
from worker.engine.schedule import make_schedule
from worker.errors import Internal
from worker.families.qwen_image import rows
from worker.families.qwen_image.lightning import make_lightning_schedule
from worker.families.qwen_image.modulation import RowModulation, RowTable, round_timesteps
from worlds import prepared

CPU = torch.device("cpu")
SCHEDULER = json.loads(
    (prepared.folder_of("tiny-image") / "scheduler/scheduler_config.json").read_text()
)
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "zero_cond_t": {"zero_cond_t": True},
    "layered": {"use_layer3d_rope": True},
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
    embedding = rows.TimeEmbedding(weights, model.config, rows.compute_keys(SCHEDULER), CPU)
    paths = []
    for block in range(model.config.num_layers):
        found = rows.Collector(embedding, model.config.num_layers, layers=2)
        for stream in ("img_mod", "txt_mod"):
            name = f"transformer_blocks.{block}.{stream}.1."
            found.add(block, stream, state[f"{name}weight"], state[f"{name}bias"])
        name, _ = tensors.write(folder, f"modulation-{block}", found.collect_tensors())
        paths.append(folder / name)
    return rows.map_table(paths)


def forward(model: Any, timestep: torch.Tensor, side: int) -> torch.Tensor:
    torch.manual_seed(7)
    with torch.inference_mode():
        out: torch.Tensor = model(
            hidden_states=torch.randn(1, side * side + 16, 16, dtype=torch.bfloat16),
            encoder_hidden_states=torch.randn(1, 5, 64, dtype=torch.bfloat16),
            timestep=round_timesteps(timestep).expand(1),
            img_shapes=[[(1, side, side), (1, 4, 4)]],
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
        make_lightning_schedule(steps, side * side)
        if steps in (4, 8)
        else make_schedule(SCHEDULER, steps, side * side)
    )
    modulation.load(loop.timesteps)
    for step in range(0, steps, max(1, steps // 8)):
        modulation.select(step)
        timestep = loop.timesteps[step]
        assert torch.equal(forward(mine, timestep, side), forward(weights, timestep, side))


@pytest.mark.parametrize("variant", ["base", "zero_cond_t"])
def test_a_file_holds_its_numbers_in_the_formats_that_are_mapped(
    variant: str, tmp_path: Path
) -> None:
    """Also where there is no row of t = 0."""
    for part in table(small(VARIANTS[variant]), tmp_path).parts:
        assert {part.rows.dtype, part.zero.dtype} == {torch.bfloat16}
        assert {part.slots.dtype, part.zero_blocks.dtype} == {torch.int64}
        assert part.zero.shape == (int(variant != "base"), part.rows.shape[2])


def test_every_step_of_every_schedule_has_its_row() -> None:
    found = RowTable(rows.compute_keys(SCHEDULER), ())
    for tokens in (256, 1024, 4096, 6889, 8192):
        for steps in range(2, 101):
            found.find(make_schedule(SCHEDULER, steps, tokens).timesteps)
        for steps in (4, 8):
            found.find(make_lightning_schedule(steps, tokens).timesteps)
    with pytest.raises(Internal):
        found.find(torch.tensor([19.0]))


def test_keys_are_all_that_bf16_can_say_between_the_ends() -> None:
    keys = rows.compute_keys(SCHEDULER)
    assert len(keys) == 716
    every = torch.linspace(20, 1000, 100_000)
    assert torch.equal(torch.unique(round_timesteps(every).float()), keys.float())
    assert len(rows.compute_keys({})) > len(keys)  # without shift_terminal a schedule ends lower


def test_rows_are_told_apart_by_how_many_there_are_and_by_their_ends() -> None:
    published: Any = SimpleNamespace(configs={"scheduler": SCHEDULER})
    keys = rows.compute_keys(SCHEDULER).float()
    ends = [float(keys.min()), float(keys.max())]
    assert rows.describe_rows(published) == {"rows": [len(keys), *ends]}


def test_files_of_other_timesteps_are_not_mixed(tmp_path: Path) -> None:
    paths = []
    for number, keys in enumerate((torch.tensor([0.5]), torch.tensor([0.75]))):
        content = {
            "keys": keys.bfloat16(),
            "rows": torch.zeros(1, 1, 6).bfloat16(),
            "slots": torch.tensor([number]),
            "zero": torch.zeros(0, 6).bfloat16(),
            "zero_blocks": torch.tensor([], dtype=torch.int64),
        }
        paths.append(tmp_path / tensors.write(tmp_path, f"modulation-{number}", content)[0])
    with pytest.raises(Internal, match="differ in their timesteps"):
        rows.map_table(paths)
    with pytest.raises(Internal, match="no modulation rows"):
        rows.map_table([])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Write rows of 7 timesteps of which each has its own number, and others after them."""
    content = {
        "keys": torch.linspace(0.1, 0.7, 7).bfloat16(),
        "rows": torch.arange(7).bfloat16().reshape(7, 1, 1).repeat(1, 3, 12),
        "slots": torch.tensor([4, 0, 2]),
        "zero": torch.full((2, 12), 50).bfloat16(),
        "zero_blocks": torch.tensor([1, 0]),
    }
    return tmp_path / tensors.write(tmp_path, "modulation", content)[0]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_is_read_ahead_are_the_bytes_of_the_rows(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, int]] = []

    def advise(_number: int, start: int, size: int, advice: int) -> None:
        asked.append((start, size, advice))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    (part,) = rows.map_table([file]).parts
    part.ahead(torch.tensor([5, 0, 6]))
    data = file.read_bytes()
    expected = [bytes(_raw(part.rows[row])) for row in (5, 0, 6)]
    assert [data[start : start + size] for start, size, _ in asked] == expected
    assert {advice for *_, advice in asked} == {os.POSIX_FADV_WILLNEED}


def _raw(tensor: torch.Tensor) -> list[int]:
    numbers: list[int] = tensor.contiguous().reshape(-1).view(torch.uint8).tolist()
    return numbers


def refuse(*_: object) -> None:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


@pytest.mark.parametrize("fault", ["gone", "no descriptors", "no advice", "works"])
def test_a_read_ahead_that_fails_does_not_fail_the_job(
    file: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """It is a wish to the kernel: the rows are mapped, and read without it."""
    table = rows.map_table([file])
    if fault == "gone":
        file.unlink()
    elif fault == "no descriptors":
        monkeypatch.setattr(os, "open", refuse)
    elif fault == "no advice":
        monkeypatch.setattr(os, "posix_fadvise", refuse)
    before = descriptors()
    found = table.gather(torch.tensor([6, 2]), 3, CPU)
    assert descriptors() == before
    by_slot = found.view(2, 6, 12)[:, torch.tensor([4, 0, 2])]
    assert by_slot[0].reshape(-1).tolist() == [6.0] * 36
    assert by_slot[1].reshape(-1).tolist() == [2.0] * 36


def test_a_table_holds_what_its_files_hold(file: Path) -> None:
    table = rows.map_table([file, file])
    assert len(table.parts) == 2
    assert table.keys.tolist() == torch.linspace(0.1, 0.7, 7).bfloat16().tolist()
    for part in table.parts:
        assert part.slots.tolist() == [4, 0, 2]
        assert part.zero_blocks.tolist() == [1, 0]
        assert part.zero.tolist() == [[50.0] * 12] * 2


def test_a_shard_without_modulation_has_no_rows() -> None:
    model = small({})
    weights = {n: t for n, t in model.state_dict().items() if n.startswith(rows.PREFIX)}
    embedding = rows.TimeEmbedding(weights, model.config, rows.compute_keys(SCHEDULER)[:5], CPU)
    assert rows.Collector(embedding, model.config.num_layers, layers=0).collect_tensors() == {}


def test_rows_of_a_device_that_rounds_a_pair_otherwise_are_refused() -> None:
    """The row of t = 0 is kept once: it must not depend on the timestep that it came with."""
    model = small({"zero_cond_t": True})
    state = model.state_dict()
    weights = {name: t for name, t in state.items() if name.startswith(rows.PREFIX)}
    embedding = rows.TimeEmbedding(weights, model.config, rows.compute_keys(SCHEDULER)[:5], CPU)
    layer = "transformer_blocks.0.img_mod.1."
    weight, bias = state[f"{layer}weight"], state[f"{layer}bias"]
    embedding.compute_rows("img_mod", weight, bias)
    embedding.activated[3, 1] += 1
    with pytest.raises(Internal, match="differs between timesteps"):
        embedding.compute_rows("img_mod", weight, bias)
    assert embedding.compute_rows("txt_mod", weight, bias)[1] is None, "text sees t alone"
