"""What weights and pictures take on the device is computed, and no less than what they do take."""

import inspect
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from transformers import Mistral3Config, Qwen3Config

from bench.real_shapes.klein import describe_parts
from tools.pretend import flux
from tools.pretend.flux import EDITIONS, RESULTS, FluxCase
from worker import settings
from worker.bundle.sizes import count_stored
from worker.bundle.tensors import TensorEntry
from worker.engine.quantise import PRECISIONS
from worker.families.catalogue import CATALOGUE
from worker.families.flux2 import models, planning, working
from worker.families.flux2.recipe import RECIPE
from worker.families.flux2.working import (
    DEV_EDITION,
    LARGE_EDITION,
    TOKENS,
    VAE_BYTES,
    FluxLoad,
    estimate_phases,
    estimate_working,
)
from worker.weights.meaning import find_checkpoints
from worker.weights.spec import ModelSpec

# The computed need is at most so much more than the peak.
SLACK = 1.15


def test_no_phase_took_more_than_is_computed_and_the_largest_nearly_as_much() -> None:
    """As `python -m tools.pretend.flux --write` saw it; and no case had a fault."""
    records: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    cases = {case.name: case for case in flux.list_cases()}
    assert [record["case"] for record in records] == list(cases)
    for record in records:
        computed = flux.estimate(cases[record["case"]])
        assert record["computed"] == computed
        assert flux.find_faults(record) == []
        peaks = record["peaks"]
        assert max(computed.values()) <= SLACK * max(peaks.values()), record["case"]


def test_the_weights_on_the_device_were_those_that_are_computed() -> None:
    """To one percent, of every block; a text encoder that passes through waits elsewhere."""
    records: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    for record, case in zip(records, flux.list_cases(), strict=True):
        transformer, text_encoder = case.sizes.count_weights(case.precision)
        expected = transformer + VAE_BYTES + (0 if case.is_offloaded else text_encoder)
        assert record["weights"] == pytest.approx(expected, rel=0.01), record["case"]


def test_it_is_so_in_this_version() -> None:
    """One case anew: weights of references need no mask, and the loop waits for nothing."""
    case = FluxCase(side=256, references=2, is_weighed=True, is_thin=True)
    (pretended,) = flux.run_cases([case])
    assert flux.find_faults(pretended) == []
    assert pretended["masked"] == pretended["waits_in_loop"] == pretended["mixed"] == []


def test_more_blocks_take_nothing_but_weights_and_hidden_states() -> None:
    """The peaks of a model with one block of each kind are those that were seen of all blocks."""
    case = FluxCase()
    records: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    (full,) = (record["peaks"] for record in records if record["case"] == case.name)
    thin = replace(case, is_thin=True)
    (record,) = flux.run_cases([thin])
    layers = case.sizes.run_layers - thin.sizes.run_layers
    states = layers * TOKENS * case.sizes.hidden * 2
    assert record["peaks"] | {"text": record["peaks"]["text"] + states} == full


@pytest.mark.parametrize("name", EDITIONS)
def test_weights_take_what_their_shapes_say(name: str) -> None:
    """To one percent, for all published sizes and precisions."""
    edition = EDITIONS[name]
    configs = describe_parts(edition, is_dev=name == "dev")
    for precision in PRECISIONS:
        expected = edition.count_weights(precision)
        for role, computed in zip(("transformer", "text_encoder"), expected, strict=True):
            part = RECIPE.find_part(role)
            modules = part.modules.bare(part.modules.stock(configs[role]))
            header = {
                key: TensorEntry(torch.bfloat16, tuple(tensor.shape), 0, 0)
                for key, tensor in modules.named_parameters()
            }
            stored = count_stored(part, header, precision)
            assert computed == pytest.approx(stored, rel=0.01), (role, precision)


@pytest.mark.parametrize(
    ("row", "precision", "whole", "least"),
    [
        ("flux-2-klein-4b", "4bit", 8e9, 5.8e9),
        ("flux-2-klein-4b", "bf16", 18e9, 11.5e9),
        ("flux-2-klein-9b", "4bit", 14e9, 10e9),
        ("flux-2-dev", "4bit", 35e9, 25e9),
    ],
)
def test_the_doctor_knows_what_fits(row: str, precision: Any, whole: float, least: float) -> None:
    """Klein 4B on 24 GB without loss, dev in 4bit on 48 GB."""
    assert models.FAMILY.needs is not None
    need = models.FAMILY.needs(CATALOGUE.find_row(row), settings.read({}))[precision]
    assert 0.9 * whole < need.whole < whole
    assert 0.9 * least < need.least < least


@pytest.mark.parametrize("name", [row.name for row in models.TABLE])
def test_a_lora_takes_so_much_of_the_device_for_each_rank(name: str) -> None:
    """One row of A and one column of B for each Linear of every block, in bf16."""
    row = CATALOGUE.find_row(name)
    edition = planning.find_edition(row)
    if row.embedded:
        place = find_checkpoints() / row.embedded / "transformer" / "config.json"
        config = json.loads(place.read_text())
    else:
        (named,) = (key for key, sizes in EDITIONS.items() if sizes == edition)
        config = describe_parts(edition, is_dev=named == "dev")["transformer"]
    transformer = RECIPE.find_part("transformer").modules.stock(config)
    quantised = RECIPE.find_part("transformer").quantised
    assert quantised is not None
    sides = [
        sum(tensor.shape)
        for key, tensor in transformer.named_parameters()
        if quantised.fullmatch(key)
    ]
    assert row.defaults.rank_bytes == 2 * sum(sides)


def test_the_embedded_model_s_widths_are_those_of_its_files() -> None:
    edition = planning.find_edition(CATALOGUE.find_row("tiny-flux"))
    place = find_checkpoints() / "tiny" / "flux"
    text = json.loads((place / "text_encoder" / "config.json").read_text())
    assert (edition.hidden, edition.layers) == (text["hidden_size"], text["num_hidden_layers"])
    assert edition.intermediate == text["intermediate_size"]
    assert edition.words == text["vocab_size"]


def test_the_libraries_classes_have_the_widths_of_dev_by_default() -> None:
    """And Qwen3's the words of a klein; a quarter of any text encoder's layers is whole."""
    text = Mistral3Config().text_config
    assert (DEV_EDITION.hidden, DEV_EDITION.intermediate) == (
        text.hidden_size,
        text.intermediate_size,
    )
    assert (DEV_EDITION.words, DEV_EDITION.layers) == (text.vocab_size, text.num_hidden_layers)
    queries, keys = text.num_attention_heads, text.num_key_value_heads
    assert (
        queries * text.head_dim,
        keys * text.head_dim,
    ) == (working.QUERY_CHANNELS, working.KEY_CHANNELS)
    shape = inspect.signature(Flux2Transformer2DModel.__init__).parameters
    assert (DEV_EDITION.heads, DEV_EDITION.double, DEV_EDITION.single, working.HEAD) == tuple(
        shape[name].default
        for name in ("num_attention_heads", "num_layers", "num_single_layers", "attention_head_dim")
    )
    for edition in EDITIONS.values():
        if edition != DEV_EDITION:
            assert edition.words == Qwen3Config().vocab_size
        assert (edition.layers % 4, type(edition.run_layers)) == (0, int)


@pytest.mark.parametrize("size", ["4b", "9b"])
def test_a_base_is_as_large_as_what_is_distilled_from_it(size: str) -> None:
    base, distilled = (CATALOGUE.find_row(f"flux-2-klein-{x}{size}") for x in ("base-", ""))
    assert planning.find_edition(base) == planning.find_edition(distilled)
    assert (planning.find_edition(base) == LARGE_EDITION) is (size == "9b")


def test_a_model_from_outside_is_as_large_as_the_largest_of_its_class() -> None:
    for pipeline, edition in (
        ("Flux2KleinPipeline", LARGE_EDITION),
        ("Flux2Pipeline", DEV_EDITION),
    ):
        assert planning.find_edition(ModelSpec("x", "x/y", pipeline)) == edition


def test_more_of_anything_takes_more() -> None:
    spec = CATALOGUE.find_row("flux-2-klein-4b")

    def plan(**environ: str) -> int:
        return planning.plan_working(spec, settings.read(environ), "bf16")

    assert plan(MAX_INPUT_IMAGES="1") < plan(MAX_INPUT_IMAGES="4")
    assert plan(MAX_PIXELS="262144") < plan()
    assert plan() < plan(BATCH_SIZE="4", BATCH_MAX_PIXELS="4194304")
    small = settings.read({"MAX_PIXELS": "65536"})
    passing = planning.plan_passing(spec, small, "bf16")
    assert plan(MAX_PIXELS="65536") < passing
    assert RECIPE.compute_working(spec, small, "bf16", offload=True) == passing


MILLION = 1024 * 1024


@pytest.mark.parametrize(
    ("name", "environ", "load"),
    [
        ("flux-2-klein-4b", {}, FluxLoad(MILLION, 4, begins=True)),
        (
            "flux-2-klein-9b",
            {"MAX_PIXELS": "65536", "MAX_INPUT_IMAGES": "2"},
            FluxLoad(65536, 2, edition=LARGE_EDITION, begins=True),
        ),
        ("flux-2-klein-base-4b", {}, FluxLoad(MILLION, 4, begins=True, guided=True)),
        (
            "flux-2-dev",
            {"LORAS": "pixel=org/repository", "MAX_LORAS": "2"},
            FluxLoad(MILLION, 4, edition=DEV_EDITION, ranks=2 * 64, begins=True),
        ),
        ("flux-2-klein-4b", {"MAX_LORAS": "2"}, FluxLoad(MILLION, 4, begins=True)),
        (
            "flux-2-klein-4b",
            {"BATCH_SIZE": "2", "BATCH_MAX_PIXELS": "2097152"},
            FluxLoad(MILLION, 4, 2, begins=True),
        ),
        (
            "flux-2-klein-4b",
            {"BATCH_SIZE": "4", "BATCH_MAX_PIXELS": "65536"},
            FluxLoad(MILLION, 4, begins=True),
        ),
    ],
)
def test_what_is_planned_is_the_largest_of_the_jobs_that_may_be_requested(
    name: str, environ: dict[str, str], load: FluxLoad
) -> None:
    """Each has all references and a beginning; LoRAs of rank 64 where it is said which."""
    spec, given = CATALOGUE.find_row(name), settings.read(environ)
    for precision in PRECISIONS:
        expected = estimate_working(replace(load, precision=precision))
        assert planning.plan_working(spec, given, precision) == expected
    smaller = estimate_working(replace(load, pixels=4096, batch=given.most_in_batch))
    assert planning.plan_working(spec, given, "bf16", 4096) == smaller


def test_bytes_are_whole_whatever_the_pixels_and_however_many_share_them() -> None:
    """An operator may limit jobs and batches to any number of pixels."""
    for tiled in (False, True):
        load = FluxLoad(4999, 3, 3, begins=True, guided=True, ranks=8, tiled=tiled)
        assert {type(size) for size in estimate_phases(load).values()} == {int}
    odd = settings.read({"MAX_PIXELS": "40001", "BATCH_SIZE": "3", "BATCH_MAX_PIXELS": "100000"})
    spec = CATALOGUE.find_row("flux-2-klein-4b")
    assert type(planning.plan_working(spec, odd, "bf16")) is int
