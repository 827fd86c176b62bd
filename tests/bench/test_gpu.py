"""bench/gpu.py: the real shapes are the published ones, and its code runs on a CPU in a minute."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.real_shapes import job, measure, shapes, weights
from bench.real_shapes.job import Case
from bench.real_shapes.results import Results, table

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
    Results(path, again=False).put({"median_s": 1}, "cases", "a/b", "ours")
    results = Results(path, again=False)
    assert results.has("cases", "a/b", "ours")
    assert not results.has("cases", "a/b", "stock")
    assert not Results(path, again=True).has("cases")


def test_a_case_that_ran_out_of_memory_stays_in_the_table() -> None:
    lines = table({"cases": {"bf16/x/4/1": {"ours": {"error": "out of memory"}}}})
    assert "out of memory" in lines


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_entire_harness_runs_on_a_cpu(tmp_path: Path) -> None:
    """Every part on the embedded sizes: both sides, all phases, the same pictures, a cold start."""
    out = tmp_path / "gpu.json"
    words = ["--tiny", "--device", "cpu", "--repeats", "1", "--warmups", "0", "--batch", "1"]
    cases = ["--steps", "4", "--only", "edit-96-1ref", "image-96"]
    parts = ["--part", "ceiling", "bf16", "4bit", "memory", "cold", "profile"]
    done = subprocess.run(
        [sys.executable, "bench/gpu.py", *words, *cases, *parts, "--out", out],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    results = json.loads(out.read_text())
    names = {f"{p}/{t}/4/1" for p in ("bf16", "4bit") for t in ("edit-96-1ref", "image-96")}
    assert results["cases"].keys() == names
    for name, sides in results["cases"].items():
        assert sides.keys() == {"ours", "fused", "stock"}
        for side in sides.values():
            expected = {"text", "denoise", "decode", "png"} | (
                {"reference"} if "edit" in name else set()
            )
            assert {phase for phase, spent in side["phases_ms"].items() if spent > 0} == expected
            assert side["tflops"] > 0
    # with the same weights, rows draw what weights draw, and adapters what peft's draw
    assert results["same"] == {"bf16/image-96/4/1": {"relative_difference": 0.0, "finite": True}}
    assert results["memory"].keys() == {"16gib-edit", "24gib-both"}
    cold = results["cold"]["4bit"]
    assert cold["cold"]["first_picture_s"] > 0
    assert cold["bundle_gb"] > 0
    assert sum(row["ms"] for row in results["profile"].values()) > 0
    assert "bf16/edit-96-1ref/4/1" in done.stdout
