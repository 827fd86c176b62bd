"""Opening: complete bundles only, nothing on meta, shared parts once; damage named and repaired."""

import gc
import json
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from worker.bundle import layout, lock, plain, tensors
from worker.bundle.fill import fill, find_on_meta, make_empty
from worker.bundle.layout import Damaged
from worker.bundle.open import Opening, make_shared
from worker.bundle.prepare import prepare
from worker.bundle.read import BIG_BYTES, REQUEST_BYTES, FileReader
from worker.engine.quantise import PRECISIONS, Linear8bit, Precision
from worker.errors import LoraNotApplied
from worker.families.qwen_image.opening import open_bundle
from worker.families.qwen_image.prompts import EDIT_PLUS_TEMPLATE, PromptEncoder
from worker.families.qwen_image.recipe import RECIPE
from worlds import prepared

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with both embedded models at every precision."""
    home = tmp_path_factory.mktemp("home")
    for name in ("tiny-image", "tiny-edit"):
        for precision in PRECISIONS:
            prepare(prepared.order_of(name, home, precision))
    return home


@pytest.fixture
def mine(home: Path, tmp_path: Path) -> Path:
    """A copy of that volume, to be damaged."""
    return Path(shutil.copytree(home, tmp_path / "home"))


def bundle(home: Path, name: str = "tiny-image", precision: Precision = "4bit") -> Path:
    return home / layout.BUNDLES / f"{name}-{precision}"


def weight_file(bundle: Path, role: str = "transformer", stem: str = layout.WEIGHTS) -> Path:
    folder, part = layout.verify(bundle).parts[role]
    return folder / next(name for name in part.files if name.startswith(stem))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nothing_is_left_on_meta_and_linears_are_of_the_precision(
    home: Path, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.engine.quantise.SMALL_WEIGHT", 0)
    parts = open_bundle(bundle(home, precision=precision), CPU)
    modules: list[Any] = [parts.transformer, parts.text_encoder, parts.vae]
    for model in modules:
        assert list(find_on_meta(model)) == []
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
    kind = {"4bit": "Linear4bit", "8bit": "Linear8bit", "bf16": "Linear"}[precision]
    block = parts.transformer.transformer_blocks[0]
    assert type(block.attn.to_q.base).__name__ == kind
    assert type(parts.transformer.img_in).__name__ == "Linear"
    language = parts.text_encoder.model.language_model
    assert type(language.layers[0].mlp.down_proj).__name__ == kind
    assert type(parts.text_encoder.model.visual.blocks[0].attn.proj).__name__ == "Linear"
    assert parts.vae.dtype is torch.bfloat16
    assert parts.transformer.pos_embed.pos_freqs.is_complex()


def test_meta_is_found_in_parameters_buffers_and_plain_attributes() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert list(find_on_meta(model)) == []
    vars(model[0])["frequencies"] = [torch.empty(1, device="meta")]
    model[1].running_mean = torch.empty(2, device="meta")
    with make_empty():
        model.append(nn.Linear(2, 2))
    found = {
        name.replace("._parameters", "").replace("._buffers", "") for name in find_on_meta(model)
    }
    assert found == {"0.frequencies.0", "1.running_mean", "2.weight", "2.bias"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop("0.weight"), "0.weight"),
        (lambda state: state.update(extra=torch.zeros(1)), "no place"),
        (lambda state: state.update({"0.bias": torch.zeros(3)}), "0.bias is"),
    ],
    ids=["missing", "extra", "shape"],
)
def test_tensors_and_parameters_must_match_one_to_one(
    change: Callable[[dict[str, torch.Tensor]], object], reason: str
) -> None:
    with make_empty():
        model = nn.Sequential(nn.Linear(2, 2))
    state = {"0.weight": torch.ones(2, 2), "0.bias": torch.zeros(2)}
    change(state)
    with pytest.raises((KeyError, ValueError), match=reason):
        fill(model, state, "bf16", CPU)


def test_models_of_one_process_share_a_text_encoder_and_vae(home: Path) -> None:
    place = make_shared()
    first = open_bundle(bundle(home, "tiny-image"), CPU, share=place)
    second = open_bundle(bundle(home, "tiny-edit"), CPU, share=place)
    assert first.text_encoder is second.text_encoder
    assert first.vae is second.vae
    assert first.transformer is not second.transformer
    kept = weakref.ref(first.vae)
    del first
    assert kept() is second.vae
    del second
    assert kept() is None  # what no open model uses is freed


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_text_encoder_that_waits_on_the_host_gives_the_same_embeddings(
    home: Path, precision: Precision
) -> None:
    """To the last bit, with references and without: its layers pass through the device."""
    folder = bundle(home, "tiny-edit", precision)
    place = make_shared()
    here, waiting = (open_bundle(folder, CPU, waiting=w, share=place) for w in (None, CPU))
    assert here.text_encoder is not waiting.text_encoder
    assert here.vae is waiting.vae
    language = waiting.text_encoder.model.language_model
    for layer in (language.layers[0], waiting.text_encoder.model.visual.merger):
        assert len({one.untyped_storage().data_ptr() for one in layer.parameters()}) == 1
    for count in (0, 2):
        shown = [Image.effect_noise((56, 28 + 28 * n), 90).convert("RGB") for n in range(count)]
        embeds, streamed = (
            PromptEncoder(one.tokenizer, one.processor, one.text_encoder).encode(
                "make it blue", EDIT_PLUS_TEMPLATE, shown
            )
            for one in (here, waiting)
        )
        assert torch.equal(embeds, streamed)


def test_a_part_that_another_model_has_stays_while_a_bundle_opens(home: Path) -> None:
    """That model may close after the files are chosen and before the part is asked for."""
    place = make_shared()
    first = open_bundle(bundle(home, "tiny-image"), CPU, share=place)
    kept = weakref.ref(first.vae)
    with Opening(bundle(home, "tiny-edit"), RECIPE, CPU, share=place) as opening:
        del first
        gc.collect()
        assert opening.open_module("vae") is kept()
    gc.collect()
    assert kept() is None


def test_a_bundle_that_was_pushed_is_opened_from_its_own_folder(home: Path, tmp_path: Path) -> None:
    found = layout.verify(bundle(home, "tiny-edit"))
    for path, source in layout.list_files(found).items():
        (tmp_path / "repo" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, tmp_path / "repo" / path)
    parts = open_bundle(tmp_path / "repo", CPU, verify="full")
    assert parts.adapters.attached == ("lightning_8", "lightning_4")
    assert parts.processor is not None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "level"), [(cut, "sizes"), (Path.unlink, "sizes"), (flip, "full")]
)
@pytest.mark.parametrize(
    ("role", "stem"),
    [("transformer", layout.WEIGHTS), ("transformer", layout.MAPPED), ("vae", layout.WEIGHTS)],
)
def test_a_damaged_part_is_named_quarantined_and_only_it_is_made_again(
    mine: Path, damage: Callable[[Path], None], level: str, role: str, stem: str
) -> None:
    folder = bundle(mine)
    file = weight_file(folder, role, stem)
    original = file.read_bytes()
    damage(file)
    with pytest.raises(Damaged, match=file.name) as caught:
        open_bundle(folder, CPU, verify="full" if level == "full" else "sizes")
    assert caught.value.folder == file.parent
    assert str(mine) not in caught.value.message
    layout.quarantine(caught.value.folder)
    assert layout.find_fault(folder) is not None
    others = {p: p.stat().st_mtime_ns for p in mine.rglob("weights-*") if role not in str(p)}
    prepare(prepared.order_of("tiny-image", mine, "4bit"))
    assert weight_file(folder, role, stem).read_bytes() == original
    assert {p: p.stat().st_mtime_ns for p in others} == others
    assert list(mine.rglob(f"*{layout.DAMAGED}*")) == []  # dropped once it is replaced
    assert layout.find_fault(folder) is None


def test_a_flipped_byte_passes_the_check_of_sizes_which_is_what_full_is_for(mine: Path) -> None:
    flip(weight_file(bundle(mine)))
    assert layout.find_fault(bundle(mine)) is None


@pytest.mark.parametrize(
    "text", ["", "{}", '{"format": 1}', "[1]", "\x00"], ids=["empty", "object", "part", "list", "0"]
)
def test_a_manifest_that_says_nothing_is_damage_not_a_crash(mine: Path, text: str) -> None:
    folder = bundle(mine)
    (folder / layout.MANIFEST).write_text(text)
    with pytest.raises(Damaged):
        open_bundle(folder, CPU)
    part = weight_file(bundle(mine, "tiny-edit")).parent
    (part / layout.MANIFEST).write_text(text)
    with pytest.raises(Damaged):
        open_bundle(bundle(mine, "tiny-edit"), CPU)


def test_a_bundle_of_another_format_is_not_opened(mine: Path) -> None:
    manifest = bundle(mine) / layout.MANIFEST
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**facts, "format": layout.FORMAT + 1}))
    assert "format 2" in str(layout.find_fault(bundle(mine)))


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a/b", ".hidden", ""])
def test_no_name_in_a_manifest_leads_out_of_its_folder(mine: Path, name: str) -> None:
    part = weight_file(bundle(mine)).parent
    facts = json.loads((part / layout.MANIFEST).read_text())
    record = next(iter(facts["files"].values()))
    (part / layout.MANIFEST).write_text(json.dumps({**facts, "files": {name: record}}))
    assert layout.find_fault(bundle(mine)) is not None
    manifest = bundle(mine, "tiny-edit") / layout.MANIFEST
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**facts, "components": {"vae": name}}))
    assert layout.find_fault(bundle(mine, "tiny-edit")) is not None


def test_a_folder_without_a_manifest_is_no_bundle(mine: Path) -> None:
    (weight_file(bundle(mine)).parent / layout.MANIFEST).unlink()
    assert "not there" in str(layout.find_fault(bundle(mine)))
    (bundle(mine) / layout.MANIFEST).unlink()
    assert layout.find_fault(bundle(mine)) == "has no bundle"


def test_lightning_loras_are_counted_against_the_model_at_open(mine: Path) -> None:
    folder, part = layout.verify(bundle(mine)).parts["lightning_8"]
    state = tensors.read_file_header(weight_file(bundle(mine), "lightning_8", layout.ADAPTER))
    name = next(iter(part.files))
    less = {
        key: torch.zeros(e.shape) for key, e in state.items() if "blocks.2.attn.to_q" not in key
    }
    save_file(less, folder / name)
    record = {"size": (folder / name).stat().st_size, "sha256": layout.hash_file(folder / name)}
    facts = json.loads((folder / layout.MANIFEST).read_text())
    (folder / layout.MANIFEST).write_text(json.dumps({**facts, "files": {name: record}}))
    with pytest.raises(LoraNotApplied):
        open_bundle(bundle(mine), CPU)


@pytest.mark.parametrize("mapped", [False, True])
def test_files_are_read_in_ranges_and_runs_exactly(tmp_path: Path, *, mapped: bool) -> None:
    torch.manual_seed(0)
    written = {
        "several ranges": torch.randn(REQUEST_BYTES // 4 + 1000),
        "one range": torch.randn(BIG_BYTES // 4, 1).bfloat16().repeat(1, 3),
        **{f"small {n}": torch.randint(0, 255, (n,), dtype=torch.uint8) for n in (1, 3, 64, 999)},
        "scalar": torch.tensor(3.5),
        "nothing": torch.empty(0, 4),
        "whole numbers": torch.arange(7),
    }
    name, record = tensors.write(tmp_path, "weights", written)
    path = tmp_path / name
    assert path.stat().st_size == record.size
    assert layout.hash_file(path) == record.sha256
    assert record.sha256.startswith(name.removeprefix("weights-").removesuffix(".safetensors"))
    with FileReader(CPU, threads=3, mapped=mapped) as reader:
        reader.start(path)
        read = reader.take(path)
    assert read.keys() == written.keys()
    for key, tensor in written.items():
        assert read[key].dtype == tensor.dtype
        assert torch.equal(read[key], tensor), key


@pytest.mark.parametrize("mapped", [False, True])
def test_a_file_that_ends_too_early_is_damage(tmp_path: Path, *, mapped: bool) -> None:
    name, _ = tensors.write(tmp_path, "weights", {"x": torch.zeros(BIG_BYTES)})
    cut(tmp_path / name)
    with FileReader(CPU, mapped=mapped) as reader:
        reader.start(tmp_path / name)
        with pytest.raises(Damaged, match="ends before byte"):
            reader.take(tmp_path / name)


def test_what_we_write_other_tools_read(tmp_path: Path, home: Path) -> None:
    state = load_file(weight_file(bundle(home), "text_encoder"))
    assert state["model.language_model.embed_tokens.weight"].dtype is torch.bfloat16
    written = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.zeros(3, dtype=torch.uint8)}
    name, _ = tensors.write(tmp_path, "weights", written)
    assert all(torch.equal(t, written[key]) for key, t in load_file(tmp_path / name).items())


def test_a_holder_that_stands_still_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LOCK_POLL_S", 0.01)
    waited = []
    with (
        filelock.FileLock(tmp_path / "x.lock", is_singleton=False),
        lock.take_turn(tmp_path / "x.lock", lambda: False, (tmp_path,), still_s=0.0),
    ):
        waited.append("went on")
    assert waited == ["went on"]


def test_a_worker_that_waits_goes_on_as_soon_as_the_other_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LOCK_POLL_S", 0.01)
    answers = iter([False, False, True])
    with (
        filelock.FileLock(tmp_path / "x.lock", is_singleton=False),
        lock.take_turn(tmp_path / "x.lock", lambda: next(answers), (tmp_path,)),
    ):
        assert next(answers, "asked three times") == "asked three times"


def test_eight_bit_linears_move_with_their_model() -> None:
    module = Linear8bit(torch.ones(4, 4, dtype=torch.int8), torch.ones(4), None)
    assert set(dict(module.to("meta").named_buffers())) == {"scale"}
    assert module.scale.is_meta


def test_the_stock_text_encoder_class_is_what_is_opened(home: Path) -> None:
    parts = open_bundle(bundle(home), CPU)
    assert type(parts.text_encoder) is Qwen2_5_VLForConditionalGeneration


def test_empty_modules_are_made_by_one_thread_at_a_time() -> None:
    """What is swapped meanwhile is put back by who swapped it, else every module stays empty."""
    entered = threading.Event()

    def late() -> None:
        with make_empty():
            entered.set()

    thread = threading.Thread(target=late)
    with make_empty():
        thread.start()
        assert not entered.wait(0.2)
    thread.join(60)
    assert entered.is_set()
    assert not nn.Linear(1, 1).weight.is_meta


@pytest.mark.parametrize(
    ("opening", "name", "word"),
    [
        (plain.open_tokenizer, "tokenizer_config.json", "AutoTokenizer"),
        (plain.open_processor, "processor_config.json", "AutoProcessor"),
    ],
)
def test_no_code_of_a_folder_is_run(
    opening: Callable[[Path], Any],
    name: str,
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor is somebody at a terminal asked whether it may be, who might say yes."""
    ran = tmp_path / "ran"
    code = f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nclass Own:\n    pass\n"
    (tmp_path / "own.py").write_text(code)
    kinds = {"tokenizer_class": "Own", "processor_class": "Own"}
    mapped = {"auto_map": {word: ["own.Own", None] if word == "AutoTokenizer" else "own.Own"}}
    (tmp_path / name).write_text(json.dumps({**kinds, **mapped}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(Exception, match="trust_remote_code"):
        opening(tmp_path)
    assert not ran.exists()
