"""Our sampler gives what the stock diffusers pipelines give, to the last bit, in fp32."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImageEditPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as first_edit
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus
from PIL import Image

from worker.families.qwen_image.model import fit_area
from worlds.prepared import CONDITION_AREA, SPECS
from worlds.stock import Pair
from worlds.wishes import WISH as BASE
from worlds.wishes import drawing


@pytest.fixture(autouse=True)
def reference_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the stock pipeline the small model's reference sizes; it reads them at call time."""
    monkeypatch.setattr(edit_plus, "VAE_IMAGE_SIZE", SPECS["tiny-edit"].defaults.area)
    monkeypatch.setattr(edit_plus, "CONDITION_IMAGE_SIZE", CONDITION_AREA)
    published = first_edit.calculate_dimensions
    monkeypatch.setattr(
        first_edit,
        "calculate_dimensions",
        lambda _area, ratio: published(SPECS["tiny-edit"].defaults.area, ratio),
    )


@pytest.fixture(scope="module")
def image_pair() -> Pair:
    """The text-to-image checkpoint (no zero_cond_t, as Qwen-Image)."""
    return Pair("tiny-image", zero_cond_t=False)


@pytest.fixture(scope="module", params=[True, False], ids=["zero_cond_t", "plain"])
def edit_pair(request: pytest.FixtureRequest) -> Pair:
    """The edit checkpoint with zero_cond_t (as Edit-2511) and without (as Edit-2509)."""
    return Pair("tiny-edit", zero_cond_t=request.param)


CFG = {"negative_prompt": " ", "true_cfg_scale": 4.0}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="base"),
        pytest.param(CFG, id="cfg"),
        pytest.param({"lightning": True}, id="lightning-4"),
        pytest.param({"lightning": True, "steps": 8}, id="lightning-8"),
        pytest.param({"width": 128, "height": 64, "steps": 7, **CFG}, id="wide-cfg-7-steps"),
    ],
)
def test_text_to_image_equals_the_stock_pipeline(image_pair: Pair, changes: Any) -> None:
    """The final latents are those of QwenImagePipeline, bit for bit."""
    generation = replace(BASE, **changes)
    assert torch.equal(image_pair.our_latents(generation), image_pair.stock_latents(generation))


def references(count: int) -> tuple[Image.Image, ...]:
    """Return references of different shapes."""
    return tuple(
        drawing(*size, seed) for seed, size in enumerate([(96, 96), (150, 90), (70, 120)][:count])
    )


@pytest.mark.parametrize(
    ("count", "changes"),
    [
        pytest.param(1, {}, id="one"),
        pytest.param(1, CFG, id="one-cfg"),
        pytest.param(1, {"lightning": True}, id="one-lightning-4"),
        pytest.param(1, {"lightning": True, "steps": 8}, id="one-lightning-8"),
        pytest.param(2, CFG, id="two-cfg"),
        pytest.param(3, {}, id="three"),
    ],
)
def test_edits_equal_the_stock_pipeline(edit_pair: Pair, count: int, changes: Any) -> None:
    """The final latents are those of QwenImageEditPlusPipeline with 1-3 references, bit for bit."""
    given = references(count)
    width, height = fit_area(SPECS["tiny-edit"].defaults.area, given[-1].width / given[-1].height)
    generation = replace(
        BASE,
        task="edit",
        prompt="make it green",
        references=given,
        width=width,
        height=height,
        **changes,
    )
    assert torch.equal(edit_pair.our_latents(generation), edit_pair.stock_latents(generation))


@pytest.fixture(scope="module")
def first_edition() -> Pair:
    """The edit checkpoint behind the pipeline of the first edition, Qwen-Image-Edit."""
    return Pair("tiny-edit", zero_cond_t=False, pipeline=QwenImageEditPipeline)


@pytest.mark.parametrize("size", [(96, 96), (150, 90)])
@pytest.mark.parametrize("changes", [{}, CFG, {"lightning": True}], ids=["base", "cfg", "4-steps"])
def test_the_first_edition_equals_the_stock_pipeline(
    first_edition: Pair, size: tuple[int, int], changes: Any
) -> None:
    """QwenImageEditPipeline: one reference, no "Picture 1:", seen by the encoder at full size."""
    given = drawing(*size, 3)
    width, height = fit_area(SPECS["tiny-edit"].defaults.area, given.width / given.height)
    generation = replace(
        BASE,
        task="edit",
        prompt="make it green",
        references=(given,),
        width=width,
        height=height,
        **changes,
    )
    assert torch.equal(
        first_edition.our_latents(generation), first_edition.stock_latents(generation)
    )


def test_decoded_floats_equal_the_stock_pipeline(image_pair: Pair) -> None:
    """The decoded picture equals the stock one before it is rounded to 8 bits."""
    ours = image_pair.ours._vae.decode(image_pair.our_latents(BASE), BASE.width, BASE.height)
    stock = image_pair.stock_latents(BASE, output="np")
    shown = (ours * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().numpy()
    assert np.array_equal(shown, stock)


@pytest.mark.parametrize("prompts", [("one", "two", "six"), ("one", "a large white star", "two")])
def test_a_text_batch_equals_single_runs(image_pair: Pair, prompts: tuple[str, ...]) -> None:
    """Batched latents differ from single ones by less than 1e-5 of their spread at 8 steps."""
    generations = [
        replace(BASE, prompt=prompt, seed=seed, steps=8) for seed, prompt in enumerate(prompts)
    ]
    batch = image_pair.our_latents(*generations)
    single = torch.cat([image_pair.our_latents(g) for g in generations])
    assert (batch - single).abs().max() < 1e-5 * (single.max() - single.min())


def test_an_edit_batch_equals_single_runs(edit_pair: Pair) -> None:
    """Edits batch too, which the stock pipeline refuses."""
    generations = [
        replace(
            BASE, task="edit", references=(drawing(96, 96, seed), drawing(90, 90, 9)), seed=seed,
            prompt="make it blue", steps=8,
        )
        for seed in range(3)
    ]  # fmt: skip
    batch = edit_pair.our_latents(*generations)
    single = torch.cat([edit_pair.our_latents(g) for g in generations])
    assert (batch - single).abs().max() < 1e-5 * (single.max() - single.min())


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"prompt": "a large green star"}, id="prompt"),
        pytest.param({"seed": 8}, id="seed"),
        pytest.param({"lightning": True}, id="adapter"),
        pytest.param(CFG, id="cfg"),
    ],
)
def test_every_input_reaches_the_latents(image_pair: Pair, changes: Any) -> None:
    """Equality above is not that of a model that ignores what it is given."""
    changed = image_pair.our_latents(replace(BASE, **changes))
    assert not torch.allclose(changed, image_pair.our_latents(BASE), atol=1e-3)


def test_the_patched_bug_is_real(edit_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without mm_token_type_ids the stock encoder sees references at other positions."""
    generation = replace(BASE, task="edit", references=references(1))
    encoder = edit_pair.stock.text_encoder
    monkeypatch.setattr(encoder, "forward", type(encoder).forward.__get__(encoder))
    unpatched = edit_pair.stock_latents(generation)
    assert not torch.equal(edit_pair.our_latents(generation), unpatched)
