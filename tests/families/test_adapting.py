"""The LoRAs of wishes on an open model: read once, within a bound, and gone when not asked for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from worker.engine import lora_file
from worker.engine.guests import GuestAdapters
from worker.engine.lora import Adapters, make_canonical
from worker.errors import LoraFetchFailed, LoraNotApplied, LoraRefused
from worker.families.adapting import WishedLoras
from worker.families.lora_reader import LoraReader
from worker.loras.ready import ReadyLora
from worlds.loras import MODULATION, predict, published_lora, small_transformer

CPU, FLOAT = torch.device("cpu"), torch.float32


class Room:
    """A small transformer with one adapter of its own, and files of LoRAs for it."""

    def __init__(self, folder: Path, budget: int = 1 << 30) -> None:
        self.folder = folder
        self.transformer = small_transformer()
        self.adapters = Adapters(self.transformer)
        self.adapters.attach("own", make_canonical(published_lora(self.transformer, 1)))
        self.guests = GuestAdapters(self.transformer, self.adapters, {})
        self.loras = WishedLoras(self.adapters, self.guests, CPU, FLOAT, budget)

    def use_own(self) -> Any:
        """Return the transformer with its own adapter alone."""
        self.adapters.use("own")
        return self.transformer

    def file(self, seed: int, scale: float = 1.0, **more: Any) -> ReadyLora:
        """Write a LoRA and return it."""
        path = self.folder / f"{seed}.safetensors"
        save_file(published_lora(small_transformer(), seed, **more), path)
        return ReadyLora(f"lora {seed}", f"sha256:{seed}", scale, path, None, is_callers=True)

    @property
    def size(self) -> int:
        """How many bytes one of the files has on the device."""
        state = make_canonical(published_lora(small_transformer(), 2))
        return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_several_act_as_their_weighted_sum_beside_the_models_own(room: Room) -> None:
    """Of different ranks: the same as their products added to the weights."""
    two, three = room.file(2, 0.5), room.file(3, -1.5)
    room.loras.use("own", (two, three))
    found = predict(room.transformer)
    fused = small_transformer()
    for seed, scale in ((1, 1.0), (2, 0.5), (3, -1.5)):
        state = make_canonical(published_lora(fused, seed))
        for key in [key for key in state if "lora_A" in key]:
            module = fused.get_submodule(key.removesuffix(".lora_A.weight"))
            product = state[key.replace("lora_A", "lora_B")] @ state[key]
            module.weight.data += scale * product
    torch.testing.assert_close(found, predict(fused), rtol=1e-4, atol=1e-3)
    assert [one.modules for one in room.loras.count((two, three))] == [24, 24]


def test_after_them_everything_is_as_if_there_had_been_none(room: Room) -> None:
    base, own = predict(small_transformer()), {}
    room.loras.use("own", ())
    own["before"] = predict(room.transformer)
    room.loras.use("own", (room.file(2),))
    assert not torch.equal(predict(room.transformer), own["before"])
    room.loras.use("own", ())
    assert torch.equal(predict(room.transformer), own["before"])
    room.loras.use(None, (room.file(3),))
    room.loras.use(None, ())
    assert torch.equal(predict(room.transformer), base)


def test_a_scale_of_nothing_changes_nothing(room: Room) -> None:
    room.loras.use(None, (room.file(2, 0.0),))
    assert torch.equal(predict(room.transformer), predict(small_transformer()))


def test_a_file_is_read_once(room: Room) -> None:
    lora = room.file(2)
    room.loras.use(None, (lora,))
    first = predict(room.transformer)
    room.loras.use("own", ())
    lora.path.unlink()
    room.loras.use(None, (lora,))
    assert torch.equal(predict(room.transformer), first)


def test_what_is_in_use_stays_so_when_it_is_asked_for_again(room: Room) -> None:
    lora = room.file(2)
    room.loras.use("own", (lora,))
    first = predict(room.transformer)
    room.loras.use("own", (lora,))
    assert torch.equal(predict(room.transformer), first)


def test_the_least_recently_used_is_dropped_and_its_modules_are_plain_again(
    tmp_path: Path,
) -> None:
    """Files are a little larger than their tensors, so there is room for two."""
    room = Room(tmp_path, budget=int(Room(tmp_path).size * 2.9))
    two, three, four = (room.file(seed, modules=["img_in"]) for seed in (2, 3, 4))
    full = [room.file(seed) for seed in (5, 6, 7)]
    for lora in (two, *full[:2], two):
        room.loras.use(None, (lora,))
    names = set(room.guests.attached)
    room.loras.use(None, (full[2], three))
    left = set(room.guests.attached)
    assert len(names - left) == 1
    assert repr(full[0].identity) in names - left
    room.loras.forget()
    assert set(room.guests.attached) == {repr(one.identity) for one in (full[2], three)}
    room.loras.use("own", (four,))
    room.loras.forget()
    assert kind_of(room) == "GuestLinear"
    room.loras.use("own", ())
    assert kind_of(room) == "Linear"
    room.loras.forget()
    assert room.guests.attached == ()


def kind_of(room: Room) -> str:
    """Return what a module that only callers' LoRAs reach is."""
    return type(room.transformer.img_in).__name__


@pytest.mark.parametrize(("less", "left"), [(0, [2, 3]), (1, [3])], ids=["room", "a byte short"])
def test_as_many_stay_as_fit_to_the_byte(tmp_path: Path, less: int, left: list[int]) -> None:
    room = Room(tmp_path, budget=2 * Room(tmp_path).size - less)
    files = {seed: room.file(seed) for seed in (2, 3)}
    for lora in files.values():
        room.loras.use(None, (lora,))
    assert set(room.guests.attached) == {repr(files[seed].identity) for seed in left}


def test_as_many_are_dropped_as_one_takes(tmp_path: Path) -> None:
    room = Room(tmp_path, budget=Room(tmp_path).size)
    whole = room.file(4)
    for lora in (*(room.file(seed, modules=["img_in"]) for seed in (2, 3)), whole):
        room.loras.use(None, (lora,))
    assert room.guests.attached == (repr(whole.identity),)


def test_what_a_wish_needs_is_there_whatever_its_size(tmp_path: Path) -> None:
    room = Room(tmp_path, budget=1)
    both = (room.file(2), room.file(3))
    room.loras.use(None, both)
    assert len(room.guests.attached) == 2


def test_a_broken_file_is_its_callers_fault_or_the_operators(room: Room) -> None:
    path = room.folder / "broken.safetensors"
    path.write_bytes(b"no such thing")
    for is_callers, kind in ((True, LoraRefused), (False, LoraNotApplied)):
        lora = ReadyLora("broken", "sha256:0", 1.0, path, None, is_callers=is_callers)
        with pytest.raises(LoraNotApplied, match="broken: ") as refused:
            room.loras.use("own", (room.file(2), lora))
        assert type(refused.value) is kind
        assert str(room.folder) not in refused.value.message
    room.loras.use("own", ())
    assert torch.equal(predict(room.transformer), predict(Room(room.folder).use_own()))


@pytest.mark.parametrize(("is_callers", "kind"), [(True, LoraRefused), (False, LoraNotApplied)])
def test_a_module_that_cannot_be_changed_is_to_be_left_out_by_who_chose_the_lora(
    room: Room, is_callers: bool, kind: type[LoraNotApplied]
) -> None:
    lora = replace(room.file(2, modules=["img_in", *MODULATION[:1]]), is_callers=is_callers)
    room.transformer.transformer_blocks[0].img_mod[1] = torch.nn.Identity()
    with pytest.raises(LoraNotApplied, match=r"lora 2: .*img_mod\.1 is a Identity") as refused:
        room.loras.use(None, (lora,))
    assert type(refused.value) is kind
    assert room.guests.attached == ()


def test_a_file_that_was_evicted_may_be_fetched_again(room: Room) -> None:
    lora = room.file(2)
    lora.path.unlink()
    with pytest.raises(LoraFetchFailed):
        room.loras.use(None, (lora,))


def test_the_configuration_next_to_a_file_scales_it(room: Room) -> None:
    state = published_lora(small_transformer(), 2)
    plain = {key: tensor for key, tensor in state.items() if not key.endswith(".alpha")}
    path = room.folder / "plain.safetensors"
    save_file(plain, path)
    config = b'{"lora_alpha": 8, "r": 4}'
    once = ReadyLora("a", "sha256:1", 1.0, path, None, is_callers=True)
    twice = ReadyLora("b", "sha256:1", 1.0, path, config, is_callers=True)
    assert once.identity != twice.identity
    room.loras.use(None, (twice,))
    found = predict(room.transformer)
    room.loras.use(None, (ReadyLora("a", "sha256:1", 2.0, path, None, is_callers=True),))
    torch.testing.assert_close(predict(room.transformer), found, rtol=1e-4, atol=1e-3)
    assert lora_file.read(path).keys() == make_canonical(plain).keys()


def test_what_is_in_use_cannot_be_detached(room: Room) -> None:
    lora = room.file(2)
    room.loras.use("own", (lora,))
    with pytest.raises(LoraNotApplied, match="in use"):
        room.guests.detach(repr(lora.identity))
    with pytest.raises(LoraNotApplied, match="not attached"):
        room.guests.use({"nobody": 1.0})
    assert room.guests.used == {repr(lora.identity): 1.0}


def test_what_was_read_ahead_is_used_and_gives_the_same(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whichever wish it was read, for as long as one of them has it."""
    lora = room.file(2, 0.5)
    expected = predict_with(room, lora)
    reader = Room(room.folder)
    reads: list[Path] = []
    monkeypatch.setattr(lora_file, "read_scaled", note_reads(reads))
    first = reader.loras.reader.read_ahead((lora,))
    second = reader.loras.reader.read_ahead((lora, lora))
    assert [one is first[0] for one in second] == [True, True]
    assert reads == [lora.path]
    del first
    reader.loras.use("own", (lora,))
    assert reads == [lora.path]
    assert torch.equal(predict(reader.transformer), expected)
    assert reader.loras.reader.read_ahead((lora,)) == ()  # it is attached
    del second
    Room(room.folder).loras.use("own", (lora,))
    assert reads == [lora.path] * 2


def predict_with(room: Room, lora: ReadyLora) -> torch.Tensor:
    """Return what a LoRA gives where nothing was read ahead."""
    room.loras.use("own", (lora,))
    return predict(room.transformer)


def note_reads(reads: list[Path]) -> Any:
    """Return lora_file.read_scaled, noting what it reads."""
    stock = lora_file.read_scaled

    def read_scaled(path: Path, *given: Any) -> Any:
        reads.append(path)
        return stock(path, *given)

    return read_scaled


def test_no_more_is_read_ahead_than_fits_a_bound(room: Room) -> None:
    """What waits with a wish counts; what no wish has any more does not."""
    files = [room.file(seed) for seed in (2, 3)]
    size = max(lora.path.stat().st_size for lora in files)
    reader = LoraReader(room.adapters.modules, (), FLOAT, budget=room.size + size - 1)
    kept = reader.read_ahead(files)
    assert len(kept) == 1
    assert len(reader.read_ahead(files)) == 1
    assert reader.read_ahead(files[1:]) == ()
    del kept
    assert len(reader.read_ahead(files[1:])) == 1
    generous = LoraReader(room.adapters.modules, (), FLOAT, budget=room.size + size)
    assert len(generous.read_ahead(files)) == 2


def test_what_is_read_ahead_does_not_change_with_its_file(room: Room) -> None:
    lora = room.file(2)
    expected = predict_with(room, lora)
    other = Room(room.folder)
    kept = other.loras.reader.read_ahead((lora,))
    with lora.path.open("r+b") as file:
        file.seek(-64, 2)
        file.write(bytes(64))
    other.loras.use("own", (lora,))
    assert torch.equal(predict(other.transformer), expected)
    assert len(kept) == 1


def test_what_is_attached_does_not_change_with_its_file(room: Room) -> None:
    lora = room.file(2)
    expected = predict_with(room, lora)
    data = lora.path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    with lora.path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(len(data) - start))
    assert torch.equal(predict(room.transformer), expected)


@pytest.mark.parametrize("is_callers", [True, False])
def test_a_lora_that_cannot_be_read_ahead_is_refused_by_its_name(
    room: Room, is_callers: bool
) -> None:
    lora = replace(room.file(2), is_callers=is_callers)
    lora.path.write_bytes(b"no weights")
    kind = LoraRefused if is_callers else LoraNotApplied
    with pytest.raises(kind, match="lora 2: "):
        room.loras.reader.read_ahead((lora,))
    lora.path.unlink()
    with pytest.raises(LoraFetchFailed, match="lora 2: its file is gone"):
        room.loras.reader.read_ahead((lora,))
