"""Our forward gives what the transformer's own gives, to the last bit, whatever it is shown."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen
from torch import Tensor

from worker.engine.lora import Adapters
from worker.families.qwen_image import rope
from worker.families.qwen_image.denoising import Conditioning, LatentShape
from worker.families.qwen_image.forward import Forward
from worker.families.qwen_image.rope import Positions, make_table
from worker.families.rotary import rotate
from worlds.loras import published_lora, small_transformer

CPU = torch.device("cpu")
VARIANTS: dict[str, dict[str, bool]] = {
    "base": {},
    "zero_cond_t": {"zero_cond_t": True},
    "layered": {"use_layer3d_rope": True},
    "layered zero_cond_t": {"zero_cond_t": True, "use_layer3d_rope": True},
}
# an output alone, with one reference of another shape, with two; odd sides are not centred on 0
SHAPES: list[list[LatentShape]] = [
    [(1, 4, 4)],
    [(1, 5, 7), (1, 3, 4)],
    [(1, 6, 4), (1, 4, 4), (1, 9, 3)],
]


def small(dtype: torch.dtype, **config: bool) -> Any:
    """Return a transformer of two blocks, as the variant has it."""
    return small_transformer(**config).to(dtype)


def inputs(
    shapes: Sequence[LatentShape], batch: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return latents, a prompt's embeddings and the timestep."""
    tokens = sum(frames * height * width for frames, height, width in shapes)
    latents, embeds = torch.randn(batch, tokens, 16), torch.randn(batch, 9, 32)
    timestep = torch.full((batch,), 0.7521, dtype=dtype)
    return latents.to(dtype), embeds.to(dtype), timestep


def stock(
    model: Any,
    given: tuple[Tensor, Tensor, Tensor],
    shapes: Sequence[LatentShape],
    mask: Tensor | None = None,
) -> Tensor:
    """Run the module's own forward."""
    latents, embeds, timestep = given
    with torch.inference_mode():
        predicted: Tensor = model(
            hidden_states=latents,
            encoder_hidden_states=embeds,
            encoder_hidden_states_mask=mask,
            timestep=timestep,
            img_shapes=[list(shapes)] * len(latents),
            return_dict=False,
        )[0]
    return predicted


def ours(
    forward: Forward,
    given: tuple[Tensor, Tensor, Tensor],
    shapes: Sequence[LatentShape],
    mask: Tensor | None = None,
) -> Tensor:
    """Run our forward."""
    latents, embeds, timestep = given
    with torch.inference_mode():
        return forward(latents, timestep, Conditioning(embeds, mask), shapes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_our_forward_equals_the_modules_own_to_the_last_bit(
    variant: str, dtype: torch.dtype
) -> None:
    """With references and without, in batches, with a mask and without."""
    model = small(dtype, **VARIANTS[variant])
    forward = Forward(model)
    padded = torch.tensor([[True] * 9, [True] * 5 + [False] * 4])
    for shapes, (batch, mask) in itertools.product(
        SHAPES, [(1, None), (2, None), (2, padded), (1, padded[1:])]
    ):
        given = inputs(shapes, batch, dtype)
        expected = stock(model, given, shapes, mask)
        assert torch.equal(ours(forward, given, shapes, mask), expected)
        assert expected.isfinite().all()


@pytest.mark.parametrize("changed", range(3), ids=["latents", "prompt", "timestep"])
def test_every_token_has_its_part_in_the_prediction(changed: int) -> None:
    """Equality above is not that of a model that ignores what it is shown."""
    forward, shapes = Forward(small(torch.float32, zero_cond_t=True)), SHAPES[1]
    given = inputs(shapes, 1, torch.float32)
    before = ours(forward, given, shapes)
    given[changed][..., -1:] += 0.5
    after = ours(forward, given, shapes)
    assert not torch.allclose(before[:, :35], after[:, :35], atol=1e-6)


def test_rows_that_go_on_keep_what_counts_of_their_prompts() -> None:
    embeds, mask = torch.randn(3, 4, 2), torch.arange(4) < torch.tensor([[4], [1], [2]])
    kept = Conditioning(embeds, mask).keep([2, 1])
    assert torch.equal(kept.embeds, embeds[[2, 1]])
    assert kept.mask is not None
    assert kept.mask.sum(dim=1).tolist() == [2, 1]
    assert Conditioning(embeds).keep([0]).mask is None


def test_a_timestep_is_rounded_as_the_latents_are() -> None:
    """As the module's own forward rounds it."""
    model, shapes = small(torch.bfloat16), SHAPES[0]
    latents, embeds, _ = inputs(shapes, 1, torch.bfloat16)
    given = latents, embeds, torch.full((1,), 0.7521)
    assert torch.equal(ours(Forward(model), given, shapes), stock(model, given, shapes))


def test_adapters_are_followed_as_they_are_switched() -> None:
    model = small_transformer()
    forward, shapes = Forward(model), [(1, 4, 4)]
    adapters = Adapters(model)
    adapters.attach("a", published_lora(model, 3))
    latents, embeds, timestep = inputs(shapes, 1, torch.float32)
    given = latents, embeds[..., :32], timestep
    seen = []
    for name in ("a", None):
        adapters.use(name)
        seen.append(ours(forward, given, shapes))
        assert torch.equal(seen[-1], stock(model, given, shapes))
    assert not torch.equal(*seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_real_rotation_equals_the_complex_one_to_the_last_bit(dtype: torch.dtype) -> None:
    x = torch.randn(2, 500, 3, 128).to(dtype)
    frequencies = torch.polar(torch.ones(500, 64), torch.randn(500, 64) * 10)
    expected = apply_rotary_emb_qwen(x, frequencies, use_real=False)
    assert torch.equal(rotate(x, make_table(frequencies)), expected)
    assert rotate(x, make_table(frequencies)).dtype == dtype


@pytest.mark.parametrize("shapes", [*SHAPES, [(1, 2, 2)] * 4, [(7, 2, 2), (1, 4, 2)]])
@pytest.mark.parametrize("is_layered", [False, True])
def test_positions_are_those_of_the_modules_own_table(
    shapes: list[LatentShape], *, is_layered: bool
) -> None:
    """The text follows the last layer where there are more layers than half a side has tokens."""
    model = small(torch.float32, use_layer3d_rope=is_layered)
    expected = model.pos_embed([shapes], max_txt_seq_len=9, device=CPU)
    found = Positions(model).find(shapes, 9, CPU)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, make_table(theirs))


def test_positions_are_computed_once_per_shape_and_their_memory_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rope, "CACHED_BYTES", 2 * 32 * 8 * 100)  # two pictures of 100 tokens
    positions = Positions(small(torch.float32))
    first, text = positions.find([(1, 10, 10)], 9, CPU)
    again, longer = positions.find([(1, 10, 10)], 40, CPU)
    assert first.data_ptr() == again.data_ptr()
    assert text.data_ptr() == longer.data_ptr()
    assert longer.shape[1] == 40
    positions.find([(1, 20, 5)], 9, CPU)
    positions.find([(1, 5, 20)], 9, CPU)
    assert positions.find([(1, 10, 10)], 9, CPU)[0].data_ptr() != first.data_ptr()
