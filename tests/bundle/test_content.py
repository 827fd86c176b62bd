"""A published folder is known by what is in it, however it was written and wherever it lies."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from worker.bundle import headers, layout
from worker.bundle.content import Content, digest_meaning, list_switches
from worker.bundle.layout import METHOD, Bundle, Component, LoraRecord, Verified
from worker.bundle.recipe import Modules, Part, Recipe
from worker.bundle.stated import digest_scale
from worker.errors import WeightsUnavailable
from worker.weights.proof import RemoteFile
from worker.weights.snapshot import LocalSnapshot
from worker.weights.spec import LoraFile

RECIPE = Recipe(
    parts=(Part("words", is_optional=True), Part("other"), Part("matrix", Modules(dict))),
    check=lambda _snapshot, _spec: pytest.fail("nothing is checked"),
    adapted="matrix",
    reached=lambda _config: (),
    waiting="matrix",
    switches=("turned", "cut"),
)
LORAS = [LoraFile(None, f"light/{n}.safetensors") for n in (8, 4)]


class Reading(LocalSnapshot):
    """A folder that says which of its files were read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "org/toy")
        object.__setattr__(self, "seen", [])

    def read_file(self, file: RemoteFile) -> bytes:
        """Return a file's bytes and note its path."""
        self.seen.append(file.path)  # type: ignore[attr-defined] # set above
        return super().read_file(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published model with two own LoRAs."""
    out = tmp_path / "published"
    for role, name in (("words", "vocab.json"), ("other", "list.txt"), ("matrix", "config.json")):
        (out / role).mkdir(parents=True)
        (out / role / name).write_text('{"side": 4}')
    save_file({"weight": torch.zeros(4)}, out / "matrix/model.safetensors")
    (out / "light").mkdir()
    for n, lora in enumerate(LORAS):
        (out / lora.filename).write_text(str(n))
    (out / "worker.json").write_text('{"area": 64}')
    (out / "model_index.json").write_text('{"turned": true, "cut": "true", "other": true}')
    return out


def content_of(folder: Path) -> Content:
    return Content(Reading(folder), RECIPE)


def change(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("name", ["_name_or_path", "_diffusers_version", "transformers_version"])
def test_who_wrote_a_json_file_is_no_part_of_what_it_says(name: str) -> None:
    plain = digest_meaning("config.json", b'{"a": 1, "b": [2]}')
    assert digest_meaning("config.json", f'{{"b":[2],\n"{name}":"x", "a":1}}'.encode()) == plain
    assert digest_meaning("config.json", f'{{"b":[2],"_{name}":"x", "a":1}}'.encode()) != plain
    assert digest_meaning("other.json", b'{"a": 1, "b": [2]}') != plain


def test_what_a_json_file_says_has_one_digest_in_all_versions_of_the_worker() -> None:
    """It names parts on volumes: another would have all of them made again."""
    said = hashlib.sha256(b'{"a":1,"b":[2,3]}').hexdigest()
    assert digest_meaning("x.json", b'{"b": [2, 3], "a": 1}') == f"x.json:{said}"


def test_any_other_file_says_what_its_bytes_are() -> None:
    digests = [
        digest_meaning(name, data)
        for name in ("a.txt", "b.txt")
        for data in (b'{"a": 1}', b'{"a":1}', b'["_name_or_path"]')
    ]
    assert len(set(digests)) == 6
    assert digest_meaning("a.json", b"[1, 2]") == digest_meaning("a.json", b"[1,2]")
    assert digest_meaning("a.json", b"[1, 2]") != digest_meaning("a.json", b"[2, 1]")


def test_a_switch_is_on_where_it_is_true() -> None:
    index = {"a": True, "b": False, "c": "true", "d": 1, "e": True}
    assert list_switches(index, ["a", "b", "c", "d", "f"]) == {"a": True}


def test_the_facts_of_a_model_are_its_own_words_and_switches(folder: Path) -> None:
    assert content_of(folder).facts == {"area": 64, "turned": True}
    (folder / "worker.json").unlink()
    assert content_of(folder).facts == {"turned": True}
    (folder / "model_index.json").unlink()
    assert content_of(folder).facts == {}
    (folder / "worker.json").write_text('{"area": 64}')
    assert content_of(folder).facts == {"area": 64}


def test_the_index_is_read_for_switches_alone(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")
    recipe = Recipe(**{**{f: getattr(RECIPE, f) for f in RECIPE.__slots__}, "switches": ()})
    assert Content(Reading(folder), recipe).facts == {"area": 64}
    with pytest.raises(WeightsUnavailable, match=r"org/toy: model_index.json is broken JSON"):
        _ = content_of(folder).facts


def test_a_broken_file_is_named(folder: Path) -> None:
    (folder / "words/vocab.json").write_text("{")
    with pytest.raises(WeightsUnavailable, match=r"org/toy: words/vocab.json is broken JSON"):
        content_of(folder).list_digests("words")


def test_each_file_is_read_once(folder: Path) -> None:
    content = content_of(folder)
    first = content.make_fingerprint("Toy", LORAS)
    assert content.make_fingerprint("Toy", LORAS) == first
    seen = content.snapshot.seen  # type: ignore[attr-defined] # as above
    assert sorted(seen) == sorted(set(seen))
    assert {"words/vocab.json", "other/list.txt", "worker.json"} <= set(seen)


def test_a_fingerprint_is_of_everything_and_of_no_order(folder: Path) -> None:
    plain = content_of(folder).make_fingerprint("Toy", LORAS)
    assert content_of(folder).make_fingerprint("Toy", reversed(LORAS)) == plain
    (folder / "worker.json").write_text('{"b": 1, "area": 64}')
    found = {plain, content_of(folder).make_fingerprint("Toy", LORAS)}
    (folder / "worker.json").write_text('{"area": 64, "b": 1}')
    assert content_of(folder).make_fingerprint("Toy", LORAS) in found
    found |= {
        content_of(folder).make_fingerprint("Other", LORAS),
        content_of(folder).make_fingerprint("Toy", LORAS[:1]),
        content_of(folder).make_fingerprint("Toy", ()),
    }
    for name in ("words/vocab.json", "other/list.txt", "matrix/config.json", LORAS[1].filename):
        change(folder / name, '{"side": 5}')
        found.add(content_of(folder).make_fingerprint("Toy", LORAS))
    assert len(found) == 9
    assert all(re.fullmatch(r"[0-9a-f]{12}", fingerprint) for fingerprint in found)


def made_of(folder: Path, *, without: str = "", method: int = METHOD) -> Verified:
    """Return the bundle that would be made of a folder."""
    content = content_of(folder)
    parts = {}
    for role in ("words", "other", "matrix"):
        if role == without or not content.list_digests(role):
            continue
        recipe: dict[str, Any] = {"recipe": method, "precision": "bf16"}
        part = Component(
            format=layout.FORMAT,
            identity=layout.compute_identity(role, content.list_digests(role), recipe),
            role=role,
            recipe=recipe,
            sources={},
            prepared_on="cpu",
            libraries={},
            files={},
        )
        parts[role] = (folder, part)
    lightning = {
        n: LoraRecord(
            repository="org/toy",
            filename=lora.filename,
            digest=f"sha256:{layout.hash_file(folder / lora.filename)}",
        )
        for n, lora in zip((8, 4), LORAS, strict=True)
    }
    bundle = Bundle(
        format=layout.FORMAT,
        model="toy",
        repository="org/toy",
        revision="local",
        pipeline="Toy",
        precision="bf16",
        fused=None,
        lightning=lightning,
        components={role: part.identity for role, (_, part) in parts.items()},
        libraries={},
        facts=content.facts,
    )
    return Verified(folder, bundle, parts)


@pytest.mark.parametrize(
    ("name", "loras", "difference"),
    [
        (None, LORAS, None),
        ("worker.json", LORAS, "worker.json"),
        ("words/vocab.json", LORAS, "words"),
        ("other/list.txt", LORAS, "other"),
        ("other/more.txt", LORAS, "other"),
        ("other/model.safetensors", LORAS, None),
        ("matrix/config.json", LORAS, "matrix"),
        (LORAS[0].filename, LORAS, "8.safetensors"),
        (LORAS[1].filename, LORAS, "4.safetensors"),
        (LORAS[1].filename, LORAS[:1], None),
        ("light/more.safetensors", [LoraFile(None, "light/more.safetensors")], "more.safetensors"),
        ("readme.txt", LORAS, None),
    ],
)
def test_what_was_made_of_another_folder_is_named(
    name: str | None, loras: Iterable[LoraFile], difference: str | None, folder: Path
) -> None:
    found = made_of(folder)
    if name is not None:
        change(folder / name, '{"side": 6}')
    assert content_of(folder).find_difference(found, loras) == difference


def test_a_part_too_many_or_too_few_is_a_difference(folder: Path) -> None:
    whole, less = made_of(folder), made_of(folder, without="words")
    assert content_of(folder).find_difference(less, ()) == "words"
    (folder / "words/vocab.json").unlink()
    assert content_of(folder).find_difference(whole, ()) == "words"
    assert content_of(folder).find_difference(less, ()) is None


def test_what_another_method_made_is_a_difference(folder: Path) -> None:
    assert content_of(folder).find_difference(made_of(folder, method=METHOD + 1), ()) == "words"


# Which files a component is published as.


def open_folder(folder: Path) -> LocalSnapshot:
    return LocalSnapshot(folder, "org/toy")


def write_index(folder: Path, *names: str) -> None:
    text = json.dumps({"weight_map": {f"t{n}": name for n, name in enumerate(names)}})
    (folder / "matrix/model.safetensors.index.json").write_text(text)


def test_they_are_those_that_its_index_names(folder: Path) -> None:
    names = [f"model-0000{n}-of-00002.safetensors" for n in (2, 1)]
    for name in names:
        save_file({name: torch.zeros(2)}, folder / "matrix" / name)
    write_index(folder, *names, names[0])
    found = headers.read_shards(open_folder(folder), "matrix")
    assert [shard.file.path for shard in found] == [f"matrix/{n}" for n in sorted(names)]
    assert headers.merge(found).keys() == set(names)
    write_index(folder, names[0], "model-00003-of-00002.safetensors")
    with pytest.raises(WeightsUnavailable, match=r"lacks matrix/model-00003.*a shard of its"):
        headers.list_weight_files(open_folder(folder), "matrix")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 1}', "[" * 100_000])
def test_an_index_that_is_none_is_told(text: str, folder: Path) -> None:
    (folder / "matrix/model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightsUnavailable, match="is not an index of shards"):
        headers.list_weight_files(open_folder(folder), "matrix")


def test_an_index_of_another_folder_or_name_is_not_read(folder: Path) -> None:
    for name in ("other/model.safetensors.index.json", "matrix/x.fp16.safetensors.index.json"):
        (folder / name).write_text("{")
    (file,) = headers.list_weight_files(open_folder(folder), "matrix")
    assert file.path == "matrix/model.safetensors"


def test_a_shard_without_a_tensor_is_one(folder: Path) -> None:
    save_file({}, folder / "matrix/model.safetensors")
    (shard,) = headers.read_shards(open_folder(folder), "matrix")
    assert shard.header == {}


@pytest.mark.parametrize("change", [b"x", -1], ids=["longer", "shorter"])
def test_a_shard_of_another_size_is_told(change: Any, folder: Path) -> None:
    path = folder / "matrix/model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data + change if change == b"x" else data[:change])
    with pytest.raises(WeightsUnavailable, match=rf"bytes instead of {len(data)}"):
        headers.read_shards(open_folder(folder), "matrix")


def test_a_pickle_is_taken_where_there_is_nothing_else(folder: Path) -> None:
    torch.save({"weight": torch.zeros(3, 2)}, folder / "matrix/model.bin")

    def paths(pickle: str = "") -> list[str]:
        found = headers.list_weight_files(open_folder(folder), "matrix", pickle)
        return [file.path for file in found]

    assert paths("model.bin") == ["matrix/model.safetensors"]
    (folder / "matrix/model.safetensors").unlink()
    assert paths() == paths("other.bin") == []
    assert paths("model.bin") == ["matrix/model.bin"]
    (shard,) = headers.read_shards(open_folder(folder), "matrix", "model.bin")
    (entry,) = shard.header.values()
    assert (entry.shape, entry.start, entry.end) == ((3, 2), 0, 0)
    with pytest.raises(WeightsUnavailable, match="org/toy lacks the weights of matrix/"):
        headers.read_shards(open_folder(folder), "matrix")


def test_modules_are_those_with_a_weight(folder: Path) -> None:
    state = {name: torch.zeros(1) for name in ("a.weight", "a.bias", "b.c.weight", "weight.d")}
    save_file(state, folder / "matrix/model.safetensors")
    found = headers.read_shards(open_folder(folder), "matrix")
    assert headers.list_modules(found) == {"a", "b.c"}


def test_what_states_a_scale_has_one_digest_in_all_versions_of_the_worker(folder: Path) -> None:
    header = b'{"__metadata__":{"lora_alpha":"2","r":"1"}}'
    (folder / LORAS[0].filename).write_bytes(len(header).to_bytes(8, "little") + header)
    config = folder / "light/adapter_config.json"
    config.write_text("{}")
    beside = f'"adapter_config.json": "sha256:{layout.hash_file(config)}"'
    text = f'{{{beside}, "lora_alpha": "2", "r": "1"}}'
    found = digest_scale(open_folder(folder), LORAS[0].filename)
    assert found == hashlib.sha256(text.encode()).hexdigest()
