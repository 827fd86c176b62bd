"""What is checked of a published model before it is downloaded: small files and headers."""

from collections.abc import Mapping
from typing import Any, Final

from worker.bundle import declared, fit, headers, refuse
from worker.bundle.expected import CONFIGURATION, Expected, build_expected
from worker.bundle.headers import Shard
from worker.bundle.plain import open_tokenizer, try_opening
from worker.bundle.recipe import Part, Published
from worker.errors import WeightsUnavailable
from worker.families.orpheus.models import CLASS, Speaking, read_speaking
from worker.families.orpheus.parts import CODEC, LANGUAGE, LM_HEAD, TOKENIZER
from worker.families.orpheus.prompt import find_unknown
from worker.weights.snapshot import Snapshot
from worker.weights.spec import ModelSpec

TOKENIZER_FILE: Final = "tokenizer.json"


def check(snapshot: Snapshot, spec: ModelSpec) -> Published:
    """Read a model's small files and headers and check everything that they show.

    Raises WeightsUnavailable naming the part and the file.
    """
    with refuse.name_repository(snapshot):
        return _check(snapshot, spec)


def _check(snapshot: Snapshot, spec: ModelSpec) -> Published:
    configs = {
        part.role: refuse.read_object(snapshot, f"{part.role}/{CONFIGURATION}")
        for part in (LANGUAGE, CODEC)
    }
    refuse.check_configured({}, configs, spec)
    shards = {
        part.role: refuse.read_shards(snapshot, part.role, spec, part.pickle)
        for part in (LANGUAGE, CODEC)
    }
    declared.check_class(f"language/{CONFIGURATION}", configs["language"], (CLASS,))
    # the head is compared once it is here: what the configuration says of it is not believed
    has_head = LM_HEAD in headers.merge(shards["language"])
    configs["language"] = {**configs["language"], "tie_word_embeddings": not has_head}
    fits = {part.role: build_expected(part, configs[part.role]) for part in (LANGUAGE, CODEC)}
    for part in (LANGUAGE, CODEC):
        _check_weights(part, shards[part.role], fits[part.role], spec)
    facts = refuse.read_about(snapshot)
    small = _read_small(snapshot)
    _check_together(facts, {role: one.config for role, one in fits.items()}, small["tokenizer"])
    kept = {
        part.role: fit.drop_unkept(part, shards[part.role], fits[part.role])
        for part in (LANGUAGE, CODEC)
    }
    return Published(small, kept, {role: one.config for role, one in fits.items()}, facts)


def _check_weights(part: Part, found: list[Shard], expected: Expected, spec: ModelSpec) -> None:
    refuse.check_stored(part, found, expected, spec)
    fit.check(part, found, expected)


def _read_small(snapshot: Snapshot) -> dict[str, dict[str, bytes]]:
    """Read every part's small files."""
    small = refuse.read_small(snapshot, [part.role for part in (LANGUAGE, CODEC, TOKENIZER)])
    if TOKENIZER_FILE not in small["tokenizer"]:
        raise WeightsUnavailable(f"there is no {TOKENIZER_FILE}")
    return small


def _check_together(
    facts: Mapping[str, Any],
    configs: Mapping[str, Mapping[str, Any]],
    tokenizer: Mapping[str, bytes],
) -> None:
    """Check the numbers that one part hands to the next."""
    speaking = read_speaking(facts, Speaking())
    ids, vocabulary = speaking.ids, int(configs["language"]["vocab_size"])
    if vocabulary < ids.end:
        raise WeightsUnavailable(
            f"config.json has a vocab_size of {vocabulary}, and a model that speaks needs"
            f" {ids.end}: it is another language model"
        )
    for name, has, needs in (
        ("codes", configs["codec"]["codes"], ids.codes),
        ("samples per second", configs["codec"]["rate"], speaking.rate),
    ):
        if has != needs:
            raise WeightsUnavailable(f"the codec has {has} {name}, and the model {needs}")
    opened = try_opening("tokenizer", tokenizer, open_tokenizer, "model that speaks")
    if unknown := find_unknown(opened, ids):
        raise WeightsUnavailable(f"{TOKENIZER_FILE} is of another model: {unknown[0]}")
