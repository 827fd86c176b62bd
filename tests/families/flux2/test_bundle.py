"""A FLUX.2 becomes a bundle: its parts equal the published ones, but for the precision."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import Qwen3ForCausalLM

from worker.bundle import layout
from worker.bundle.content import Content
from worker.bundle.open import make_shared
from worker.bundle.prepare import compute_sizes, prepare
from worker.engine.quantise import NF4_STATE, Precision
from worker.errors import DeviceLost
from worker.families.flux2.modules import find_language_model
from worker.families.flux2.opening import open_bundle
from worker.families.flux2.prompts import KLEIN_TEMPLATE, TextEncoder
from worker.families.flux2.published import open_published
from worker.families.flux2.recipe import RECIPE
from worker.weights.snapshot import LocalSnapshot
from worlds.small_flux import Kind
from worlds.stock_flux import CPU, latents_of, model_of, order_of, references
from worlds.wishes import WISH

Publish = Callable[[Kind], Path]
THREE = replace(WISH, task="edit", references=references(3), reference_weights=(2.0, 0.5, 1.0))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume that all bundles are prepared on."""
    return tmp_path_factory.mktemp("home")


def wish_for(kind: Kind) -> Any:
    return {"klein": THREE, "dev": replace(THREE, guidance=4.0)}.get(
        kind, replace(THREE, negative_prompt="", true_cfg_scale=4.0)
    )


@pytest.mark.parametrize("kind", ["klein", "base", "dev"])
def test_a_bundle_in_bf16_gives_what_the_published_weights_give(
    publish: Publish, home: Path, kind: Kind
) -> None:
    """To the last bit, with references, weights and guidance; and every file is proven."""
    folder = prepare(order_of(publish(kind), home))
    assert layout.find_fault(folder) is None
    ours = open_bundle(folder, CPU, verify="full")
    theirs = open_published(publish(kind), dtype=torch.bfloat16, device=CPU)
    wish = wish_for(kind)
    found = latents_of(model_of(ours, kind), wish)
    assert torch.equal(found, latents_of(model_of(theirs, kind), wish))
    assert found.isfinite().all()


@pytest.mark.parametrize("kind", ["klein", "base", "dev"])
def test_a_bundle_is_known_as_its_folders_own_until_a_switch_is_turned(
    publish: Publish, home: Path, tmp_path: Path, kind: Kind
) -> None:
    """At the next start it is opened, not made again; a folder that is distilled is another."""
    found = layout.verify(prepare(order_of(publish(kind), home)))
    folder = Path(shutil.copytree(publish(kind), tmp_path / kind))
    assert Content(LocalSnapshot(folder, "x"), RECIPE).find_difference(found, []) is None
    index = json.loads((folder / "model_index.json").read_bytes())
    index["is_distilled"] = not index.get("is_distilled")
    (folder / "model_index.json").write_text(json.dumps(index))
    assert Content(LocalSnapshot(folder, "x"), RECIPE).find_difference(found, []) is not None


@pytest.mark.parametrize(("precision", "bound"), [("8bit", 0.02), ("4bit", 0.25)])
@pytest.mark.parametrize("kind", ["klein", "dev"])
def test_fewer_bits_stay_near(
    publish: Publish, home: Path, kind: Kind, precision: Precision, bound: float
) -> None:
    """Of random weights and four steps: the relative distance of the latents."""
    wish = wish_for(kind)
    exact = open_published(publish(kind), dtype=torch.bfloat16, device=CPU)
    bundle = open_bundle(prepare(order_of(publish(kind), home, precision)), CPU)
    ours, theirs = (latents_of(model_of(parts, kind), wish).float() for parts in (bundle, exact))
    distance = float((ours - theirs).norm() / theirs.norm())
    assert 0 < distance < bound, distance


def test_the_linears_of_blocks_alone_have_fewer_bits(publish: Publish, home: Path) -> None:
    """Of the transformer; and of the text encoder those of its layers."""
    found = layout.verify(prepare(order_of(publish("klein"), home, "4bit")))
    for role, count in (("transformer", 12 + 2 * 2), ("text_encoder", 3 * 7), ("vae", 0)):
        folder, component = found.parts[role]
        names: set[str] = set()
        for file in (name for name in component.files if name.endswith(".safetensors")):
            with safe_open(folder / file, "pt") as opened:
                names |= {key for key in opened.keys() if key.endswith(NF4_STATE)}  # noqa: SIM118 - no mapping
        assert len(names) == count, names
        assert all("blocks." in name or "layers." in name for name in names)


def test_what_no_prompt_needs_is_not_in_a_bundle(publish: Publish, home: Path) -> None:
    """The last quarter of the layers, the final norm, the head, the vision tower."""
    cases: list[tuple[Kind, str]] = [("klein", "model"), ("dev", "model.language_model")]
    for kind, language in cases:
        parts = open_bundle(prepare(order_of(publish(kind), home)), CPU)
        names = dict(parts.text_encoder.named_parameters())
        assert {name.split("layers.")[1][0] for name in names if "layers." in name} == set("012")
        assert all(name.startswith(f"{language}.") for name in names)
        assert f"{language}.norm.weight" not in names


def test_the_layers_that_are_left_give_what_they_gave(publish: Publish) -> None:
    """The prompt of the cut encoder is that of the complete one, to the last bit."""
    parts = open_published(publish("klein"), dtype=torch.float32, device=CPU)
    complete = Qwen3ForCausalLM.from_pretrained(publish("klein") / "text_encoder")
    embeds = latents_prompt(parts)
    states = complete(**tokens_of(parts), output_hidden_states=True).hidden_states
    expected = torch.cat([states[layer] for layer in (1, 2, 3)], dim=-1)
    assert torch.equal(embeds, expected)


def latents_prompt(parts: Any) -> torch.Tensor:
    return TextEncoder(parts.tokenizer, parts.text_encoder, KLEIN_TEMPLATE).encode(WISH.prompt)


def tokens_of(parts: Any) -> Any:
    text = parts.tokenizer.apply_chat_template(
        [{"role": "user", "content": WISH.prompt}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    return parts.tokenizer(text, return_tensors="pt", padding="max_length", max_length=512)


def test_models_share_their_text_encoder_and_vae(publish: Publish, home: Path) -> None:
    """Two of the same: on the volume by their sources, in memory by the part."""
    share = make_shared()
    kinds: tuple[Kind, Kind] = ("klein", "base")
    first, second = (prepare(order_of(publish(kind), home)) for kind in kinds)
    ids = [layout.read_bundle(folder).components for folder in (first, second)]
    assert ids[0]["text_encoder"] == ids[1]["text_encoder"]
    assert ids[0]["vae"] == ids[1]["vae"]
    one, two = (open_bundle(folder, CPU, share=share) for folder in (first, second))
    assert one.text_encoder is two.text_encoder
    assert one.vae is two.vae
    assert one.transformer is not two.transformer


def test_every_byte_is_proven_where_that_is_asked_for(
    publish: Publish, home: Path, tmp_path: Path
) -> None:
    """By sizes alone, weights that were altered are opened."""
    folder = prepare(order_of(publish("klein"), home))
    copied = shutil.copytree(home, tmp_path / "home", symlinks=True) / folder.relative_to(home)
    place, _ = layout.verify(copied).parts["transformer"]
    (weights, *_) = sorted(place.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    open_bundle(copied, CPU)
    with pytest.raises(layout.Damaged):
        open_bundle(copied, CPU, verify="full")


@pytest.mark.parametrize("kind", ["klein", "dev"])
@pytest.mark.parametrize("precision", ["bf16", "4bit"])
def test_a_text_encoder_that_waits_gives_what_one_on_the_device_gives(
    publish: Publish, home: Path, kind: Kind, precision: Precision
) -> None:
    """To the last bit, layer by layer; the table of embeddings stays where it is."""
    folder = prepare(order_of(publish(kind), home, precision))
    there, waiting = (open_bundle(folder, CPU, waiting=where) for where in (None, CPU))
    for parts, passes in ((there, False), (waiting, True)):
        model = find_language_model(parts.text_encoder)
        assert {bool(layer._forward_pre_hooks) for layer in model.layers} == {passes}
        assert bool(model.embed_tokens._forward_hooks) is passes
    ours, theirs = (model_of(parts, kind)._prompts for parts in (waiting, there))
    for text in (WISH.prompt, "another", WISH.prompt):
        assert torch.equal(ours.encode(text), theirs.encode(text))


def test_what_was_kept_is_dropped_where_memory_is_short_and_at_the_end(publish: Publish) -> None:
    model = model_of(open_published(publish("klein"), dtype=torch.float32, device=CPU), "klein")
    first, cache, full = latents_of(model, THREE), model._cache, [True]
    assert cache._used > 0

    def run_out(frugal: bool) -> int:
        if full.pop():
            full.append(False)
            raise torch.OutOfMemoryError
        return int(frugal)

    assert model._phases.run("decode", 1, run_out) == 1
    assert cache._used == 0
    assert torch.equal(latents_of(model, THREE), first)
    assert cache._used > 0
    model.release()
    assert cache._used == 0


def test_a_transformer_that_a_released_model_leaves_behind_is_found(publish: Publish) -> None:
    """Something still refers to it: the next model has no room."""
    model = model_of(open_published(publish("klein"), dtype=torch.float32, device=CPU), "klein")
    leak = model._parts.transformer
    with pytest.raises(DeviceLost, match="not freed"):
        model.release()
    assert leak is not None


def test_sizes_are_known_from_headers(publish: Publish, home: Path) -> None:
    """Before anything is made, and as it is then."""
    order = order_of(publish("klein"), home, "8bit")
    sizes = compute_sizes(order)["8bit"]
    found = layout.verify(prepare(order))
    for role in ("transformer", "text_encoder", "vae"):
        stored = sum(
            record.size
            for name, record in found.parts[role][1].files.items()
            if name.endswith(".safetensors")
        )
        assert 0 <= stored - sizes.parts[role] < 60_000, role  # the files' own headers
