"""bench/gpu.py: the real shapes are the published ones, and its code runs on a CPU in a minute."""

import itertools
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.real_shapes import agenda, job, klein, measure, shapes, voice, weights
from bench.real_shapes.job import Case
from bench.real_shapes.klein_built import KleinBuilt
from bench.real_shapes.results import Results, table
from bench.real_shapes.voice import VoiceBuilt
from worker.families.flux2.recipe import RECIPE as FLUX_RECIPE

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_transformer_has_the_published_number_of_parameters() -> None:
    transformer = shapes.transformer(shapes.full(), edit=True)
    assert transformer.zero_cond_t
    assert count(transformer) == 20_430_401_088
    modulation = [p for n, p in transformer.named_parameters() if "_mod." in n]
    assert sum(p.numel() for p in modulation) == 6_796_984_320
    assert all(p.is_meta for p in transformer.parameters())


def test_the_text_encoder_is_qwen_2_5_vl_7b() -> None:
    encoder = shapes.text_encoder(shapes.full())
    assert count(encoder) == 8_292_166_656
    assert count(encoder.lm_head) == 544_997_376


def test_the_work_of_a_forward_is_the_estimated_one() -> None:
    shape = {"blocks": 60, "dim": 3072, "rank": 0, "batch": 1}
    image = measure.forward_flops(image_tokens=64 * 64, text_tokens=100, **shape)
    # a reference also takes 196 tokens of the prompt
    edit = measure.forward_flops(image_tokens=2 * 64 * 64, text_tokens=300, **shape)
    assert image / 1e12 == pytest.approx(70, rel=0.02)
    assert edit / 1e12 == pytest.approx(170, rel=0.02)


def test_a_name_has_the_same_weights_in_every_build() -> None:
    first, second = (shapes.transformer(shapes.tiny(), edit=True) for _ in range(2))
    made = weights.made(first, CPU, {})
    again = weights.made(second, CPU, {})
    assert made.keys() == dict(first.named_parameters()).keys()
    assert all(torch.equal(made[name], again[name]) for name in made)
    assert all(bool(tensor.isfinite().all()) for tensor in made.values())


def test_no_job_repeats_a_prompt_or_a_reference_unless_requested() -> None:
    case = Case(96, 1, 4, batch=2)
    seen = [next(job.inputs(case)) for _ in range(2)]
    prompts = [g.prompt for generations in seen for g in generations]
    pixels = [g.references[0].tobytes() for generations in seen for g in generations]
    assert len(set(prompts)) == len(set(pixels)) == 4
    assert len({len(prompt) for prompt in prompts}) == 1
    once, again = (next(job.inputs(case, iter([1, 2])))[1] for _ in range(2))
    assert once.prompt == again.prompt
    assert once.references[0].tobytes() == again.references[0].tobytes()


def test_what_was_measured_survives_a_run_that_is_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "gpu.json"
    Results(path, again=False).put({"median_s": 1}, "cases", "a/b", "plain")
    results = Results(path, again=False)
    assert results.is_measured("cases", "a/b", "plain")
    assert not results.is_measured("cases", "a/b", "stock")
    assert not Results(path, again=True).is_measured("cases", "a/b", "plain")


def test_what_failed_is_measured_again_and_stays_in_the_table_meanwhile(tmp_path: Path) -> None:
    results = Results(tmp_path / "gpu.json", again=False)
    results.put({"error": "OutOfMemoryError: 2 GiB"}, "cases", "bf16/x/4/1", "plain")
    assert not results.is_measured("cases", "bf16/x/4/1", "plain")
    assert "OutOfMemoryError: 2 GiB" in table(results.held)


def test_every_entry_of_a_run_has_a_name_and_a_place_of_its_own() -> None:
    entries = agenda.list_entries(1024, 4)
    assert len({entry.name for entry in entries}) == len(entries)
    assert len({entry.place for entry in entries}) == len(entries)
    assert entries[1].name == "flux-2-klein-4b/bf16/edit-1024-1ref/4/1/plain"
    names = [entry.name for entry in entries]
    assert "bf16/edit-1024-1ref/4/1/plain" in names
    assert "orpheus/speech/4bit" in names
    assert all(entry.estimate(3) > 0 for entry in entries)


def test_all_ways_of_running_a_klein_make_the_same_latents() -> None:
    """The stock pipeline, its text encoder complete; and an encoder that passes through."""
    built = KleinBuilt(klein.find_klein("flux-2-klein-4b", is_tiny=True), "bf16", CPU)
    wishes = next(job.inputs(Case(96, 2, 2), itertools.count(1)))
    plain = built.choose("plain", edit=True)
    expected = plain.make_latents(wishes)
    stock = built.choose("stock", edit=True)
    assert torch.equal(stock.make_latents(wishes), expected)
    encoder = stock.pipeline.text_encoder.model
    assert len(encoder.layers) > len(built._parts.text_encoder.model.layers)
    plain.forget()
    assert torch.equal(plain.make_latents(wishes), expected)
    built.stream()
    plain.forget()
    assert torch.equal(plain.make_latents(wishes), expected)


def test_a_published_klein_has_the_weights_that_are_computed() -> None:
    """Within a hundredth, in bf16: what `working` counts for both of its large parts."""
    for name, edition in klein.KLEINS.items():
        configs = klein.find_klein(name, is_tiny=False).configs
        for role, computed in zip(klein.ROLES, edition.count_weights("bf16"), strict=False):
            modules = FLUX_RECIPE.find_part(role).modules
            made = modules.bare(modules.stock(configs[role]))
            assert 2 * count(made) == pytest.approx(computed, rel=0.01)


@pytest.mark.trial
@pytest.mark.parametrize("precision", ["bf16", "4bit"])
def test_what_speech_takes_is_measured_on_a_cpu(precision: Any) -> None:
    built = VoiceBuilt(voice.find_voice(is_tiny=True), precision, CPU)
    found = voice.measure_speech(built, 1)
    assert found["frames"] == 8
    assert min(found["frame_ms"], found["decode_ms_per_frame"], found["first_sound_ms"]) > 0
    assert found["first_sound_ms"] > found["frame_ms"]
    assert voice.measure_generate(built)["tokens"] == 14


@pytest.mark.trial
def test_flux_runs_on_a_cpu_and_is_in_the_plan(tmp_path: Path) -> None:
    """Every side but the compiled one, and what is streamed."""
    out = tmp_path / "gpu.json"
    words = [sys.executable, "bench/gpu.py", "--tiny", "--device", "cpu", "--out", out, "--only"]
    named = ["flux-2-klein-4b/4bit", "klein-4b/bf16/edit-96-2ref", "klein-4b/offload"]
    run = partial(
        subprocess.run, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=240
    )
    run([*words, *named, "--skip", "/compiled"])
    results = json.loads(out.read_text())
    sides = {name: set(found) for name, found in results["cases"].items()}
    assert sides == {
        "flux-2-klein-4b/4bit/edit-96-1ref/4/1": {"plain", "stock"},
        "flux-2-klein-4b/4bit/image-96/4/1": {"plain", "stock"},
        "flux-2-klein-4b/bf16/edit-96-2ref/4/1": {"plain", "stock"},
        "flux-2-klein-4b/bf16/edit-96-2ref-weighed/4/1": {"plain"},
    }
    for found in results["cases"].values():
        assert all(side["finite"] and side["tflops"] > 0 for side in found.values())
        assert found.get("stock", {}).get("difference", 0) == 0
    assert results["offload"]["flux-2-klein-4b/bf16/streamed"]["equal"]
    planned = run([*words, "flux", "orpheus", "--plan"]).stdout.splitlines()
    assert sum(line.strip().startswith("measured") for line in planned) == 8
    assert any("orpheus/speech/8bit" in line for line in planned)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.trial
def test_the_entire_harness_runs_on_a_cpu(tmp_path: Path) -> None:
    """Every kind of entry on the embedded sizes, nothing compiled: that takes minutes on a CPU."""
    out = tmp_path / "gpu.json"
    names = ["ceiling", "4bit/edit-96-1ref/4/1", "bf16/image-96/4/1", "bf16/image-48/4/2"]
    names += [f"bf16/edit-96-1ref/4/1/{side}" for side in ("plain", "merged")]
    done = subprocess.run(
        [
            *(sys.executable, "bench/gpu.py", "--tiny", "--device", "cpu", "--out", out),
            *("--only", *names, "profile", "offload", "memory", "cold"),
            *(
                "--skip",
                "flux",
                "/compiled",
                "/both",
                "4bit/edit-96-1ref/4/1/merged",
                "--minutes",
                "14",
            ),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    results = json.loads(out.read_text())
    cases = results["cases"]
    assert {name: set(sides) for name, sides in cases.items()} == {
        "4bit/edit-96-1ref/4/1": {"plain", "stock"},
        "bf16/edit-96-1ref/4/1": {"plain", "merged"},
        "bf16/image-96/4/1": {"plain", "stock"},
        "bf16/image-48/4/2": {"plain"},
    }
    for name, sides in cases.items():
        for side in sides.values():
            expected = {"text", "denoise", "decode", "png"} | (
                {"reference"} if "edit" in name else set()
            )
            assert {phase for phase, spent in side["phases_ms"].items() if spent > 0} == expected
            assert side["tflops"] > 0
            assert side["finite"]
    # with the same weights, rows draw what weights draw, and adapters what peft's draw
    assert cases["bf16/image-96/4/1"]["stock"]["difference"] == 0
    assert 0 < cases["bf16/edit-96-1ref/4/1"]["merged"]["difference"] < 0.02
    assert results["memory"].keys() == {"16", "24"}
    assert results["offload"]["bf16/streamed"]["phases_ms"]["text"] > 0
    assert results["offload"]["bf16/streamed"]["equal"]
    cold = results["cold"]["all"]
    assert cold["cold"]["first_picture_s"] > 0
    assert cold["bundle_gb"] > 0
    assert sum(kernel["ms"] for kernel in results["profile"]["bf16/plain"].values()) > 0
    assert "bf16/image-96/4/1 stock" in done.stdout
