"""The embedded checkpoint that speaks: two small repositories of the published classes."""

import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from training.speech import layout, listening, texts, train_codec, train_speaker
from training.speech.codec import CONFIG, Snac
from training.speech.dialling import VOICES, count_frames, dial, sound

ROOT = Path(__file__).parents[2] / "checkpoints" / "tiny-speech"


def read(file: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / file).read_text())
    return content


@pytest.fixture(scope="module")
def codec() -> Snac:
    codec = Snac(read("snac/config.json"))
    codec.load_state_dict(torch.load(ROOT / "snac" / "pytorch_model.bin", weights_only=True))
    return codec.eval()


def test_it_is_under_8_megabytes_of_real_files() -> None:
    paths = [path for path in ROOT.rglob("*") if not path.is_dir()]
    assert not any(path.is_symlink() for path in paths)
    assert sum(path.stat().st_size for path in paths) < 8_000_000


def test_it_says_its_ids_as_its_training_had_them() -> None:
    about = read("orpheus/worker.json")
    assert about["first_audio"] == layout.FIRST_AUDIO
    assert about["codebook"] == layout.CODES == CONFIG["codebook_size"]
    assert about["stop"] == layout.END_SPEECH
    assert about["prompt"] == {"before": list(layout.BEFORE), "after": list(layout.AFTER)}
    assert about["voices"] == list(VOICES)
    assert about["sample_rate"] == CONFIG["sampling_rate"]
    assert read("snac/config.json") == CONFIG


def test_its_language_model_is_of_the_published_class_and_tied_in_bf16() -> None:
    config = read("orpheus/config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rope_parameters"]["rope_type"] == "llama3"
    assert config["tie_word_embeddings"]
    with safe_open(ROOT / "orpheus" / "model.safetensors", "pt") as file:
        names = list(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {"BF16"}
    assert "lm_head.weight" not in names


def test_the_snac_package_reads_it_and_makes_the_same_codes_and_sound(codec: Snac) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses torch.jit.script
        from snac import SNAC  # noqa: PLC0415 - where its warning is ignored

        theirs = SNAC.from_pretrained(str(ROOT / "snac"))
    real = torch.from_numpy(sound("5 1", "steady"))[None, None]
    with torch.no_grad():
        codes = codec.encode(real)
        assert all(map(torch.equal, theirs.encode(real), codes))
        torch.manual_seed(1)
        ours = codec.decode(codes)
        torch.manual_seed(1)
        assert torch.allclose(theirs.decode(codes), ours, atol=1e-6)


def test_its_codec_alone_keeps_every_key_and_voice(codec: Snac) -> None:
    assert train_codec.read_back(codec, 12, torch.device("cpu")) == 1


def test_with_another_loop_it_dials_texts_that_it_never_saw(codec: Snac) -> None:
    model = train_speaker.build()
    with safe_open(ROOT / "orpheus" / "model.safetensors", "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    assert model.load_state_dict(weights, strict=False).missing_keys == ["lm_head.weight"]
    model.to(torch.bfloat16).eval()
    rng = random.Random(31)
    for voice in VOICES:
        text = texts.pick_text(rng, 6, held_out=True)
        limit = 4 + sum(count_frames(key, voice) for key in dial(text))
        (ids,) = listening.say(model, [layout.encode(text, voice)], limit, seed=1)
        assert train_codec.is_right(listening.sound_of(codec, ids), dial(text), voice), text
