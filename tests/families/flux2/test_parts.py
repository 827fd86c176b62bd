"""The names of Mistral 3's tensors: as transformers 4 published them, and in our modules."""

import pytest

from worker.families.flux2.parts import rename_text, restore_text

NAMES = {
    "language_model.model.layers.1.mlp.up_proj.weight": (
        "model.language_model.layers.1.mlp.up_proj.weight"
    ),
    "language_model.lm_head.weight": "lm_head.weight",
    "vision_tower.patch_conv.weight": "model.vision_tower.patch_conv.weight",
    "multi_modal_projector.norm.weight": "model.multi_modal_projector.norm.weight",
}


@pytest.mark.parametrize(("published", "ours"), NAMES.items())
def test_a_published_name_is_found_and_shown_again(published: str, ours: str) -> None:
    """One of either kind tells how the others are shown."""
    assert rename_text(published) == ours
    for kind in NAMES:
        assert restore_text(["other.weight", kind])(ours) == published


@pytest.mark.parametrize("ours", NAMES.values())
def test_a_name_of_transformers_5_is_what_it_is(ours: str) -> None:
    assert rename_text(ours) == ours
    assert restore_text(["other.weight", *NAMES.values()])(ours) == ours
    assert restore_text([])(ours) == ours


def test_any_other_name_stays() -> None:
    """Qwen3, which the smaller models have, is published as it is."""
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight"):
        assert rename_text(name) == name
        assert restore_text(list(NAMES))(name) == name
