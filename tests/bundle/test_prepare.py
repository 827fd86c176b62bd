"""Preparing: shard by shard, resumed after a kill, shared between models, never half."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from worker.bundle import layout
from worker.bundle.prepare import compute_sizes, prepare
from worker.engine.lora import fuse, make_canonical
from worker.engine.quantise import PRECISIONS, Precision
from worker.errors import LoraNotApplied, VolumeFull, WeightsUnavailable
from worker.families.qwen_image.opening import open_bundle
from worker.weights import metadata
from worker.weights.proof import RemoteFile
from worker.weights.snapshot import LocalSnapshot
from worker.weights.spec import LoraFile
from worlds import prepared
from worlds.hub import running
from worlds.repository import Copying, in_shards

CPU = torch.device("cpu")
SHARDS = 5


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded edit model (zero_cond_t) with its transformer in five shards."""
    out = tmp_path_factory.mktemp("published") / "model"
    return in_shards(prepared.folder_of("tiny-edit"), out, SHARDS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model's bundle from its one shard."""
    return prepare(prepared.order_of("tiny-edit", tmp_path_factory.mktemp("home")))


def weights_of(bundle: Path, role: str = "transformer") -> dict[str, torch.Tensor]:
    folder, part = layout.verify(bundle, "full").parts[role]
    found: dict[str, torch.Tensor] = {}
    for name in part.files:
        if name.startswith(layout.WEIGHTS):
            found |= load_file(folder / name)
    return found


def rows_of(bundle: Path) -> dict[int, torch.Tensor]:
    """Return each slot's rows."""
    folder, part = layout.verify(bundle).parts["transformer"]
    found: dict[int, torch.Tensor] = {}
    for name in part.files:
        if name.startswith(layout.MAPPED):
            file = load_file(folder / name)
            found |= dict(zip(file["slots"].tolist(), file["rows"].unbind(1), strict=True))
    return found


def test_a_bundle_records_the_loras_among_the_models_own_files(whole: Path, tmp_path: Path) -> None:
    """Which a later start may want; those of other repositories are the catalogue's to know."""
    order = prepared.order_of("tiny-edit", tmp_path)
    own = {steps: lora.filename for steps, lora in order.spec.lightning.items()}
    assert layout.read_bundle(whole).offered == own
    others = {steps: LoraFile("org/loras", name) for steps, name in own.items()}
    elsewhere = prepare(replace(order, spec=replace(order.spec, lightning=others)))
    assert layout.read_bundle(elsewhere).offered == {}


def test_five_shards_give_what_one_gives(sharded: Path, whole: Path, tmp_path: Path) -> None:
    source = Copying(sharded)
    bundle = prepare(prepared.order_of("tiny-edit", tmp_path, snapshot=source))
    ours, theirs = weights_of(bundle), weights_of(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    rows, expected = rows_of(bundle), rows_of(whole)
    assert sorted(rows) == sorted(expected) == list(range(12))
    assert all(torch.equal(rows[slot], expected[slot]) for slot in rows)
    shards = [path for path in source.fetched if path.startswith("transformer/")]
    assert len(shards) == SHARDS
    assert len(set(shards)) == SHARDS  # each fetched once


def test_shards_are_dropped_unless_they_are_to_be_kept(sharded: Path, tmp_path: Path) -> None:
    for keep in ("false", "true"):
        home = tmp_path / keep
        order = prepared.order_of(
            "tiny-edit",
            home,
            snapshot=Copying(sharded),
            variables={"KEEP_SOURCE_WEIGHTS": keep},
        )
        prepare(order)
        left = list(order.into.rglob("*.safetensors"))
        assert len(left) == (SHARDS + 4 if keep == "true" else 0)


def test_at_most_two_shards_lie_on_the_disk(sharded: Path, tmp_path: Path) -> None:
    most = 0
    order = prepared.order_of("tiny-edit", tmp_path)

    def count(_path: str) -> None:
        nonlocal most
        there = [p for p in order.into.glob("transformer/*.safetensors") if p.is_file()]
        most = max(most, len(there) + 1)

    source = Copying(sharded, before=count)
    prepare(prepared.order_of("tiny-edit", tmp_path, snapshot=source))
    assert most == 2


def test_the_source_folder_is_never_changed(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(prepared.folder_of("tiny-image"), tmp_path / "source"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    prepare(prepared.order_of("tiny-image", tmp_path / "home", snapshot=LocalSnapshot(folder, "x")))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_what_is_prepared_is_not_prepared_again(sharded: Path, tmp_path: Path) -> None:
    prepare(prepared.order_of("tiny-edit", tmp_path, snapshot=Copying(sharded)))
    again = Copying(sharded)
    prepare(prepared.order_of("tiny-edit", tmp_path, snapshot=again))
    assert again.fetched == []


def test_two_models_share_the_text_encoder_and_vae_they_both_publish(tmp_path: Path) -> None:
    first, second = (
        layout.verify(prepare(prepared.order_of(name, tmp_path, "4bit")))
        for name in ("tiny-image", "tiny-edit")
    )
    for role in ("text_encoder", "vae", "tokenizer", "scheduler"):
        assert first.parts[role][0] == second.parts[role][0]
    assert first.parts["transformer"][0] != second.parts["transformer"][0]


def test_who_wrote_a_configuration_does_not_part_components(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(prepared.folder_of("tiny-image"), tmp_path / "source"))
    config = folder / "text_encoder/config.json"
    facts = json.loads(config.read_bytes())
    for name, change in (
        ("same", {"transformers_version": "4.51"}),
        ("other", {"hidden_act": "x"}),
    ):
        config.write_text(json.dumps({**facts, **change}))
        order = prepared.order_of("tiny-image", tmp_path, snapshot=LocalSnapshot(folder, name))
        plain = prepared.order_of("tiny-image", tmp_path)
        same = [layout.verify(prepare(o)).bundle.components["text_encoder"] for o in (order, plain)]
        assert (same[0] == same[1]) == (name == "same")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_opens_and_takes_the_bytes_that_were_computed(
    precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as on a GPU: on a CPU small 4-bit weights are unpacked
    monkeypatch.setattr("worker.engine.quantise.SMALL_WEIGHT", 0)
    order = prepared.order_of("tiny-edit", tmp_path, precision)
    computed = compute_sizes(order)[precision]
    bundle = prepare(order)
    found = layout.verify(bundle)
    headers = 20 * 4096 + 100_000  # headers, tokenizers and configuration
    assert computed.disk <= found.size <= computed.disk + headers
    parts = open_bundle(bundle, CPU)
    assert parts.adapters.attached == ("lightning_8", "lightning_4")
    size = sum(
        t.numel() * t.element_size()
        for name, t in parts.transformer.state_dict().items()
        if "quant_state" not in name and not name.endswith(("_down", "_up"))
    )
    assert size == pytest.approx(computed.parts["transformer"], rel=0.02)


def test_a_fused_lora_is_in_the_weights_before_they_are_quantised(tmp_path: Path) -> None:
    bundle = prepare(prepared.order_of("tiny-image", tmp_path, fused=8))
    plain = prepare(prepared.order_of("tiny-image", tmp_path))
    folder = prepared.folder_of("tiny-image")
    state = make_canonical(load_file(folder / prepared.SPECS["tiny-image"].lightning[8].filename))
    ours, base = weights_of(bundle), weights_of(plain)
    modules = {key.rsplit(".lora_", 1)[0] for key in state}
    assert len(modules) == 12 * 6
    for name, weight in base.items():
        module = name.removesuffix(".weight")
        if module in modules:
            a, b = (state[f"{module}.lora_{side}.weight"] for side in "AB")
            weight = fuse(weight, a.bfloat16(), b.bfloat16())  # noqa: PLW2901 - the fused one
        assert torch.equal(ours[name], weight), name
    parts = open_bundle(bundle, CPU)
    parts.adapters.use("lightning_8")
    for other in (None, "lightning_4"):
        with pytest.raises(LoraNotApplied, match="LIGHTNING_FUSED"):
            parts.adapters.use(other)
    assert bundle != plain


@pytest.mark.parametrize("fused_steps", [None, 8])
def test_a_lora_that_does_not_reach_every_module_fails_before_any_work(
    tmp_path: Path, fused_steps: int | None
) -> None:
    folder = Path(shutil.copytree(prepared.folder_of("tiny-image"), tmp_path / "source"))
    file = folder / prepared.SPECS["tiny-image"].lightning[8].filename
    state = load_file(file)
    save_file({key: t for key, t in state.items() if "blocks.3.attn.to_q" not in key}, file)
    source = Copying(folder)
    order = prepared.order_of("tiny-image", tmp_path, snapshot=source, fused=fused_steps)
    with pytest.raises(LoraNotApplied, match="71 of the model's 72"):
        prepare(order)
    assert [path for path in source.fetched if path.startswith("transformer/")] == []
    assert layout.find_fault(order.folder) is not None


def test_no_space_is_said_before_the_first_byte(sharded: Path, tmp_path: Path) -> None:
    source = Copying(sharded)
    order = prepared.order_of(
        "tiny-edit", tmp_path, snapshot=source, variables={"MIN_STORAGE_FREE_GB": "1000000"}
    )
    with pytest.raises(VolumeFull, match="more disk space is needed"):
        prepare(order)
    assert source.fetched == []


def test_a_time_embedding_that_changes_under_the_reader_is_refused(
    sharded: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "source"))
    order = prepared.order_of("tiny-edit", tmp_path, snapshot=Copying(folder))
    last = max((folder / "transformer").glob("*.safetensors"))
    assert prepared.shards_of(order)  # the headers are read

    def change(path: str) -> None:
        if path.endswith(last.name):
            state = load_file(last)
            name = next(key for key in state if key.startswith("time_text_embed"))
            state[name] = state[name] + 1
            save_file(state, last)

    order.snapshot.before = change  # type: ignore[attr-defined]
    with pytest.raises(WeightsUnavailable, match="changed while it was read"):
        prepare(order)
    assert layout.find_fault(order.folder) is not None


@dataclass
class Watched(Copying):
    """A repository that notes which bytes are read by range."""

    ranges: set[tuple[str, int]] = field(default_factory=set)

    def read_range(self, file: RemoteFile, start: int, end: int) -> bytes:
        """Note where the range begins."""
        self.ranges.add((file.path, start))
        return super().read_range(file, start, end)


def test_little_is_read_by_range_before_its_shard_comes(sharded: Path, tmp_path: Path) -> None:
    """The time embedding, and biases whose weight is in another shard: a few MB of 40 GB."""
    source = Watched(sharded)
    order = prepared.order_of("tiny-edit", tmp_path, snapshot=source)
    shards = prepared.shards_of(order)["transformer"]
    prepare(order)
    early = {
        name
        for shard in shards
        for name, entry in shard.header.items()
        if (shard.file.path, entry.start) in source.ranges
    }
    every = {name: shard for shard in shards for name in shard.header}
    parted = {
        name
        for name, shard in every.items()
        if name.endswith("_mod.1.bias") and f"{name.removesuffix('bias')}weight" not in shard.header
    }
    embedding = {name for name in every if name.startswith("time_text_embed")}
    assert early == parted | embedding
    assert parted
    assert embedding


CHILD = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from worlds import prepared
    from worlds.repository import Copying
    from worker import log
    from worker.bundle import stream
    from worker.bundle.prepare import prepare

    log.configure("ERROR")
    folder, home, stop_at, way = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    seen = 0

    def wait():
        print("here", flush=True)
        sys.stdin.read()  # killed here

    def before(path):
        global seen
        if path.startswith("transformer/"):
            seen += 1
            if way == "fetch" and seen == stop_at:
                wait()

    original = stream.tensors.write
    written = 0

    def write(folder, stem, tensors):
        global written
        name, record = original(folder, stem, tensors)
        if folder.name.startswith("transformer"):
            written += 1
            if way == "write" and written == stop_at:
                wait()
        return name, record

    stream.tensors.write = write
    prepare(prepared.order_of("tiny-edit", home, "4bit", snapshot=Copying(folder, before=before)))
    """
)


@pytest.mark.parametrize(("way", "stop_at"), [("fetch", 3), ("write", 4)])
def test_after_kill_9_the_next_run_goes_on_where_it_was(
    way: str, stop_at: int, sharded: Path, tmp_path: Path
) -> None:
    tests = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, sharded, tmp_path, str(stop_at), way],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(tests), "OMP_NUM_THREADS": "1"},
    ) as child:
        assert child.stdout is not None
        said = child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    assert said == b"here\n"
    components = tmp_path / layout.COMPONENTS
    done = len(list(components.glob("transformer-*/.shard-*.json")))
    assert done > 0
    source = Copying(sharded)
    order = prepared.order_of("tiny-edit", tmp_path, "4bit", snapshot=source)
    assert layout.find_fault(order.folder) is not None
    prepare(order)
    shards = [path for path in source.fetched if path.startswith("transformer/")]
    assert len(shards) == SHARDS - done
    clean = prepare(prepared.order_of("tiny-edit", tmp_path / "clean", "4bit"))
    ours, theirs = weights_of(order.folder), weights_of(clean)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    left = [p.name for p in components.rglob("*") if p.name.startswith(".")]
    assert left == []


@pytest.mark.parametrize("locks", ["work", "lie"])
def test_two_workers_on_one_volume_both_end_with_the_whole_bundle(
    locks: str, sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if locks == "lie":

        def acquired(self: object, *_args: object, **_named: object) -> object:
            return self

        monkeypatch.setattr("filelock.FileLock.acquire", acquired)
    meeting = threading.Barrier(2)
    met = threading.local()

    def before(_path: str) -> None:
        if locks == "lie" and not hasattr(met, "once"):
            met.once = True
            meeting.wait(300)  # both fetch their first shard at the same time

    sources = [Copying(sharded, before=before) for _ in range(2)]
    found: list[layout.Verified] = []

    def work(source: Copying) -> None:
        bundle = prepare(prepared.order_of("tiny-edit", tmp_path, snapshot=source))
        found.append(layout.verify(bundle, "full"))

    threads = [threading.Thread(target=work, args=(s,), daemon=True) for s in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert len(found) == 2
    assert open_bundle(found[0].folder, CPU).adapters.attached
    fetched = sum(len(source.fetched) for source in sources)
    if locks == "work":
        assert fetched == len({*sources[0].fetched, *sources[1].fetched})


def test_a_bundle_is_prepared_from_a_hub(
    sharded: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with running() as hub:
        commit = hub.add("org/tiny-edit", sharded)
        order = prepared.order_of(
            "tiny-edit",
            tmp_path,
            variables={"HF_ENDPOINT": hub.endpoint, "MODEL_DIR": str(tmp_path)},
        )
        snapshot = metadata.resolve("org/tiny-edit", None, order.settings)
        bundle = prepare(prepared.order_of("tiny-edit", tmp_path, snapshot=snapshot))
    found = layout.verify(bundle, "full")
    assert found.bundle.revision == commit
    ours, theirs = weights_of(bundle), weights_of(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
