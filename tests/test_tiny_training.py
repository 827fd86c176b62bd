"""What the tiny checkpoint learns from, and that what was trained is what the worker runs."""

import random
from dataclasses import fields

import pytest
import torch

from builder.tiny import architecture, bank, distil, phrases, tokenizer, train_model, world
from builder.tiny.conditioning import Conditioner
from builder.tiny.flat_vae import FlatVae, initialise
from worker.engine.lora import Adapters, canonical, lightning_modules


@pytest.fixture(scope="module")
def small_bank() -> bank.Bank:
    """Every seen scene with latents of noise: enough to draw examples from."""
    scenes = [scene for scene in world.scenes() if not scene.held_out]
    count = len(scenes)
    return bank.Bank(
        scenes=scenes,
        latents=torch.randn(1, count, 36, 64),
        vision=torch.randn(1, count, 9, 128),
        shown=torch.ones(1, count, 36, dtype=torch.bool),
        mean=torch.zeros(16),
        std=torch.ones(16),
    )


def test_no_training_example_shows_a_held_out_scene(small_bank: bank.Bank) -> None:
    tasks = train_model.Tasks(small_bank, seed=0)
    for task in train_model.TASKS:
        for sample in (s for _ in range(100) for s in tasks.group(task, 4)):
            shown = [sample.target, *(scene for _, scene in sample.references)]
            assert not [i for i in shown if small_bank.scenes[i].held_out]


def test_prompts_of_a_group_have_one_length(small_bank: bank.Bank) -> None:
    words = tokenizer.build_tokenizer()
    tasks = train_model.Tasks(small_bank, seed=1)
    for task in train_model.TASKS:
        for _ in range(60):
            group = tasks.group(task, 8)
            assert len({len(words(sample.prompt).input_ids) for sample in group}) == 1


@pytest.mark.parametrize("part", phrases.PARTS)
def test_an_edit_changes_the_asked_part_and_nothing_else(part: str) -> None:
    rng = random.Random(2)
    for _ in range(50):
        before = world.random_scene(rng)
        after = phrases.change(before, part, rng)
        assert after.colour != after.background
        names = [field.name for field in fields(world.Scene)]
        assert [n for n in names if getattr(before, n) != getattr(after, n)] == [part]


def test_the_flat_vae_is_the_vae_on_a_single_frame() -> None:
    vae = architecture.build_vae().eval()
    initialise(vae, seed=0)
    flat = FlatVae(vae)
    with torch.no_grad():
        for weight in flat.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
        flat.write_back(vae)
        frames = torch.rand(2, 3, 64, 96) * 2 - 1
        moments = vae.encode(frames[:, :, None]).latent_dist.parameters[:, :, 0]
        torch.testing.assert_close(flat.encode(frames), moments, atol=1e-4, rtol=1e-4)
        decoded = vae.decode(moments[:, :16, None]).sample[:, :, 0]
        ours = flat.decode(moments[:, :16]).clamp(-1, 1)
        torch.testing.assert_close(ours, decoded, atol=1e-4, rtol=1e-4)


def test_the_worker_applies_a_lora_as_it_was_trained(small_bank: bank.Bank) -> None:
    torch.manual_seed(3)
    words = tokenizer.build_tokenizer()
    make = Conditioner(architecture.build_text_encoder(words), words)
    transformer = architecture.build_transformer(zero_cond_t=True)
    state = architecture.random_lora(transformer, 1, 0.05)
    samples = train_model.Tasks(small_bank, seed=2).group("edit", 2)
    device = torch.device("cpu")
    with torch.no_grad():
        given = train_model.condition(make, small_bank, samples, device)
        x, t = torch.randn(2, 36, 64), torch.tensor([1.0, 0.5])
        plain = train_model.velocity(transformer, x, t, given)
        attached = distil.attach(transformer, state)
        trained = train_model.velocity(transformer, x, t, given)
        assert distil.published(attached).keys() == state.keys()
        distil.detach(transformer, attached)
        torch.testing.assert_close(train_model.velocity(transformer, x, t, given), plain)
        adapters = Adapters(transformer)
        expected = lightning_modules(architecture.LAYERS)
        adapters.attach("lightning_4", canonical(state), expected=expected)
        adapters.use("lightning_4")
        served = train_model.velocity(transformer, x, t, given)
    assert not torch.allclose(trained, plain, atol=1e-3)
    torch.testing.assert_close(served, trained, atol=1e-4, rtol=1e-3)


def test_packing_is_undone_by_unpacking_and_is_the_pipelines_own() -> None:
    from diffusers import QwenImagePipeline  # noqa: PLC0415 - only here

    latents = torch.randn(2, 16, 12, 12)
    packed = bank.pack(latents)
    assert torch.equal(bank.unpack(packed), latents)
    assert torch.equal(packed, QwenImagePipeline._pack_latents(latents, 2, 16, 12, 12))
