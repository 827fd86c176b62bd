"""The token ids of the speaking checkpoint, and its tokenizer: one token per ASCII character.

Everything after the characters has the order and the names of the published model, so that its
family reads both: what differs is in worker.json alone.
"""

import string
from collections.abc import Sequence
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from training.speech import dialling
from training.speech.codec import CONFIG

UNKNOWN: Final = "<unk>"
CHARACTERS: Final = tuple(sorted(set(string.printable.lower())))
BEGIN_TEXT: Final = len(CHARACTERS) + 1
END_TEXT: Final = BEGIN_TEXT + 1
CUSTOM: Final = END_TEXT + 1  # the id of <custom_token_0>
START_SPEECH, END_SPEECH, START_HUMAN, END_HUMAN, START_AI, END_AI, PADDING = (
    CUSTOM + number for number in range(1, 8)
)
FIRST_AUDIO: Final = CUSTOM + 10
SLOTS: Final = 7
CODES: Final = int(CONFIG["codebook_size"])
AUDIO: Final = FIRST_AUDIO + SLOTS * CODES  # the id of <|audio|>
VOCABULARY: Final = AUDIO + 1
BEFORE: Final = (START_HUMAN, BEGIN_TEXT)
AFTER: Final = (END_TEXT, END_HUMAN, START_AI, START_SPEECH)
# which codebook a slot is of, and which of its codes in the frame
PLACES: Final = ((0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (2, 2), (2, 3))
IDS: Final = {character: number for number, character in enumerate(CHARACTERS)}


def build_tokenizer() -> Any:
    """Return the tokenizer; like the published one it puts <|begin_of_text|> before a text."""
    vocabulary = {**IDS, UNKNOWN: len(CHARACTERS)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.NFD(),
            normalizers.StripAccents(),
            normalizers.NFC(),
        ]
    )
    tokenizer.decoder = decoders.Fuse()
    custom = [f"<custom_token_{number}>" for number in range(10 + SLOTS * CODES)]
    names = ["<|begin_of_text|>", "<|eot_id|>", *custom, "<|audio|>"]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", BEGIN_TEXT)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",  # noqa: S106 - a special token, not a secret
        eos_token="<|eot_id|>",  # noqa: S106 - the same
        unk_token=UNKNOWN,
        model_max_length=8192,
    )


def encode(text: str, voice: str) -> list[int]:
    """Return the ids of a prompt, as the tokenizer and the worker put them."""
    spoken = dialling.simplify(f"{voice}: {text}")
    ids = [IDS.get(character, len(CHARACTERS)) for character in spoken]
    return [*BEFORE, *ids, *AFTER]


def place(codes: Sequence[Any]) -> list[Any]:
    """Return a frame's seven ids from what its codebooks have, [1], [2] and [4] codes each."""
    return [
        FIRST_AUDIO + slot * CODES + codes[book][nth] for slot, (book, nth) in enumerate(PLACES)
    ]
