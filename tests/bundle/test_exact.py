"""A bundle's modulation rows give the pictures that modulation weights give, to the last bit."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from worker.families.qwen_image.model import QwenImage
from worker.tasks.picture import PictureWish
from worlds import prepared
from worlds.making import drawn

Pair = tuple[QwenImage, QwenImage]


@pytest.fixture(scope="module", params=["tiny-image", "tiny-edit"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The same bf16 weights twice: from a bundle with rows, and published with weights.

    Both have one VAE, whose last bits depend on the processor (test_frame_vae.py). tiny-image
    is the base variant, tiny-edit has zero_cond_t; test_modulation.py has the layered one at
    module level.
    """
    home = tmp_path_factory.mktemp("home")
    name = request.param
    ours, theirs = prepared.opened(name, home), prepared.published(name)
    theirs.vae = ours.vae
    return prepared.model(name, ours), prepared.model(name, theirs)


def wish(model: QwenImage, steps: int, size: tuple[int, int], cfg: float) -> PictureWish:
    edit = "edit" in model.served.tasks
    grey = Image.linear_gradient("L").resize(size).convert("RGB")
    return PictureWish(
        task="edit" if edit else "text-to-image",
        prompt="a red boat on a lake",
        negative_prompt=" " if cfg > 1 else None,
        references=(grey,) if edit else (),
        width=size[0],
        height=size[1],
        steps=steps,
        true_cfg_scale=cfg,
        lightning=steps in (4, 8) and cfg == 1,
        seed=7,
    )


@pytest.mark.parametrize("size", [(96, 96), (128, 64)], ids=str)
@pytest.mark.parametrize(("steps", "cfg"), [(4, 1.0), (8, 1.0), (40, 1.0), (12, 4.0)])
def test_rows_give_the_picture_that_weights_give(
    pair: Pair, steps: int, cfg: float, size: tuple[int, int]
) -> None:
    rows, weights = pair
    asked = wish(rows, steps, size, cfg)
    ours, theirs = (drawn(m, asked) for m in (rows, weights))
    assert ours.tobytes() == theirs.tobytes()
    assert len(set(ours.tobytes())) > 16  # a picture, not a flat one that anything would equal


def test_no_modulation_weight_is_left_after_open(pair: Pair) -> None:
    rows, weights = (model._parts.transformer for model in pair)
    modulation = sum(p.numel() for n, p in weights.named_parameters() if "_mod." in n)
    counted = [sum(p.numel() for p in model.parameters()) for model in (rows, weights)]
    assert modulation > counted[1] / 4
    assert counted[0] == counted[1] - modulation
    assert not [n for n, _ in rows.named_parameters() if "_mod" in n]
    assert not [n for n, _ in rows.named_buffers() if "_mod" in n]


def test_the_rows_of_a_loop_are_all_that_comes_to_the_device(pair: Pair) -> None:
    modulation = pair[0]._parts.modulation
    table = modulation._table  # type: ignore[attr-defined]
    modulation.load(torch.tensor([1000.0, 750.0]))
    loaded = modulation._loaded  # type: ignore[attr-defined]
    assert len(table.keys) == 716  # every bf16 value from 20 to 1000, as the transformer sees it
    assert loaded.shape[0] == 2


def test_rows_are_mapped_from_their_file_not_read_into_memory(pair: Pair) -> None:
    table = pair[0]._parts.modulation._table  # type: ignore[attr-defined]
    address = table.parts[0].rows.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= address < last:
            assert "/modulation-00000-" in line
            return
    raise AssertionError("the rows lie in no mapping")


def test_text_embeddings_are_those_of_the_whole_text_encoder(pair: Pair) -> None:
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        ours, theirs = (
            m._parts.text_encoder(input_ids=ids, output_hidden_states=True).hidden_states[-1]
            for m in pair
        )
    assert torch.equal(ours, theirs)
    assert pair[0]._parts.text_encoder.lm_head(ours).numel() == 0


def test_the_bundle_is_opened_from_a_path_alone(tmp_path: Path) -> None:
    parts = prepared.opened("tiny-image", tmp_path / "a")
    moved = (tmp_path / "a").rename(tmp_path / "b")
    again = prepared.opened("tiny-image", moved)
    for ours, theirs in zip(
        parts.transformer.parameters(), again.transformer.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
