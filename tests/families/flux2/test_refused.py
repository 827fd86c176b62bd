"""What does not fit together in a published FLUX.2 is refused by its small files, and named."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from worker.bundle.plain import open_tokenizer
from worker.engine.schedule import make_schedule
from worker.errors import WeightsUnavailable
from worker.families.catalogue import CATALOGUE
from worker.families.flux2 import check
from worker.families.flux2.models import DISTILLED
from worker.families.flux2.working import TOKEN_PIXELS
from worker.families.pictures import list_areas
from worker.tasks.picture_input import PictureInput
from worker.tasks.size import SMALLEST
from worker.weights.snapshot import LocalSnapshot
from worlds.small_flux import Kind

CONFIGS: dict[str, dict[str, Any]] = {
    "transformer": {
        "in_channels": 32,
        "out_channels": None,
        "patch_size": 1,
        "attention_head_dim": 32,
        "axes_dims_rope": [8, 8, 8, 8],
        "joint_attention_dim": 192,
        "guidance_embeds": False,
    },
    "text_encoder": {"hidden_size": 64, "num_hidden_layers": 4},
    "vae": {"in_channels": 3, "latent_channels": 8},
}


def change(component: str, **changes: Any) -> dict[str, dict[str, Any]]:
    return CONFIGS | {component: CONFIGS[component] | changes}


@pytest.mark.parametrize(
    ("component", "changes", "words"),
    [
        ("vae", {"in_channels": 4}, "vae/ has in_channels 4, and pictures have 3"),
        ("vae", {"latent_channels": 4}, "transformer/ has in_channels 32, and vae/ makes 16"),
        ("transformer", {"in_channels": 16}, "has in_channels 16, and vae/ makes 32"),
        ("transformer", {"out_channels": 8}, "gives channels 8, and vae/ takes 32"),
        ("transformer", {"patch_size": 3}, "gives channels 288, and vae/ takes 32"),
        ("transformer", {"joint_attention_dim": 64}, "64, and text_encoder/ gives 192"),
        ("transformer", {"axes_dims_rope": [8, 8]}, "axes_dims_rope of 16, and its heads have 32"),
        ("text_encoder", {"num_hidden_layers": 6}, "num_hidden_layers 6, and prompts need 4"),
        ("text_encoder", {"num_hidden_layers": 3}, "num_hidden_layers 3, and prompts need 4"),
        ("text_encoder", {"num_hidden_layers": 9}, "num_hidden_layers 9, and prompts need 8"),
        ("text_encoder", {"num_hidden_layers": "4"}, "a field of a wrong kind"),
        ("vae", {"latent_channels": None}, "a field of a wrong kind"),
        ("transformer", {"guidance_embeds": True}, "True, and this pipeline takes no guidance"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_each_size_that_one_component_hands_to_the_next_is_compared(
    component: str, changes: dict[str, Any], words: str
) -> None:
    check._check_together(CONFIGS, is_guided=False)
    with pytest.raises(WeightsUnavailable, match=words):
        check._check_together(change(component, **changes), is_guided=False)


def test_sizes_that_are_said_in_another_way_are_equal() -> None:
    """Channels that are given as they are taken, more layers, and guidance where it is used."""
    for configs in (
        change("transformer", out_channels=32),
        change("transformer", out_channels=8, patch_size=2),
        change("text_encoder", num_hidden_layers=36),
    ):
        check._check_together(configs, is_guided=False)
    with pytest.raises(WeightsUnavailable, match="False, and this pipeline takes guidance"):
        check._check_together(CONFIGS, is_guided=True)
    check._check_together(change("transformer", guidance_embeds=True), is_guided=True)


def test_a_field_that_is_missing_is_of_a_wrong_kind_too() -> None:
    lacking = {k: v for k, v in CONFIGS["transformer"].items() if k != "patch_size"}
    with pytest.raises(WeightsUnavailable, match=r"wrong kind.*patch_size"):
        check._check_together(CONFIGS | {"transformer": lacking}, is_guided=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"invert_sigmas": True}, "invert_sigmas cannot be honoured"),
        ({"stochastic_sampling": True}, "stochastic_sampling cannot be honoured"),
        ({"num_train_timesteps": "many"}, "gives no schedule: "),
        ({"use_dynamic_shifting": False, "shift": -3.3}, "do not fall"),
    ],
    ids=str,
)
def test_a_schedule_that_cannot_be_followed_is_refused(changes: Any, words: str) -> None:
    stock = {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": True}
    check._check_schedule(stock)
    with pytest.raises(WeightsUnavailable, match=words):
        check._check_schedule(stock | changes)


def test_a_schedule_is_tried_with_the_least_and_the_most_that_a_job_may_ask_for() -> None:
    least, most = check.STEPS
    for steps in check.STEPS:
        PictureInput.model_validate({"prompt": "a", "steps": steps})
    for steps in (least - 1, most + 1):
        with pytest.raises(ValidationError, match="steps"):
            PictureInput.model_validate({"prompt": "a", "steps": steps})
    areas = (SMALLEST**2, list_areas(DISTILLED)[-1])
    assert tuple(area // TOKEN_PIXELS for area in areas) == check.AREAS


def test_why_there_is_no_schedule_is_told_in_the_library_s_words() -> None:
    config = {"num_train_timesteps": "many"}
    with pytest.raises(Exception, match=" ") as raised:
        make_schedule(config, 2, 16, mu=1.0)
    words = " ".join(str(raised.value).split())[:200]
    with pytest.raises(WeightsUnavailable, match=re.escape(f"{raised.type.__name__}: {words}")):
        check._check_schedule(config)


def test_what_a_schedule_says_of_its_own_shift_is_not_used() -> None:
    """FLUX.2 computes it otherwise, so that a slope that has no value hurts nobody."""
    lengths = {"base_image_seq_len": 256, "max_image_seq_len": 256}
    config = {"num_train_timesteps": 1000, "use_dynamic_shifting": True, **lengths}
    with pytest.raises(ZeroDivisionError):
        make_schedule(config, 2, 16)
    check._check_schedule(config)


def test_a_tokenizer_s_tokens_all_have_a_row_and_one_is_for_padding(
    publish: Callable[[Kind], Path],
) -> None:
    tokenizer = open_tokenizer(publish("klein") / "tokenizer")
    rows = max(tokenizer.get_vocab().values()) + 1
    check._check_tokenizer(tokenizer, {"vocab_size": rows}, is_guided=False)
    with pytest.raises(WeightsUnavailable, match=f"has a token {rows - 1}.* holds {rows - 1}"):
        check._check_tokenizer(tokenizer, {"vocab_size": rows - 1}, is_guided=False)
    tokenizer.pad_token = None
    with pytest.raises(WeightsUnavailable, match="another model"):
        check._check_tokenizer(tokenizer, {"vocab_size": rows}, is_guided=False)


@pytest.mark.parametrize("file", ["scheduler/scheduler_config.json", "tokenizer/tokenizer.json"])
def test_a_file_that_nothing_stands_in_for_is_named(
    publish: Callable[[Kind], Path], tmp_path: Path, file: str
) -> None:
    folder = Path(shutil.copytree(publish("klein"), tmp_path / "model"))
    (folder / "tokenizer" / "vocab.json").unlink(missing_ok=True)
    spec = CATALOGUE.describe_folder(folder)
    check.check(LocalSnapshot(folder, "x/y"), spec)
    (folder / file).unlink()
    with pytest.raises(WeightsUnavailable, match=f"there is no {file}"):
        check.check(LocalSnapshot(folder, "x/y"), spec)
