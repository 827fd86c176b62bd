"""What pictures take beside the weights grows with what is requested, and settings count."""

import json
from dataclasses import replace
from typing import Any

import pytest

from worker import settings
from worker.engine.quantise import PRECISIONS, Precision
from worker.families.catalogue import CATALOGUE
from worker.families.qwen_image import frame_vae
from worker.families.qwen_image.models import TABLE
from worker.families.qwen_image.planning import (
    PART_SIZES,
    estimate_needs,
    plan_passing,
    plan_working,
)
from worker.families.qwen_image.working import (
    ENCODED_TOKEN,
    KEPT_TOKEN,
    PASSING,
    SHOWN,
    SHOWN_TOKEN_PIXELS,
    SYSTEM_TOKENS,
    TEXT_TOKEN,
    TEXT_UNPACKED_TOKEN,
    TILE_PIXELS,
    TILED_FRAME,
    TOKEN_PIXELS,
    Load,
    count_frame_bytes,
    estimate_phases,
    estimate_working,
)
from worker.tasks.picture import offer_of
from worker.weights.meaning import find_checkpoints
from worlds.embedded import served

SPECS = {row.name: row for row in CATALOGUE.rows}
EDIT, IMAGE = SPECS["qwen-image-edit-2511"], SPECS["qwen-image"]
SIDE = 1024 * 1024
LOAD = Load(SIDE, references=1, adapters=True, precision="4bit", steps=8)


@pytest.mark.parametrize("name", [row.name for row in TABLE])
def test_a_lora_takes_so_much_of_the_device_for_each_rank(name: str) -> None:
    """One row of A and one column of B for each of the 14 Linears of a block, in bf16."""
    config = {"num_layers": 60, "num_attention_heads": 24, "attention_head_dim": 128}
    if SPECS[name].embedded:
        folder = find_checkpoints() / str(SPECS[name].embedded) / "transformer"
        config = json.loads((folder / "config.json").read_text())
    width = config["num_attention_heads"] * config["attention_head_dim"]
    attention = 8 * (width + width)
    feed_forward = 2 * (width + 4 * width) + 2 * (4 * width + width)
    modulation = 2 * (width + 6 * width)
    values = config["num_layers"] * (attention + feed_forward + modulation)
    assert SPECS[name].defaults.rank_bytes == 2 * values


def test_what_a_lora_takes_is_offered_as_the_row_has_it() -> None:
    for model in served(settings.read({"MODEL": "tiny"})):
        assert offer_of(model).rank_bytes == SPECS[model.id].defaults.rank_bytes > 0


def plan(spec: Any = EDIT, pixels: int | None = None, **environ: str) -> int:
    return plan_working(spec, settings.read(environ), "4bit", pixels)


@pytest.mark.parametrize(
    ("change", "phases"),
    [
        ({"pixels": SIDE + 4096}, {"denoise", "decode", "reference"}),
        ({"references": 2}, {"text", "denoise", "decode", "reference"}),
        ({"batch": 2}, {"denoise", "decode", "reference"}),
        ({"steps": 9}, {"denoise", "decode"}),
        ({"shown_pixels": SIDE}, {"text", "denoise"}),
        ({"begins": True}, {"denoise", "reference"}),
    ],
)
def test_more_takes_more_in_the_phases_that_it_concerns(
    change: dict[str, Any], phases: set[str]
) -> None:
    before, after = estimate_phases(LOAD), estimate_phases(replace(LOAD, **change))
    assert {phase for phase in before if after[phase] > before[phase]} == phases
    assert all(after[phase] >= before[phase] for phase in before)


def test_a_source_takes_its_latents_and_its_mask_for_each_token_while_steps_run() -> None:
    """16 channels of 2 x 2 latents, in bf16, and as many of a mask."""
    for batch in (1, 3):
        plain = replace(LOAD, batch=batch)
        before, after = estimate_phases(plain), estimate_phases(replace(plain, begins=True))
        tokens = batch * SIDE // TOKEN_PIXELS
        assert after["denoise"] - before["denoise"] == tokens * 16 * 2 * 2 * (2 + 1)


def test_a_picture_from_text_has_no_phase_of_references() -> None:
    """But one that begins from a picture has."""
    assert set(estimate_phases(LOAD)) - set(estimate_phases(Load(SIDE, steps=8))) == {"reference"}
    assert set(estimate_phases(Load(SIDE, steps=8, begins=True))) == set(estimate_phases(LOAD))


def test_tiles_take_less_and_a_lora_more() -> None:
    """Tiles concern the VAE alone, a LoRA beside the weights the loop alone."""
    whole, tiled = estimate_phases(LOAD), estimate_phases(replace(LOAD, tiled=True))
    assert {phase for phase in whole if tiled[phase] < whole[phase]} == {"decode", "reference"}
    plain = estimate_phases(replace(LOAD, adapters=False))
    assert {phase for phase in whole if plain[phase] < whole[phase]} == {"denoise"}


def test_a_frame_takes_its_norm_in_bf16_and_in_fp32_for_each_channel() -> None:
    """In and out, and between; and a little more."""
    least = SIDE * 96 * (2 + 2 + 4)
    assert least < count_frame_bytes(SIDE) < 1.05 * least
    assert count_frame_bytes(SIDE) == count_frame_bytes(SIDE, base_dim=96)
    assert TILE_PIXELS == frame_vae.TILE**2


def test_tiles_take_the_frame_of_one_and_so_much_of_each_pixel() -> None:
    saved = count_frame_bytes(SIDE) - count_frame_bytes(TILE_PIXELS) - TILED_FRAME * SIDE
    whole, tiled = estimate_phases(LOAD), estimate_phases(replace(LOAD, tiled=True))
    assert {phase: whole[phase] - tiled[phase] for phase in whole} == {
        "text": 0,
        "denoise": 0,
        "decode": saved,
        "reference": saved,
    }


def test_every_picture_of_a_batch_has_its_tokens_its_pixels_and_its_prompt() -> None:
    """Prompts are encoded one after another."""
    one, three = estimate_phases(LOAD), estimate_phases(replace(LOAD, batch=3))
    tokens = 2 * SIDE // TOKEN_PIXELS
    rgb_in_bf16 = 3 * 2
    assert three["decode"] - one["decode"] == 2 * (KEPT_TOKEN * tokens + rgb_in_bf16 * SIDE)
    longer: Any = {"prompt_tokens": LOAD.prompt_tokens + 100}
    each_of: dict[Precision, int] = {"4bit": TEXT_UNPACKED_TOKEN, "bf16": ENCODED_TOKEN}
    for precision, each in each_of.items():
        load = replace(LOAD, batch=3, precision=precision)
        before, after = estimate_phases(load), estimate_phases(replace(load, **longer))
        grown = {phase: after[phase] - before[phase] for phase in before}
        denoise = 3 * 100 * TEXT_TOKEN
        assert grown == {"text": 100 * each, "denoise": denoise, "decode": 0, "reference": 0}


def test_a_prompt_has_its_text_its_system_s_and_what_is_shown_of_references() -> None:
    """In bf16 nothing is unpacked meanwhile; the pixels that are shown pass the vision tower."""
    for references, pixels in ((0, 0), (1, 384 * 384), (3, 784 * 100)):
        load = Load(SIDE, references, precision="bf16", steps=8, shown_pixels=pixels)
        shown = references * pixels
        tokens = 1024 + SYSTEM_TOKENS + shown // SHOWN_TOKEN_PIXELS
        found = estimate_phases(load)["text"]
        assert found == ENCODED_TOKEN * tokens + SHOWN * shown
        assert isinstance(found, int)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_quantised_weight_is_unpacked_while_it_is_multiplied(precision: Precision) -> None:
    """Small pictures show it; the activations of a large 8-bit one are wider than a LoRA's."""
    small = Load(256 * 256, precision=precision, steps=8)
    exact = estimate_phases(replace(small, precision="bf16"))
    found = estimate_phases(small)
    assert (found["text"] > exact["text"]) is (precision != "bf16")
    assert (found["denoise"] > exact["denoise"]) is (precision != "bf16")
    large = estimate_phases(replace(LOAD, precision=precision))["denoise"]
    assert (large > estimate_phases(replace(LOAD, precision="bf16"))["denoise"]) is (
        precision == "8bit"
    )


def test_the_working_memory_is_that_of_the_largest_phase() -> None:
    for load in (LOAD, Load(SIDE, steps=8), Load(256 * 256, precision="4bit", steps=8)):
        assert estimate_working(load) == max(estimate_phases(load).values())


def test_a_plan_is_for_max_pixels_where_it_is_set_and_for_the_model_s_own_area_else() -> None:
    assert plan() == plan(pixels=SIDE)
    assert plan(MAX_PIXELS="2000000") == plan(pixels=2_000_000) > plan()
    assert plan(MAX_PIXELS="2000000", pixels=SIDE) == plan()


def test_a_plan_counts_the_references_that_callers_may_give() -> None:
    plans = [plan(MAX_INPUT_IMAGES=str(most)) for most in (1, 2, 3)]
    assert plans == sorted(set(plans))
    assert plan() == plans[2]
    assert plan(SPECS["qwen-image-edit"]) == plan(SPECS["qwen-image-edit"], MAX_INPUT_IMAGES="1")
    assert plan(IMAGE) < plans[0]


def test_a_plan_counts_a_lora_where_one_is_beside_the_weights() -> None:
    """At a size at which a LoRA's products take more than the rows of the longest schedule."""
    large = 4 * SIDE
    off = plan(pixels=large, USE_LIGHTNING_LORA="false")
    fused = plan(pixels=large, LIGHTNING_FUSED="true", LIGHTNING_STEPS="8")
    assert off == fused < plan(pixels=large, LIGHTNING_STEPS="4") == plan(pixels=large)


def test_a_plan_counts_a_batch_where_pictures_share_forwards() -> None:
    """Of at most BATCH_MAX_PIXELS together, by default those of one picture, with more prompts."""
    assert plan() < plan(BATCH_SIZE="4") < 1.1 * plan()
    raised = plan(BATCH_SIZE="4", BATCH_MAX_PIXELS=str(4 * SIDE))
    assert raised > plan(BATCH_SIZE="2", BATCH_MAX_PIXELS=str(2 * SIDE)) > plan()
    assert plan(BATCH_MAX_PIXELS=str(4 * SIDE)) == plan()
    whole = plan(BATCH_SIZE="3", BATCH_MAX_PIXELS=str(3 * (SIDE // 2)))
    assert whole == plan(BATCH_SIZE="3", BATCH_MAX_PIXELS=str(3 * (SIDE // 2) + 2))
    assert isinstance(whole, int)


def test_loras_of_jobs_take_18_megabytes_per_rank_in_every_phase() -> None:
    """In each of 60 blocks 14 modules, in bf16; and a third row per block and step."""
    ranks = 3 * 64
    before, after = estimate_phases(LOAD), estimate_phases(replace(LOAD, ranks=ranks))
    per_rank = 2 * sum(
        2 * 60 * (ins + outs) * 3072 // 2
        for ins, outs in [*[(1, 1)] * 8, *[(1, 4), (4, 1)] * 2, *[(1, 6)] * 2]
    )
    assert per_rank == 18_432_000
    grown = {phase: after[phase] - before[phase] for phase in before}
    rows = LOAD.steps * 60 * 6 * 3072 * 2
    assert grown == {
        "text": ranks * per_rank,
        "denoise": ranks * per_rank + rows,
        "decode": ranks * per_rank + rows,
        "reference": ranks * per_rank,
    }
    assert estimate_phases(replace(LOAD, adapters=False, ranks=64))["denoise"] > (
        estimate_phases(replace(LOAD, adapters=False))["denoise"] + 64 * per_rank + rows
    )


def test_a_plan_counts_loras_where_the_operator_says_which_jobs_may_bring() -> None:
    named: Any = {"LORAS": "style=org/style"}
    assert plan() == plan(MAX_LORAS="0", **named)
    plans = [plan(MAX_LORAS=str(most), **named) for most in (0, 1, 3)]
    assert plans[1] - plans[0] >= 64 * 18_432_000
    assert plans[2] - plans[1] == 2 * 64 * 18_432_000
    assert plans[2] == plan(**named) == plan(LORA_SOURCES="hub") == plan(LORA_DIR="/loras")
    assert plan(LORA_SOURCES="names", RUNPOD_ENDPOINT_ID="x") == plan(**named)


def test_a_token_has_the_pixels_that_the_configurations_say() -> None:
    """The pictures' in the transformer, and the references' in the text encoder."""
    folder = find_checkpoints() / "tiny" / "edit"
    part = {
        name: json.loads((folder / name / "config.json").read_text())
        for name in ("vae", "transformer", "text_encoder")
    }
    side = 2 ** len(part["vae"]["temperal_downsample"]) * part["transformer"]["patch_size"]
    vision = part["text_encoder"]["vision_config"]
    assert side * side == TOKEN_PIXELS
    assert (vision["patch_size"] * vision["spatial_merge_size"]) ** 2 == SHOWN_TOKEN_PIXELS


@pytest.mark.parametrize("passing", [False, True])
@pytest.mark.parametrize("name", ["qwen-image", "qwen-image-edit", "qwen-image-edit-2511"])
def test_a_plan_is_for_the_most_of_everything(name: str, *, passing: bool) -> None:
    """100 steps beside the 12 that are kept, references, a source, and a prompt of 1024 tokens."""
    load = Load(
        SIDE,
        references={"qwen-image": 0, "qwen-image-edit": 1}.get(name, 3),
        precision="4bit",
        prompt_tokens=1024,
        shown_pixels=SIDE if name == "qwen-image-edit" else 384 * 384,
        begins=True,
        passing=passing,
        steps=112,
    )
    run = plan_passing if passing else plan_working
    off = settings.read({"USE_LIGHTNING_LORA": "false"})
    assert run(SPECS[name], off, "4bit") == estimate_working(replace(load, steps=100 + 12))
    beside = replace(load, steps=12, adapters=True)
    longest = max(estimate_working(replace(load, steps=112)), estimate_working(beside))
    assert run(SPECS[name], settings.read({}), "4bit") == longest
    brought = settings.read({"LORAS": "a=org/a", "USE_LIGHTNING_LORA": "false"})
    kept = replace(load, steps=112 + 12, ranks=64 * brought.max_loras)
    assert run(SPECS[name], brought, "4bit") == estimate_working(kept)


def test_a_text_encoder_that_passes_through_takes_more_beside_the_weights_alone() -> None:
    before, after = estimate_phases(LOAD), estimate_phases(replace(LOAD, passing=True))
    grown = {phase: after[phase] - before[phase] for phase in before}
    assert grown == {**dict.fromkeys(before, 0), "text": PASSING[LOAD.precision]}


@pytest.mark.parametrize(
    ("environ", "loras"),
    [
        ({"LIGHTNING_STEPS": "8,4"}, 2),
        ({"LIGHTNING_STEPS": "8"}, 1),
        ({"LIGHTNING_STEPS": "8", "LIGHTNING_FUSED": "true"}, 0),
    ],
    ids=["both", "one", "fused"],
)
def test_a_gpu_needs_the_weights_and_the_largest_job_and_at_least_all_but_the_text_encoder(
    environ: dict[str, str], loras: int
) -> None:
    given = settings.read(environ)
    needs = estimate_needs(EDIT, given)
    assert list(needs) == list(PRECISIONS)
    for precision, need in needs.items():
        parts = PART_SIZES[precision]
        resident = parts.transformer + parts.vae + loras * parts.lora
        working, passing = (plan(EDIT, given, precision) for plan in (plan_working, plan_passing))
        assert need.whole == resident + parts.text_encoder + working
        assert need.least == resident + max(working, passing)
    assert [needs[one].whole for one in needs] == sorted(need.whole for need in needs.values())
