"""A sound as a piece: 16-bit samples of one channel, encoded in the requested format."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from worker.media.piece import Encoded

Samples = NDArray[np.int16]

# Format -> its MIME type, and libsndfile's words for the file and what is in it.
SOUND_TYPES: Final[Mapping[str, str]] = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "pcm": "audio/pcm",
}
SOUND_FILES: Final[Mapping[str, tuple[str, str]]] = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "opus": ("OGG", "OPUS"),
}
# Formats whose files say what makes the same again; a WAV keeps the header that every reader knows.
WITH_TEXT: Final = frozenset({"flac", "mp3", "opus"})
LOUDEST: Final = 32767


def round_samples(values: NDArray[np.float32]) -> Samples:
    """Return values in [-1, 1] as 16-bit samples; what is outside becomes the loudest there is."""
    return np.rint(np.clip(values, -1, 1) * LOUDEST).astype(np.int16)


@dataclass(frozen=True, slots=True, eq=False)
class Sound:
    """Samples of one channel, `rate` of them per second."""

    samples: Samples = field(repr=False)
    rate: int

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate

    def encode(self, form: str, quality: int, text: Mapping[str, str]) -> Encoded:
        """Return it as wav, flac, mp3, opus (in Ogg) or pcm (16 bit, little-endian, no header).

        No format has a choice of `quality`. The bytes are the same each time, but for opus, whose
        stream has a random number.
        """
        del quality
        data = self._to_pcm() if form == "pcm" else self._to_file(form, text)
        facts = {
            "sample_rate": self.rate,
            "channels": 1,
            "duration_s": round(self.seconds, 3),
        }
        return Encoded(data, SOUND_TYPES[form], facts)

    def _to_pcm(self) -> bytes:
        return self.samples.astype("<i2").tobytes()

    def _to_file(self, form: str, text: Mapping[str, str]) -> bytes:
        import soundfile  # noqa: PLC0415 - loads libsndfile, which no picture needs

        container, coding = SOUND_FILES[form]
        file = io.BytesIO()
        opened: Any = soundfile.SoundFile(
            file, "w", samplerate=self.rate, channels=1, format=container, subtype=coding
        )
        with opened as track:
            if text and form in WITH_TEXT:
                track.comment = json.dumps(dict(text), ensure_ascii=False)
            track.write(self.samples)
        return file.getvalue()
