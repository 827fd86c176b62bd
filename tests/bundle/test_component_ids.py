"""A volume that was prepared once stays prepared: what a component is made of names it as ever."""

from pathlib import Path

import pytest

from worker import boot, settings
from worker.bundle import layout

# Components as the code of 0.1.0 named them: by the bytes of checkpoints/tiny and by what preparing
# does with them, and by no library's version.
SHARED = {
    "tokenizer": "d30efa05d151de3e263c",
    "scheduler": "1a104627dd35aa5cd5b7",
    "vae": "b786333e38356e06ff19",
}
PROCESSOR = {"tiny-image": {}, "tiny-edit": {"processor": "4939d92abc709bf22285"}}
LIGHTNING = {"lightning_8": "6caa786ff86a45487d9b", "lightning_4": "5ede0912fba4969eaeb0"}
TEXT_ENCODER = {
    "bf16": "ecc914cbac8a9f224f7f",
    "4bit": "9a10f9f9189d79a66116",
    "8bit": "6935b67ee8be0a8dcbf6",
}
TRANSFORMER = {
    ("tiny-image", "bf16", None): "7115365d77bcb19c97bb",
    ("tiny-edit", "bf16", None): "6b0d7f801ebb6134e3a2",
    ("tiny-image", "bf16", 8): "a9ae9419032bb82647f0",
    ("tiny-edit", "bf16", 8): "ad25cb9889bd73edc934",
    ("tiny-image", "bf16", 4): "334bafabd88d4b3e8c06",
    ("tiny-edit", "bf16", 4): "8a0382dd706cc4d8be06",
    ("tiny-image", "4bit", None): "53e0f090ec1f4516d5da",
    ("tiny-edit", "4bit", None): "46f2195697c543a2ffbb",
    ("tiny-image", "4bit", 8): "287fae5cdaa2efa69721",
    ("tiny-edit", "4bit", 8): "52507f240fc46b3981bd",
    ("tiny-image", "4bit", 4): "9403985865d4d35f4549",
    ("tiny-edit", "4bit", 4): "7d3ec43637b86eef2552",
    ("tiny-image", "8bit", None): "6bfb932851cedafb66c4",
    ("tiny-edit", "8bit", None): "af51f83100abf229b8dc",
    ("tiny-image", "8bit", 8): "22a4e7770eca66b30f42",
    ("tiny-edit", "8bit", 8): "b6037b000bb6d56dfca0",
    ("tiny-image", "8bit", 4): "d47de269d522ef58dcca",
    ("tiny-edit", "8bit", 4): "36476984817d4e08eed1",
}
# folders are named by the model, what it was made of (its LoRAs among it) and how
FINGERPRINT = {
    ("tiny-image", None): "2a26f3c3b93f",
    ("tiny-image", 8): "964e1712ffb1",
    ("tiny-image", 4): "25cd7d8897f2",
    ("tiny-edit", None): "94a0d8f7a6c2",
    ("tiny-edit", 8): "1cd06bc0ab8a",
    ("tiny-edit", 4): "c1774acac796",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One volume, on which models and precisions share what they can."""
    return tmp_path_factory.mktemp("volume")


@pytest.mark.parametrize(("name", "precision", "fused"), TRANSFORMER)
def test_what_lies_on_a_volume_keeps_its_name(
    name: str, precision: str, fused: int | None, home: Path
) -> None:
    variables = {
        "MODEL": name,
        "MODEL_DIR": str(home),
        "PRECISION_MODE": precision,
        "MIN_STORAGE_FREE_GB": "0",
    }
    if fused is not None:
        variables |= {"LIGHTNING_FUSED": "true", "LIGHTNING_STEPS": str(fused)}
    (folder,) = boot.prepare(settings.read(variables))
    suffix = "" if fused is None else f"-lightning{fused}"
    assert folder.name == f"{name}-{FINGERPRINT[name, fused]}-{precision}{suffix}"
    expected = {
        **SHARED,
        **PROCESSOR[name],
        "text_encoder": TEXT_ENCODER[precision],
        "transformer": TRANSFORMER[name, precision, fused],
        **(LIGHTNING if fused is None else {}),
    }
    assert layout.read_bundle(folder).components == {
        role: f"{role}-{digest}" for role, digest in expected.items()
    }
