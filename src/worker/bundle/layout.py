"""What is in a bundle's folder, how each part is identified, and how it is proven complete.

    HOME/bundles/NAME/manifest.json     one model at one precision: which components it is made of
    HOME/components/ID/manifest.json    one component: its files with sizes and sha256
    HOME/components/ID/...              safetensors files and configuration

A bundle that was pushed somewhere carries its components in its own folder. A component's ID is a
digest of its source files' digests and of what is done with them, so models that publish the same
text encoder share one. Each manifest is published last and by one rename; a folder without one
does not count, so half a bundle is never opened, even where locks do not work.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from worker.errors import WeightsUnavailable
from worker.weights import temporary
from worker.weights.names import MAIN, is_same_repository
from worker.weights.snapshot import LOCAL
from worker.weights.space import UNWRITABLE

FORMAT: Final = 1
# Increased when the same sources would give other files: part of every component's identity.
METHOD: Final = 1
MANIFEST: Final = "manifest.json"
BUNDLES: Final = "bundles"
COMPONENTS: Final = "components"
DAMAGED: Final = ".damaged-"
# Stems of a component's safetensors files; the second stays on the disk, mapped.
WEIGHTS: Final = "weights"
MAPPED: Final = "modulation"
ADAPTER: Final = "adapter"
LIBRARIES: Final = ("torch", "diffusers", "transformers", "bitsandbytes", "safetensors")
HASHING_THREADS: Final = 8
# A manifest may come from a repository: no name in it may lead out of its folder.
SAFE_NAME: Final = r"^[\w-][\w.-]*$"
# Characters of a revision that name_bundle keeps and that it makes from no other character.
PLAIN_REVISION: Final = re.compile(r"[A-Za-z0-9._]+")


SafeName = Annotated[str, StringConstraints(pattern=SAFE_NAME)]


class Damaged(WeightsUnavailable):
    """A part of a bundle differs from its manifest; `folder` is that part."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"the bundle's {folder.name} is damaged: {reason}")
        self.folder = folder


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class FileRecord(_Record):
    """A file's size in bytes and its sha256."""

    size: int
    sha256: str


class Component(_Record):
    """One component: what it was made from (`sources`: path -> digest), how, and its files."""

    format: int
    identity: SafeName
    role: str
    recipe: dict[str, Any]
    sources: dict[str, str]
    prepared_on: str
    libraries: dict[str, str]
    files: dict[SafeName, FileRecord]


class LoraRecord(_Record):
    """Where a Lightning LoRA came from; `digest` is "sha256:..." as its hub recorded it.

    `scale` is the digest of what its file states about its scale besides the tensors, "" when it
    states nothing, and None in bundles of 0.1.0, which did not look.
    """

    repository: str
    filename: str
    digest: str
    scale: str | None = None


class Bundle(_Record):
    """One model at one precision; `components` maps roles to identities.

    `repository` and `revision` are what it was made from: a commit, or "local" for a folder.
    `asked` is the requested revision, which meant this commit then; None for a folder and in what
    0.1.0 prepared. `fused` is the step count of the Lightning LoRA in the weights, None without
    one. `offered` are all Lightning LoRAs among the model's published files (step count -> file),
    whether in the bundle or not. `facts` is the model's own worker.json, if it has one.
    `lightning_place` and `replaced` are the settings LIGHTNING and TRANSFORMER that it was made
    with, "" without.
    """

    format: int
    model: str
    repository: str
    revision: str
    asked: str | None = None
    pipeline: str
    precision: Literal["4bit", "8bit", "bf16"]
    fused: int | None
    lightning: dict[int, LoraRecord]
    offered: dict[int, str] = {}
    components: dict[str, SafeName]
    libraries: dict[str, str]
    facts: dict[str, Any] = {}
    lightning_place: str = ""
    replaced: str = ""


Manifest = TypeVar("Manifest", Bundle, Component)


@dataclass(frozen=True, slots=True)
class Verified:
    """A bundle whose files are all there: `parts` maps roles to (folder, manifest)."""

    folder: Path
    bundle: Bundle
    parts: Mapping[str, tuple[Path, Component]]

    @property
    def size(self) -> int:
        """Return the total size of its files in bytes."""
        return sum(r.size for _, part in self.parts.values() for r in part.files.values())


def name_adapter(steps: int) -> str:
    """Name the component, and the adapter, of the Lightning LoRA for a number of steps."""
    return f"lightning_{steps}"


def name_bundle(model: str, precision: str, fused: int | None) -> str:
    """Name a bundle by model and precision, and by the LoRA in its weights if there is one."""
    safe = "".join(c if c.isalnum() or c in "-._" else "-" for c in model.replace("/", "--"))
    return f"{safe}-{precision}" + (f"-lightning{fused}" if fused else "")


def compute_identity(role: str, digests: Iterable[str], recipe: Mapping[str, Any]) -> str:
    """Return a component's ID, the name of its folder."""
    facts = {"format": FORMAT, "role": role, "digests": sorted(digests), "recipe": recipe}
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return f"{role}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"


def list_libraries() -> dict[str, str]:
    """Return the versions of the libraries that decide the content of a prepared file."""
    found: dict[str, str] = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def publish(folder: Path, manifest: Bundle | Component) -> None:
    """Publish a finished folder: write its manifest, sync it and rename it into place."""
    target = folder / MANIFEST
    part = temporary.make_path(target)
    part.write_text(manifest.model_dump_json(indent=1) + "\n")
    temporary.publish(part, target)


def find_component(bundle: Path, name: str) -> Path:
    """Return the folder of a bundle's component: inside it if it was pushed, else next to it."""
    inside = bundle / COMPONENTS / name
    return inside if inside.is_dir() else bundle.parent.parent / COMPONENTS / name


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle's manifest.

    Raises FileNotFoundError when there is none, Damaged when it cannot be understood.
    """
    return _read(folder, Bundle)


def read_component(folder: Path) -> Component:
    """Read a component's manifest.

    Raises FileNotFoundError when there is none, Damaged when it cannot be understood.
    """
    return _read(folder, Component)


def _read(folder: Path, kind: type[Manifest]) -> Manifest:
    text = (folder / MANIFEST).read_bytes()
    try:
        manifest = kind.model_validate_json(text)
    except ValidationError as error:
        raise Damaged(folder, f"its manifest has {error.error_count()} faults") from None
    if manifest.format != FORMAT:
        raise Damaged(folder, f"format {manifest.format}, and this worker reads {FORMAT}")
    return manifest


def verify(folder: Path, level: Literal["sizes", "full"] = "sizes") -> Verified:
    """Check that every file of a bundle has its size and, at "full", its sha256.

    Raises FileNotFoundError when there is no bundle, and Damaged naming the first part that is
    missing or wrong.
    """
    bundle = read_bundle(folder)
    parts = {}
    for role, name in bundle.components.items():
        place = find_component(folder, name)
        try:
            part = read_component(place)
        except FileNotFoundError:
            raise Damaged(place, "it is not there") from None
        verify_component(place, part, level)
        parts[role] = (place, part)
    return Verified(folder, bundle, parts)


def find_fault(folder: Path) -> str | None:
    """Return why a folder is not a bundle that can be opened; None when it is."""
    try:
        verify(folder)
    except Damaged as error:
        return error.message
    except OSError:
        return "has no bundle"
    return None


def verify_component(place: Path, part: Component, level: Literal["sizes", "full"]) -> None:
    """Check a component's files; raises Damaged."""
    for name, record in part.files.items():
        try:
            size = (place / name).stat().st_size
        except OSError:
            raise Damaged(place, f"{name} is missing") from None
        if size != record.size:
            raise Damaged(place, f"{name} has {size} bytes instead of {record.size}")
    if level == "full":
        with ThreadPoolExecutor(HASHING_THREADS) as pool:
            found = pool.map(lambda name: hash_file(place / name), part.files)
            for (name, record), digest in zip(part.files.items(), found, strict=True):
                if digest != record.sha256:
                    raise Damaged(place, f"{name} has another sha256 than recorded")


def hash_file(path: Path) -> str:
    """Return a file's sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def quarantine(folder: Path) -> Path:
    """Rename a damaged part so that it is never opened, and return its new name.

    What was quarantined earlier is deleted; `drop_quarantined` deletes this too, once it is
    replaced. Raises WeightsUnavailable where nothing can be renamed.
    """
    drop_quarantined(folder)
    quarantined = folder.with_name(f"{folder.name}{DAMAGED}{int(time.time())}-{os.getpid()}")
    try:
        folder.rename(quarantined)
    except FileNotFoundError:  # another worker quarantined it meanwhile
        pass
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise WeightsUnavailable(
            f"the bundle's {folder.name} is damaged, and its place cannot be written: mount that"
            " read-write, so that the part is made again, or replace the bundle"
        ) from error
    return quarantined


def drop_quarantined(folder: Path) -> None:
    """Delete what was quarantined of a part."""
    for old in folder.parent.glob(f"{folder.name}{DAMAGED}*"):
        for path in sorted(old.rglob("*"), reverse=True):
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        with suppress(OSError):
            old.rmdir()


def list_files(verified: Verified) -> dict[str, Path]:
    """Return every file of a bundle by its path in a repository that has all of it."""
    files = {MANIFEST: verified.folder / MANIFEST}
    for place, part in verified.parts.values():
        for name in (MANIFEST, *part.files):
            files[f"{COMPONENTS}/{part.identity}/{name}"] = place / name
    return files


def read_ahead(found: Verified) -> None:
    """Ask the kernel to read a bundle into its cache, without waiting.

    It does so while torch is being imported. Mapped files are left out.
    """
    for place, part in found.parts.values():
        for name in part.files:
            if name.startswith(MAPPED):
                continue
            with suppress(OSError):
                number = os.open(place / name, os.O_RDONLY)
                try:
                    os.posix_fadvise(number, 0, 0, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(number)


def list_prepared(home: Path) -> list[tuple[Path, Bundle]]:
    """Return the bundles that were prepared here, in the order of their folders' names.

    One that was downloaded carries its components; the claims of its manifest are someone else's.
    """
    found = []
    for manifest in sorted((home / BUNDLES).glob(f"*/{MANIFEST}")):
        folder = manifest.parent
        if not (folder / COMPONENTS).is_dir():
            with suppress(Damaged, OSError):
                found.append((folder, read_bundle(folder)))
    return found


def is_of_revision(folder: Path, bundle: Bundle, revision: str) -> bool:
    """Return whether a bundle is certainly of a revision: its commit, or the one requested then.

    0.1.0 recorded the latter in the folder's name alone, where letters, digits, "." and "_" stand
    for themselves; "-" may stand for any other character.
    """
    if bundle.revision == LOCAL:
        return False
    if bundle.asked is not None or revision == bundle.revision:
        return revision in (bundle.asked, bundle.revision)
    names = [f"{bundle.model}@{revision}"] if PLAIN_REVISION.fullmatch(revision) else []
    names += [bundle.model] if revision == MAIN else []
    return folder.name in [name_bundle(n, bundle.precision, bundle.fused) for n in names]


def find_bundles(model: str, home: Path) -> list[Path]:
    """Return the folders of a model's bundles at all precisions, by what their manifests say.

    `model` is "org/name" or "org/name@revision" (default: main), or a model's name, which may also
    be a folder's.
    """
    name, _, revision = model.partition("@")

    def is_meant(folder: Path, bundle: Bundle) -> bool:
        if "/" in name:
            return is_same_repository(bundle.repository, name) and is_of_revision(
                folder, bundle, revision or MAIN
            )
        is_folders = bundle.revision == LOCAL and not revision
        return bundle.model == name and (
            is_folders or is_of_revision(folder, bundle, revision or MAIN)
        )

    return [folder for folder, bundle in list_prepared(home) if is_meant(folder, bundle)]


def read_ahead_of(models: Iterable[str], home: Path) -> None:
    """Read ahead the bundle of every model that has exactly one; see `find_bundles` for names."""
    for model in models:
        candidates = find_bundles(model, home)
        if len(candidates) == 1:
            with suppress(Damaged, OSError):
                read_ahead(verify(candidates[0]))
