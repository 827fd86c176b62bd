"""What the tiny checkpoint learns from, and that what was trained is what the worker runs."""

import itertools
import random
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from training.tiny import architecture, bank, distil, phrases, tokenizer, train_model, world
from training.tiny.conditioning import Conditioner
from training.tiny.flat_vae import FlatVae, initialise
from training.tiny.latents import pack, unpack
from training.tiny.lean import Conditions, Lean
from training.tiny.train import load_start
from worker.engine.lora import Adapters, make_canonical
from worker.families.qwen_image.lightning import list_lightning_modules

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "tiny"


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


def test_padding_a_prompt_changes_nothing_of_it(small_bank: bank.Bank) -> None:
    torch.manual_seed(1)
    words = tokenizer.build_tokenizer()
    make = Conditioner(architecture.build_text_encoder(words), words)
    lean = Lean(architecture.build_transformer(zero_cond_t=True))
    device = torch.device("cpu")
    for task in train_model.TASKS:
        group = train_model.Tasks(small_bank, seed=1).group(task, 8)
        pictures = len(group[0].references)
        lengths = {len(words(sample.prompt).input_ids) for sample in group}
        assert len(lengths) > 1 or task == "exchange"
        assert len({len(row) for row in make.padded([s.prompt for s in group], pictures)[0]}) == 1
        noisy, t = torch.randn(8, 36, 64), torch.rand(8)
        with torch.no_grad():
            together = lean(noisy, t, train_model.condition(make, small_bank, group, device))
            make.longest = dict.fromkeys(make.longest, 0)
            for i, sample in enumerate(group):
                alone = train_model.condition(make, small_bank, [sample], device)
                assert alone.words.all()
                torch.testing.assert_close(
                    lean(noisy[i : i + 1], t[i : i + 1], alone),
                    together[i : i + 1],
                    atol=1e-4,
                    rtol=1e-4,
                )


@pytest.mark.parametrize("references", [0, 1, 2])
def test_the_lean_forward_is_the_published_one(references: int) -> None:
    torch.manual_seed(2)
    transformer = architecture.build_transformer(zero_cond_t=True)
    tokens, embeds = torch.randn(3, 36 * (1 + references), 64), torch.randn(3, 21, 128)
    t = [0.1, 0.6, 1.0]
    shapes = [[(1, 6, 6)] * (1 + references)] * 3
    given = Conditions(
        embeds,
        torch.ones(3, 21, dtype=torch.bool),
        tokens[:, 36:] if references else None,
        shapes,
    )
    with torch.no_grad():
        ours = Lean(transformer)(tokens[:, :36], torch.tensor(t), given)
        theirs = transformer(tokens, embeds, timestep=torch.tensor(t), img_shapes=shapes)
    torch.testing.assert_close(ours, theirs.sample[:, :36], atol=1e-5, rtol=1e-4)


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
    lean = Lean(transformer)
    state = architecture.random_lora(transformer, 1, 0.05)
    samples = train_model.Tasks(small_bank, seed=2).group("edit", 2)
    device = torch.device("cpu")
    with torch.no_grad():
        given = train_model.condition(make, small_bank, samples, device)
        x, t = torch.randn(2, 36, 64), torch.tensor([1.0, 0.5])
        plain = lean(x, t, given)
        attached = distil.attach(transformer, state)
        trained = lean(x, t, given)
        assert distil.published(attached).keys() == state.keys()
        distil.detach(transformer, attached)
        torch.testing.assert_close(lean(x, t, given), plain)
        adapters = Adapters(transformer)
        expected = list_lightning_modules(architecture.LAYERS)
        adapters.attach("lightning_4", make_canonical(state), expected=expected)
        adapters.use("lightning_4")
        served = lean(x, t, given)
    assert not torch.allclose(trained, plain, atol=1e-3)
    torch.testing.assert_close(served, trained, atol=1e-4, rtol=1e-3)


def test_packing_is_undone_by_unpacking_and_is_the_pipelines_own() -> None:
    from diffusers import QwenImagePipeline  # noqa: PLC0415 - only here

    latents = torch.randn(2, 16, 12, 12)
    packed = pack(latents)
    assert torch.equal(unpack(packed), latents)
    assert torch.equal(packed, QwenImagePipeline._pack_latents(latents, 2, 16, 12, 12))


def test_the_teacher_ends_where_its_forty_steps_with_cfg_do(small_bank: bank.Bank) -> None:
    torch.manual_seed(4)
    words = tokenizer.build_tokenizer()
    text_encoder = architecture.build_text_encoder(words)
    transformer = architecture.build_transformer(zero_cond_t=True)
    load_start(CHECKPOINT / "edit", transformer, text_encoder)
    make, lean = Conditioner(text_encoder, words), Lean(transformer)
    group = train_model.Tasks(small_bank, seed=5).group("whole", 4, dropping=False)
    blank = [train_model.Sample(s.jitter, s.target, " ") for s in group]
    noise = torch.randn(4, 36, 64)

    def euler(steps: int) -> torch.Tensor:
        x = noise
        for level, following in itertools.pairwise(distil.sigmas(steps, lightning=False)):
            v, other = (lean(x, torch.full((4,), level), given) for given in conditions)
            both = other + distil.TEACHER_CFG * (v - other)
            both *= v.norm(dim=-1, keepdim=True) / both.norm(dim=-1, keepdim=True)
            x = x + (following - level) * both
        return x

    with torch.no_grad():
        conditions = [
            train_model.condition(make, small_bank, some, torch.device("cpu"))
            for some in (group, blank)
        ]
        expected = euler(distil.TEACHER_STEPS)
        ours = (distil.teacher(lean, noise, *conditions) - expected).square().mean()
        as_many = (euler(len(distil.VISITED) - 1) - expected).square().mean()
    assert ours < 0.0003
    assert ours < as_many / 2
