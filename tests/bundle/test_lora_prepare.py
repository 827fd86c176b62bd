"""Preparing a Lightning LoRA: every form and scale of its file, again where one was missed."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from worker import settings
from worker.bundle import layout
from worker.bundle.obtain import obtain
from worker.bundle.prepare import prepare
from worker.bundle.recipe import Work
from worker.engine import lora
from worker.errors import LoraNotApplied, WeightsUnavailable
from worker.families.catalogue import CATALOGUE
from worker.families.qwen_image import rows
from worker.families.qwen_image.opening import open_bundle
from worker.families.qwen_image.parts import TRANSFORMER
from worker.families.qwen_image.published import open_published
from worker.families.qwen_image.recipe import RECIPE
from worker.families.qwen_image.transform import Transformer
from worker.weights import metadata
from worker.weights.snapshot import LocalSnapshot
from worlds import prepared
from worlds.hub import running
from worlds.repository import Copying, brief

CPU = torch.device("cpu")
STEPS = 8
FILE = str(prepared.SPECS["tiny-image"].lightning[STEPS].filename)
PLAIN = {"recipe": 1}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the embedded text-to-image model."""
    return brief(prepared.folder_of("tiny-image"), tmp_path / "source")


def facts_of(state: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the alpha and rank that all modules of a Lightning LoRA have."""
    (alpha,) = {t.item() for k, t in state.items() if k.endswith(".alpha")}
    (rank,) = {t.shape[0] for k, t in state.items() if k.endswith("lora_down.weight")}
    return {"lora_alpha": alpha, "r": rank}


def bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the alphas away, as files do whose scale is stated beside the tensors."""
    return {key: tensor for key, tensor in state.items() if not key.endswith(".alpha")}


def in_metadata(file: Path) -> None:
    """Save a LoRA as diffusers does: its alpha in the header."""
    state = load_file(file)
    record = {f"transformer.{key}": value for key, value in facts_of(state).items()}
    renamed = {
        f"transformer.{k}".replace("lora_down", "lora_A").replace("lora_up", "lora_B"): v
        for k, v in bare(state).items()
    }
    save_file(renamed, file, {"format": "pt", "lora_adapter_metadata": json.dumps(record)})


def beside(file: Path) -> None:
    """Save a LoRA as peft does: its alpha in the folder's adapter_config.json."""
    state = load_file(file)
    (file.parent / "adapter_config.json").write_text(json.dumps(facts_of(state)))
    save_file({f"base_model.model.{k}": v for k, v in bare(state).items()}, file)


def flat(file: Path) -> None:
    """Save a LoRA as musubi and kohya do."""
    renamed = {}
    for key, tensor in load_file(file).items():
        for end in (".lora_down.weight", ".lora_up.weight", ".alpha"):
            if key.endswith(end):
                renamed[f"lora_unet_{key.removesuffix(end).replace('.', '_')}{end}"] = tensor
    save_file(renamed, file, {"ss_network_alpha": "999", "ss_network_dim": "1"})


def doubled(file: Path) -> None:
    """State twice the scale that the modules' own alphas say."""
    state = load_file(file)
    facts = facts_of(state)
    save_file(state, file, {"lora_alpha": str(2 * facts["lora_alpha"]), "r": str(facts["r"])})


Change = Callable[[Path], None]
STATED: list[Change] = [in_metadata, beside]


def order(home: Path, source: Path, **named: Any) -> Any:
    """Ask for a bundle with the 8-step LoRA alone."""
    snapshot = named.pop("snapshot", None) or LocalSnapshot(source, "org/model")
    asked = prepared.order_of("tiny-image", home, snapshot=snapshot, **named)
    return replace(asked, lightning={STEPS: asked.lightning[STEPS]})


def adapter_of(bundle: Path) -> tuple[layout.Component, dict[str, Tensor]]:
    """Return a bundle's adapter: what it was made of, and its tensors."""
    folder, part = layout.verify(bundle, "full").parts[layout.name_adapter(STEPS)]
    (name,) = part.files
    return part, load_file(folder / name)


def transformer_of(bundle: Path) -> str:
    """Return what a bundle's transformer is identified by."""
    return layout.read_bundle(bundle).components["transformer"]


@pytest.mark.parametrize("change", [in_metadata, beside, flat])
@pytest.mark.parametrize("where", ["folder", "hub"])
def test_a_lightning_file_of_any_form_becomes_the_same_adapter(
    change: Change, where: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, state = adapter_of(prepare(order(tmp_path / "plain", source)))
    change(source / FILE)
    if where == "folder":
        bundle = prepare(order(tmp_path / "home", source))
    else:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        with running() as hub:
            hub.add("org/model", source)
            chosen = settings.read(
                {
                    "HF_ENDPOINT": hub.endpoint,
                    "MODEL_DIR": str(tmp_path),
                    "MIN_STORAGE_FREE_GB": "0",
                }
            )
            found = metadata.resolve("org/model", None, chosen)
            bundle = prepare(order(tmp_path / "home", source, snapshot=found))
    part, ours = adapter_of(bundle)
    assert ours.keys() == state.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in state.items())
    assert part.identity != expected.identity


def test_a_lora_that_states_no_scale_beside_its_tensors_stays_what_it_was(
    source: Path, tmp_path: Path
) -> None:
    """No volume of 0.1.0 with a LoRA of the catalogue is prepared again."""
    asked = order(tmp_path, source)
    part, _ = adapter_of(prepare(asked))
    file = next(file for file in asked.snapshot.files if file.path == FILE)
    digest = asked.snapshot.digest(file)
    assert part.identity == layout.compute_identity("lightning_8", [digest], PLAIN)
    assert part.recipe == PLAIN
    fused = order(tmp_path, source, fused=STEPS)
    made = layout.verify(prepare(fused)).parts["transformer"][1]
    assert made.recipe.keys() == {"recipe", "precision", "rows", "fused"}


@pytest.mark.parametrize("change", STATED)
@pytest.mark.parametrize("fused", [None, STEPS])
def test_another_stated_scale_is_another_component(
    change: Change, fused: int | None, source: Path, tmp_path: Path
) -> None:
    """The configuration beside is no part of the file's digest, and still of the identity."""
    change(source / FILE)
    first = layout.read_bundle(prepare(order(tmp_path, source, fused=fused))).components
    config = source / "lightning/adapter_config.json"
    if config.exists():
        config.write_text(json.dumps({**json.loads(config.read_bytes()), "lora_alpha": 99}))
    else:
        save_file(load_file(source / FILE), source / FILE, {"lora_alpha": "99"})
    second = layout.read_bundle(prepare(order(tmp_path, source, fused=fused))).components
    role = "transformer" if fused else "lightning_8"
    assert first[role] != second[role]
    assert {r for r in first if first[r] != second[r]} == {role}


@pytest.mark.parametrize("fused", [None, STEPS])
def test_a_lora_that_contradicts_itself_fails_before_any_weight_is_fetched(
    fused: int | None, source: Path, tmp_path: Path
) -> None:
    doubled(source / FILE)
    copying = Copying(source)
    asked = order(tmp_path, source, snapshot=copying, fused=fused)
    with pytest.raises(LoraNotApplied, match=r"its own alpha and .* by the metadata's lora_alpha"):
        prepare(asked)
    assert not [path for path in copying.fetched if path.startswith("transformer/")]
    assert layout.find_fault(asked.folder) is not None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04" + bytes(200),
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (1 << 63).to_bytes(8, "little") + b"{}",
        (23).to_bytes(8, "little") + b'{"__metadata__": "none"}'[:23],
    ],
    ids=["nothing", "a pickle", "deep JSON", "no tensors", "a list", "a length", "cut JSON"],
)
def test_a_file_that_is_no_lora_is_told_before_any_weight_is_fetched(
    data: bytes, source: Path, tmp_path: Path
) -> None:
    """A local file that cannot be complete is reported as damaged, any other as no LoRA."""
    (source / FILE).write_bytes(data)
    copying = Copying(source)
    with pytest.raises((LoraNotApplied, WeightsUnavailable)):
        prepare(order(tmp_path, source, snapshot=copying))
    assert copying.fetched in ([], [FILE])


def test_the_reference_follows_the_same_scale(source: Path) -> None:
    """open_published is the reference for bundles: it reads a file as preparing does."""
    names = {"lightning_8": source / FILE}
    plain = open_published(source, dtype=torch.float32, device=CPU, lightning=names)
    in_metadata(source / FILE)
    stated = open_published(source, dtype=torch.float32, device=CPU, lightning=names)
    name = "transformer_blocks.0.attn.to_q"
    ours, theirs = (
        dict(parts.transformer.get_submodule(name).named_buffers()) for parts in (plain, stated)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def forget_scales(bundle: Path) -> None:
    """Write a manifest as 0.1.0 did, which did not look for a stated scale."""
    path = bundle / layout.MANIFEST
    manifest = json.loads(path.read_bytes())
    for record in manifest["lightning"].values():
        del record["scale"]
    path.write_text(json.dumps(manifest))


def tampered(bundle: Path) -> None:
    """Leave the adapter as 0.1.0 made it: with the scale 1, under the identity without one."""
    manifest = layout.read_bundle(bundle)
    part, state = adapter_of(bundle)
    old = layout.compute_identity("lightning_8", list(part.sources.values())[:1], PLAIN)
    folder = bundle.parent.parent / layout.COMPONENTS / part.identity
    folder.rename(folder.with_name(old))
    folder = folder.with_name(old)
    (name,) = part.files
    save_file({k: v * 0 for k, v in state.items()}, folder / name)
    record = layout.FileRecord(
        size=(folder / name).stat().st_size, sha256=layout.hash_file(folder / name)
    )
    changed = part.model_copy(update={"identity": old, "recipe": PLAIN, "files": {name: record}})
    layout.publish(folder, changed)
    components = {**manifest.components, "lightning_8": old}
    layout.publish(bundle, manifest.model_copy(update={"components": components}))


@pytest.mark.parametrize("change", [None, *STATED])
def test_a_volume_of_0_1_0_is_looked_at_once_and_mended_where_its_scale_was_missed(
    change: Change | None, source: Path, tmp_path: Path
) -> None:
    if change is not None:
        change(source / FILE)
    chosen = settings.read(
        {
            "MODEL": str(source),
            "MODEL_DIR": str(tmp_path / "home"),
            "MIN_STORAGE_FREE_GB": "0",
            "LIGHTNING_STEPS": "8",
            "PRECISION_MODE": "bf16",
        }
    )
    (spec,) = CATALOGUE.resolve(chosen.model, chosen, has_gpu=False)
    bundle = obtain(spec, RECIPE, chosen, None, CATALOGUE).folder
    right, state = adapter_of(bundle)
    if change is not None:
        tampered(bundle)
    forget_scales(bundle)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "home").rglob("weights-*.safetensors")}

    again = obtain(spec, RECIPE, chosen, None, CATALOGUE)
    part, ours = adapter_of(again.folder)
    assert part.identity == right.identity
    assert all(torch.equal(ours[key], tensor) for key, tensor in state.items())
    assert {p: p.stat().st_mtime_ns for p in before} == before  # no weight was made again
    assert (again.facts["source"] == "MODEL_DIR") is (change is None)

    once_more = obtain(spec, RECIPE, chosen, None, CATALOGUE)
    assert once_more.facts["source"] == "MODEL_DIR", "that was the one time"


def test_a_catalogue_lora_of_0_1_0_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those files have an alpha a module and state nothing beside: no hub is asked about them."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    spec = prepared.SPECS["qwen-image-edit-2511"]
    folder = prepared.folder_of("tiny-edit")
    lora_file, own = spec.lightning[STEPS], prepared.SPECS["tiny-edit"].lightning[STEPS].filename
    environ = {
        "MODEL_DIR": str(tmp_path / "home"),
        "MIN_STORAGE_FREE_GB": "0",
        "LIGHTNING_STEPS": "8",
        "PRECISION_MODE": "bf16",
    }
    with running() as hub:
        hub.add(spec.repository, folder)
        hub.add(str(lora_file.repository), {lora_file.filename: (folder / own).read_bytes()})
        given = settings.read({**environ, "HF_ENDPOINT": hub.endpoint})
        bundle = obtain(spec, RECIPE, given, None, CATALOGUE).folder
    forget_scales(bundle)
    down = settings.read({**environ, "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert obtain(spec, RECIPE, down, None, CATALOGUE).facts["source"] == "MODEL_DIR"
    assert layout.read_bundle(bundle).lightning[STEPS].scale is None


@pytest.mark.parametrize(
    "module", ["time_text_embed.timestep_embedder.linear_1", "transformer_blocks.0.img_mod.1"]
)
def test_a_bundle_refuses_a_lora_that_its_rows_would_not_see(
    module: str, source: Path, tmp_path: Path
) -> None:
    parts = open_bundle(prepare(order(tmp_path, source)), CPU)
    weight = load_file(source / "transformer/diffusion_pytorch_model.safetensors")[
        f"{module}.weight"
    ]
    state = {
        f"transformer.{module}.lora_A.weight": torch.ones(2, weight.shape[1]),
        f"transformer.{module}.lora_B.weight": torch.ones(weight.shape[0], 2),
    }
    with pytest.raises(LoraNotApplied, match=f"{module} changes the modulation"):
        parts.adapters.attach("style", state)
    assert parts.adapters.attached == ("lightning_8",)


def test_a_fused_lora_of_the_time_embedding_and_the_modulation_is_in_the_rows(
    source: Path,
) -> None:
    """Rows are computed from the fused weights, so they are those of a model published fused."""
    file = source / "transformer/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    modules = [
        "time_text_embed.timestep_embedder.linear_1",
        "time_text_embed.timestep_embedder.linear_2",
        "transformer_blocks.0.img_mod.1",
        "transformer_blocks.1.txt_mod.1",
    ]
    generator = torch.Generator().manual_seed(2)
    state: dict[str, Tensor] = {}
    for module in modules:
        rows_, columns = weights[f"{module}.weight"].shape
        state[f"{module}.lora_A.weight"] = torch.randn(2, columns, generator=generator) * 0.05
        state[f"{module}.lora_B.weight"] = torch.randn(rows_, 2, generator=generator) * 0.05
    fused = _made(source, state)
    plain = _made(source, None)
    for module in modules:
        a, b = (state[f"{module}.lora_{side}.weight"] for side in "AB")
        weights[f"{module}.weight"] = lora.fuse(weights[f"{module}.weight"].bfloat16(), a, b)
    save_file(weights, file)
    published = _made(source, None)
    assert fused.keys() == published.keys()
    for stem, state in published.items():
        assert state.keys() == fused[stem].keys()
        assert all(torch.equal(fused[stem][key], tensor) for key, tensor in state.items()), stem
    assert not torch.equal(fused["modulation"][rows.ROWS], plain["modulation"][rows.ROWS])
    assert not torch.equal(
        fused["weights"]["time_text_embed.timestep_embedder.linear_1.weight"],
        plain["weights"]["time_text_embed.timestep_embedder.linear_1.weight"],
    )


def _made(source: Path, fused: dict[str, Tensor] | None) -> dict[str, dict[str, Tensor]]:
    """Return what the transformer's one shard becomes with a LoRA fused into it."""
    asked = order(source, source)
    published = RECIPE.check(asked.snapshot, asked.spec)
    (shard,) = published.shards["transformer"]
    work = Work(TRANSFORMER, published, asked.snapshot, "bf16", CPU, fused)
    keys = rows.compute_keys(published.configs["scheduler"])
    transform = Transformer(work, keys[:5])
    state = load_file(source / shard.file.path)
    return transform(shard, state.__getitem__)
