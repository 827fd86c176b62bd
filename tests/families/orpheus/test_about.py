"""What a model's worker.json says of it is used, and what cannot be true is refused."""

import re
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from worker import settings
from worker.bundle.layout import Damaged
from worker.engine.key_values import KeyValues
from worker.errors import WeightsUnavailable
from worker.families.orpheus.models import (
    SLOTS,
    SNAC_24,
    SPEECH_TABLE,
    Speaking,
    TokenIds,
    read_speaking,
)
from worker.families.orpheus.offer import describe_speech
from worker.families.orpheus.opening import _map_text
from worker.families.orpheus.parts import (
    TEXT_TABLE,
    count_audio_bytes,
    count_text_bytes,
    describe_rows,
)
from worker.families.orpheus.prompt import find_unknown, make_prompt, tokenise_text
from worker.families.orpheus.recipe import count_kept, count_room, learn, plan_speech
from worker.tasks.speech import SpeechOffer
from worlds import speaking
from worlds.snac_shape import PUBLISHED_SNAC

KNOWN = Speaking(("tara",), ("laugh",))
PROMPT = {"prompt": {"before": [1], "after": [0]}}
# What a model may say, the smallest of each, with what comes of it.
LEAST: dict[str, Any] = {
    "first_audio": 1,
    "codebook": 1,
    "stop": 0,
    "prompt": {"before": [], "after": [0]},
    "sample_rate": 1,
    "passage": 1,
    "spare": 1,
}


def test_where_it_says_nothing_the_table_counts() -> None:
    assert read_speaking({}, KNOWN) == KNOWN


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("voices", ["a", "b"], "voices"),
        ("tags", ["sigh"], "tags"),
        ("sample_rate", 16_000, "rate"),
        ("passage", 99, "passage"),
        ("pace", 0.5, "pace"),
        ("slowest", 3, "slowest"),
        ("spare", 7, "spare"),
        ("temperature", 0.5, "temperature"),
        ("top_p", 0.5, "top_p"),
        ("repetition_penalty", 1.5, "repetition_penalty"),
    ],
)
def test_each_thing_that_it_says_replaces_one_and_no_other(
    key: str, value: Any, field: str
) -> None:
    found = asdict(read_speaking({key: value}, KNOWN))
    assert found.pop(field) == (tuple(value) if isinstance(value, list) else value)
    assert found == {name: one for name, one in asdict(KNOWN).items() if name != field}


def test_the_table_has_a_voice_for_every_published_model_and_each_name_is_a_word() -> None:
    voices = {row.name: row.defaults.voices for row in SPEECH_TABLE if row.embedded is None}
    assert all(voices.values())
    assert not [name for names in voices.values() for name in names if set(name) & set(" _<>:")]
    tags = {row.name: row.defaults.tags for row in SPEECH_TABLE if row.defaults.tags}
    assert set(tags) == {"orpheus", "orpheus-en"}
    assert all(re.fullmatch("[a-z]+", tag) for names in tags.values() for tag in names)


def test_the_codec_is_one_commit_of_its_repository() -> None:
    assert re.fullmatch("[0-9a-f]{40}", SNAC_24.revision)


def test_the_least_of_everything_is_accepted() -> None:
    found = read_speaking(LEAST, KNOWN)
    assert found.ids == TokenIds(1, 1, 0, (), (0,))
    assert found.ids.end == 1 + SLOTS
    assert (found.rate, found.passage, found.spare) == (1, 1, 1)


@pytest.mark.parametrize(
    "key",
    [
        *("first_audio", "codebook", "sample_rate", "passage", "spare"),
        *("pace", "slowest", "temperature", "top_p", "repetition_penalty"),
    ],
)
@pytest.mark.parametrize("value", [0, "-1"])
def test_what_must_be_above_0_is_refused_at_0(key: str, value: Any) -> None:
    with pytest.raises(WeightsUnavailable, match="above 0"):
        read_speaking({**LEAST, key: value}, KNOWN)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_number_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(WeightsUnavailable, match="above 0"):
        read_speaking({"temperature": value}, KNOWN)


@pytest.mark.parametrize(
    "wrong",
    [
        {"stop": 1},
        {"prompt": {"before": [1], "after": [0]}},
        {"prompt": {"before": [], "after": [0, 1]}},
        {"prompt": {"before": [], "after": []}},
    ],
    ids=str,
)
def test_no_id_of_a_prompt_and_no_stop_is_one_of_audio(wrong: dict[str, Any]) -> None:
    with pytest.raises(WeightsUnavailable, match="below first_audio"):
        read_speaking({**LEAST, **wrong}, KNOWN)


@pytest.mark.parametrize(
    "wrong",
    [{"voices": 5}, {"prompt": [1]}, {"pace": "fast"}, {"stop": None}, {"passage": []}],
    ids=str,
)
def test_a_value_of_a_wrong_kind_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(WeightsUnavailable, match="wrong kind"):
        read_speaking(wrong, KNOWN)


@pytest.mark.parametrize(("text", "frames"), [("", 60), ("abc", 67), ("a" * 100, 310)])
def test_a_passage_may_have_more_frames_the_longer_its_text_is(text: str, frames: int) -> None:
    assert Speaking().limit_frames(text) == frames


def test_the_ids_of_text_end_where_those_of_audio_begin() -> None:
    tokenizer = speaking.make_tokenizer()
    highest = tokenizer.convert_tokens_to_ids("u")  # of what is tried
    ids = replace(speaking.IDS, first=highest + 1)
    assert find_unknown(tokenizer, ids) == []
    assert len(find_unknown(tokenizer, replace(ids, first=highest))) == 1


def test_what_a_model_says_of_itself_is_what_it_offers() -> None:
    said = Speaking(("a",), ("b",), 16_000, passage=99, pace=0.5, temperature=0.4, top_p=0.3)
    said = replace(said, repetition_penalty=1.5)
    served = describe_speech(
        replace(SPEECH_TABLE[0], defaults=said),
        settings.read({}),
        revision="newest",
        precision="8bit",
        lightning=(),
        working=lambda pixels: 7 + pixels,
        left=None,
    )
    offer = served.offers["speech"]
    for field in fields(SpeechOffer):
        assert getattr(offer, field.name) == getattr(said, field.name)
    assert (served.working, served.kept) == (7, count_kept(said))
    assert (served.revision, served.precision) == ("newest", "8bit")


def test_what_a_model_keeps_between_jobs_is_counted_as_it_is_allocated() -> None:
    """Of the published one: 28 layers of 8 heads of 128, for one row and for four."""
    length, nowhere = count_room(Speaking()), torch.device("meta")
    kept = [
        KeyValues(28, rows, 8, length, 128, dtype=torch.bfloat16, device=nowhere) for rows in (1, 4)
    ]
    sizes = [28 * sum(one.nbytes for one in each.read(0, length)) for each in kept]
    assert count_kept(Speaking()) == sum(sizes)


def test_its_maker_asks_for_consent_and_the_embedded_one_for_no_gpu() -> None:
    for row in SPEECH_TABLE:
        assert row.is_gated == row.repository.startswith("canopylabs/")
        assert row.needs_gpu == (row.embedded is None)
        assert row.licence == ("llama3.2" if row.embedded is None else "apache-2.0")
        assert row.tasks == ("speech",)


def test_a_tokenizer_that_makes_nothing_of_a_text_is_of_another_model() -> None:
    nothing = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE(vocab={}, merges=[])))
    (reason,) = find_unknown(nothing, speaking.IDS)
    assert reason.startswith(f"a text has the id {speaking.IDS.first},")


def test_a_word_of_a_text_that_would_end_speech_is_of_another_model() -> None:
    """Where it is a word as any other, and not one that no text can say."""
    known = {character: number for number, character in enumerate(speaking.CHARACTERS)}
    words = Tokenizer(BPE(vocab=known, merges=[], unk_token="?"))
    words.add_tokens(["<custom_token_2>"])
    ids = replace(speaking.IDS, first=len(known) + 1, stop=len(known))
    found = find_unknown(PreTrainedTokenizerFast(tokenizer_object=words), ids)
    assert found == ["a text can have the id that ends speech"]


@pytest.mark.parametrize(("voice", "spoken"), [("tara", "tara: one"), (None, "one")])
def test_a_prompt_has_a_voice_before_its_text_if_there_are_several(
    voice: str | None, spoken: str
) -> None:
    tokenizer, ids = speaking.make_tokenizer(), speaking.IDS
    text = tokenizer.convert_tokens_to_ids(list(spoken))
    assert make_prompt(tokenizer, ids, voice, "one") == [*ids.before, *text, *ids.after]


def test_a_mark_that_a_tokenizer_sets_before_every_text_is_not_in_a_prompt_s() -> None:
    """As Llama's own does: a prompt begins with the model's own ids."""
    plain, marked = speaking.make_tokenizer(), speaking.make_tokenizer()
    mark = marked.convert_ids_to_tokens(0)
    marked.backend_tokenizer.post_processor = TemplateProcessing(
        single=[mark, "$A"], special_tokens=[(mark, 0)]
    )
    assert marked("one")["input_ids"] != plain("one")["input_ids"]
    assert tokenise_text(marked, "one") == tokenise_text(plain, "one")


@pytest.mark.parametrize(("spare", "room"), [(375, 8192), (376, 9216)])
def test_the_longest_passage_has_room_to_its_limit_and_a_frame_more(spare: int, room: int) -> None:
    """Two tokens a character, a hundred around them, in whole steps of what a GPU reads."""
    said = Speaking(passage=280, slowest=2.5, spare=spare)
    assert (660 + SLOTS * (said.limit_frames("x" * 280) + 1)) - 8192 == SLOTS * (spare - 375)
    assert count_room(said) == room


def test_a_speech_takes_what_is_kept_and_what_a_step_needs() -> None:
    row = SPEECH_TABLE[0]
    assert plan_speech(row, settings.read({}), "bf16") > count_kept(row.defaults)


def test_which_rows_of_the_embedding_a_bundle_has_is_part_of_what_it_is() -> None:
    """Those of its own worker.json, else those of the released models."""
    own: Any = SimpleNamespace(facts={"first_audio": 9, "codebook": 3, "stop": 2, **PROMPT})
    released: Any = SimpleNamespace(facts={})
    assert describe_rows(own) == {"first": 9, "codes": 3, "stop": 2}
    assert describe_rows(released) == {"first": 128_266, "codes": 4096, "stop": 128_258}


@pytest.mark.parametrize(("head", "copies"), [({}, 1), ({"lm_head.weight": None}, 2)], ids=str)
def test_rows_of_audio_count_twice_where_a_head_is_published_and_the_stop_once(
    head: dict[str, Any], copies: int
) -> None:
    """In bf16, as those of text, which stay on the disk."""
    published: Any = SimpleNamespace(
        facts={"first_audio": 9, "codebook": 3, "stop": 2, **PROMPT},
        configs={"language": {"hidden_size": 5}},
        shards={"language": [SimpleNamespace(header={"model.norm.weight": None, **head})]},
    )
    assert count_text_bytes(published) == 9 * 5 * 2
    assert count_audio_bytes(published) == (copies * SLOTS * 3 + 1) * 5 * 2


def test_the_ids_of_the_released_models_are_llama_s_and_their_tokenizer_s_own() -> None:
    """A text begins with 128000 and a turn ends with 128009; 128256 is <custom_token_0>."""
    own = [128_256 + number for number in range(11)]
    ids = TokenIds()
    assert (ids.first, ids.stop) == (own[10], own[2])
    assert ids.before == (own[3], 128_000)
    assert ids.after == (128_009, own[4], own[5], own[1])
    assert (ids.codes, Speaking().rate) == (
        PUBLISHED_SNAC["codebook_size"],
        PUBLISHED_SNAC["sampling_rate"],
    )


def test_a_released_model_speaks_as_its_maker_lets_it_speak() -> None:
    """And as fast as its users found: of 547 characters a second has 11.7 frames, in 25.7 to 58 s.

    A passage is a sentence or two.
    """
    said, frames = Speaking(), 24_000 / 2048
    assert (said.temperature, said.top_p, said.repetition_penalty) == (0.6, 0.8, 1.1)
    assert said.pace == pytest.approx((25.7 + 58) / 2 * frames / 547, abs=0.01)
    assert said.passage == 280


def test_a_worker_json_completes_what_the_table_says_of_a_model() -> None:
    row = SPEECH_TABLE[0]
    assert learn(row, {}) == row
    assert learn(row, {"pace": 0.5}).defaults == replace(row.defaults, pace=0.5)
    assert learn(replace(row, defaults=None), {"pace": 0.5}).defaults == Speaking(pace=0.5)


def test_a_bundle_without_the_embedding_of_text_is_damaged(tmp_path: Path) -> None:
    save_file({"other": torch.zeros(1)}, tmp_path / "a.safetensors")
    save_file({TEXT_TABLE: torch.ones(2, 3)}, tmp_path / "b.safetensors")
    files = sorted(tmp_path.iterdir())
    assert torch.equal(_map_text(files, tmp_path), torch.ones(2, 3))
    with pytest.raises(Damaged, match="no embedding of text"):
        _map_text(files[:1], tmp_path)
