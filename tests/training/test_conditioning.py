"""Training sees the prompt embeddings that the pipelines will make."""

import random

import pytest
import torch
from transformers import Qwen2VLImageProcessor

from training.tiny import architecture, bank, conditioning, tokenizer, world


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_the_shared_prefix_changes_nothing(pictures: int) -> None:
    torch.manual_seed(0)
    words = tokenizer.build_tokenizer()
    encoder = architecture.build_text_encoder(words).eval()
    rng = random.Random(1)
    drawn = [world.draw(world.random_scene(rng), world.random_jitter(rng)) for _ in range(pictures)]
    vision = bank.see(encoder, drawn).flatten(0, 1)[None] if pictures else None
    make = conditioning.Conditioner(encoder, words)
    ids, prefix = make.ids("make it a large red star", pictures)
    tokens = torch.tensor([ids])
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if pictures:
        processor = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=84 * 84)
        inputs |= dict(processor(images=drawn, return_tensors="pt"))
        inputs["mm_token_type_ids"] = (tokens == make.image).int()
    with torch.no_grad():
        ours = make([ids, ids], prefix, None if vision is None else vision.expand(2, -1, -1))
        theirs = encoder(**inputs, output_hidden_states=True).hidden_states[-1][:, prefix:]
    assert ours.shape == (2, theirs.shape[1], 128)
    torch.testing.assert_close(ours, theirs.expand(2, -1, -1), atol=1e-5, rtol=1e-4)
