"""Two families are added by a test alone, and served by boot through the real loop."""

import base64
import io
import json
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from worlds.pod import Pod

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "worlds.noise")


@pytest.fixture(scope="module")
def pod() -> Iterator[Pod]:
    """A platform with one worker that serves the tone and the noise."""
    with Pod() as pod, pod.worker(COMMAND, {"MODEL": "tone,noise"}, cwd=ROOT):
        yield pod


def replied(pod: Pod, job_input: dict[str, Any]) -> dict[str, Any]:
    """Return the output of one job."""
    job = pod.answer(pod.submit(job_input))
    assert isinstance(job.output, dict), job.error
    return job.output


def test_speech_comes_back_as_sound_with_what_makes_it_again(pod: Pod) -> None:
    reply = replied(pod, {"task": "speech", "text": "hello", "seed": 7})
    assert reply["model"] == {"id": "tone", "revision": "1", "precision": "none"}
    assert (reply["prompt"], reply["task"], reply["seed"]) == ("hello", "speech", 7)
    assert reply["warnings"] == []
    assert list(reply["timings_ms"]) == [
        "fetch",
        "text",
        "generate",
        "decode",
        "encode",
        "deliver",
        "total",
    ]
    assert reply["timings_ms"]["generate"] == 5
    sound = reply["audio"]
    assert (sound["mime_type"], sound["sample_rate"]) == ("audio/wav", 24_000)
    with wave.open(io.BytesIO(base64.b64decode(sound["base64"]))) as track:
        assert track.getframerate() == sound["sample_rate"]
        assert track.getnframes() / track.getframerate() == sound["duration_s"] == 0.5
    again = replied(pod, {"model": "tone", "input": "hello", "seed": 7})
    assert again["audio"] == sound
    other = replied(pod, {"voice": "Fork", "text": "hello", "seed": 8})
    assert other["voice"] == "fork"
    assert other["audio"]["base64"] != sound["base64"]


def test_a_streamed_speech_is_posted_in_parts_and_its_reply_is_the_whole(pod: Pod) -> None:
    job = pod.answer(pod.submit({"voice": "fork", "text": "hello", "seed": 7, "stream": True}))
    reply: Any = job.output
    whole = replied(pod, {"voice": "fork", "text": "hello", "seed": 7, "format": "pcm"})
    items = [json.loads(one.data)["output"] for one in pod.seen("stream", job.id)]
    assert [item["index"] for item in items] == [0, 1, 2]
    assert {(item["mime_type"], item["sample_rate"]) for item in items} == {("audio/pcm", 24_000)}
    joined = b"".join(base64.b64decode(item["base64"]) for item in items)
    assert joined == base64.b64decode(whole["audio"]["base64"])
    with wave.open(io.BytesIO(base64.b64decode(reply["audio"]["base64"]))) as track:
        assert track.readframes(track.getnframes()) == joined
    assert reply["warnings"] == []


def test_speech_is_checked_by_its_own_fields(pod: Pod) -> None:
    wrong = replied(pod, {"model": "tone", "prompt": 5, "output_format": "png", "width": 64})
    assert wrong["error_code"] == "INVALID_INPUT"
    assert wrong["details"] == [
        {"field": "prompt", "message": "must be a string (got 5)"},
        {
            "field": "output_format",
            "message": "must be 'wav', 'flac', 'mp3', 'opus' or 'pcm' (got 'png')",
        },
        {"field": "width", "message": "is for pictures, not for speech"},
    ]
    assert "warnings" not in wrong


def test_a_second_family_of_pictures_is_asked_as_the_first(pod: Pod) -> None:
    reply = replied(pod, {"prompt": "red", "seed": 3, "width": 100, "height": 64})
    assert reply["model"]["id"] == "noise"
    assert reply["adjusted"] == {"width": [100, 96]}
    picture = Image.open(io.BytesIO(base64.b64decode(reply["images"][0]["base64"])))
    assert picture.size == (96, 64)
    assert picture.info["model"] == "noise"
    red, green, blue = picture.convert("RGB").resize((1, 1)).getpixel((0, 0))  # type: ignore[misc] # RGB gives three
    assert red > green + 100
    assert red > blue + 100


def test_capabilities_have_both(pod: Pod) -> None:
    answer = replied(pod, {"op": "capabilities"})
    tone, noise = answer["models"]
    assert (tone["tasks"], tone["sample_rate"]) == (["speech"], 24_000)
    assert (noise["tasks"], noise["area"]) == (["text-to-image"], 64 * 64)
    rows = {
        row["field"]: row for row in answer["input"] if "speech" in row.get("tasks", ["speech"])
    }
    assert rows["prompt"]["accepts"].startswith("what to say")
    assert rows["output_format"]["default"] == "wav"
    assert tone["voices"] == ["fork"]
    assert "width" not in rows


def test_a_worker_that_speaks_alone_needs_no_task_to_be_named() -> None:
    with Pod() as pod, pod.worker(COMMAND, {"MODEL": "tone"}, cwd=ROOT):
        reply = replied(pod, {"text": "hi"})
        assert reply["task"] == "speech"
        assert reply["audio"]["duration_s"] == pytest.approx(0.2)
        missing = replied(pod, {"task": "edit", "prompt": "x", "image": "https://a.test/x.png"})
    assert missing["error_code"] == "UNSUPPORTED_TASK"
    assert missing["details"][0]["message"].startswith("no model of this worker can do edit")


@pytest.mark.parametrize("name", ["tone.py", "noise.py"])
def test_a_family_is_under_80_lines_of_code(name: str) -> None:
    lines = (ROOT / "worlds" / name).read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) for line in lines) < 80
