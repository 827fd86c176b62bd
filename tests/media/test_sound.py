"""A sound comes back from its file as it went in."""

import io
import json
import wave
from typing import Any

import numpy as np
import pytest
import soundfile

from worker.media.sound import SOUND_TYPES, Sound, round_samples

RATE = 24_000


def a_sound(count: int = 20 * 2048) -> Sound:
    times = np.arange(count) / RATE
    return Sound(round_samples((0.5 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)), RATE)


def decode(data: bytes) -> tuple[Any, int]:
    samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    return samples, rate


def test_values_become_samples_by_rounding_and_the_loudest_where_they_are_too_large() -> None:
    values = np.array([0, 1, -1, 2, -3, 0.5, 1.4 / 32767, -1.6 / 32767], np.float32)
    assert round_samples(values).tolist() == [0, 32767, -32767, 32767, -32767, 16384, 1, -2]


@pytest.mark.parametrize("form", ["wav", "flac"])
def test_what_loses_nothing_has_the_very_samples(form: str) -> None:
    sound = a_sound()
    samples, rate = decode(sound.encode(form, 95, {}).data)
    assert rate == RATE
    assert np.array_equal(samples, sound.samples)


def test_pcm_is_the_samples_alone() -> None:
    sound = a_sound(2048)
    encoded = sound.encode("pcm", 95, {"prompt": "x"})
    assert encoded.data == sound.samples.astype("<i2").tobytes()
    assert encoded.mime_type == "audio/pcm"


@pytest.mark.parametrize("count", [2048, 20 * 2048])
@pytest.mark.parametrize("form", ["mp3", "opus"])
def test_what_loses_something_has_as_many_samples_and_the_same_tone(form: str, count: int) -> None:
    samples, rate = decode(a_sound(count).encode(form, 95, {}).data)
    assert (rate, len(samples)) == (RATE, count)
    spectrum = np.abs(np.fft.rfft(samples))
    assert abs(spectrum.argmax() * RATE / count - 440) < RATE / count


@pytest.mark.parametrize("form", ["wav", "flac", "mp3", "pcm"])
def test_the_same_sound_has_the_same_bytes(form: str) -> None:
    first, second = (a_sound().encode(form, 95, {"seed": "1"}).data for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("form", "mime_type"),
    [
        ("wav", "audio/wav"),
        ("flac", "audio/flac"),
        ("mp3", "audio/mpeg"),
        ("opus", "audio/ogg"),
        ("pcm", "audio/pcm"),
    ],
)
def test_a_reply_says_how_long_it_is_and_of_which_type(form: str, mime_type: str) -> None:
    assert form in SOUND_TYPES
    encoded = a_sound(1000).encode(form, 95, {})
    assert encoded.mime_type == mime_type
    assert encoded.facts == {"sample_rate": RATE, "channels": 1, "duration_s": 0.042}


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("wav", ("WAV", "PCM_16")),
        ("flac", ("FLAC", "PCM_16")),
        ("mp3", ("MP3", "MPEG_LAYER_III")),
        ("opus", ("OGG", "OPUS")),
    ],
)
def test_a_file_is_of_the_kind_that_its_name_says(form: str, kind: tuple[str, str]) -> None:
    with soundfile.SoundFile(io.BytesIO(a_sound().encode(form, 95, {}).data)) as track:
        assert (track.format, track.subtype) == kind
        assert (track.channels, track.samplerate) == (1, RATE)


@pytest.mark.parametrize("form", ["flac", "mp3", "opus"])
def test_a_file_says_what_makes_it_again(form: str) -> None:
    data = a_sound().encode(form, 95, {"prompt": "né", "seed": "7"}).data
    with soundfile.SoundFile(io.BytesIO(data)) as track:
        assert json.loads(track.comment) == {"prompt": "né", "seed": "7"}
        assert "né" in track.comment


def test_a_wav_has_the_header_that_every_reader_knows() -> None:
    sound = a_sound()
    data = sound.encode("wav", 95, {"prompt": "x"}).data
    assert len(data) == 44 + 2 * len(sound.samples)
    with wave.open(io.BytesIO(data)) as track:
        assert (track.getnchannels(), track.getsampwidth()) == (1, 2)
