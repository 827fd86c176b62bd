"""What is in a published folder, by its bytes: the identity of a model without a repository."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from worker.bundle import headers, layout
from worker.bundle.layout import METHOD, Verified
from worker.bundle.recipe import Recipe
from worker.errors import WeightsUnavailable
from worker.weights.checkpoint import ABOUT, INDEX
from worker.weights.proof import RemoteFile
from worker.weights.snapshot import Snapshot, find_file
from worker.weights.spec import LoraFile

# What a config.json says about who wrote it, not about the model.
VOLATILE: Final = ("_name_or_path", "_diffusers_version", "transformers_version")
FINGERPRINT_DIGITS: Final = 12


def digest_meaning(name: str, data: bytes) -> str:
    """Return the digest of what a small file says, regardless of who wrote it."""
    if name.endswith(".json"):
        value = json.loads(data)
        if isinstance(value, dict):
            value = {key: entry for key, entry in value.items() if key not in VOLATILE}
        data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return f"{name}:{hashlib.sha256(data).hexdigest()}"


def list_switches(index: Mapping[str, Any], names: Iterable[str]) -> dict[str, bool]:
    """Return which of the named entries of a model_index.json are true."""
    return {name: True for name in names if index.get(name) is True}


@dataclass(frozen=True)
class Content:
    """A published folder; each file is read at most once, when it is first needed.

    Its components are the recipe's, small ones first: most differences are found without reading
    the largest. Every method raises what the snapshot raises, and WeightsUnavailable for broken
    JSON.
    """

    snapshot: Snapshot
    recipe: Recipe
    _digests: dict[str, list[str]] = field(default_factory=dict, compare=False, repr=False)

    def list_digests(self, role: str) -> list[str]:
        """Return the digests of a component's shards and of what its small files say.

        They identify it; empty when the folder has no component of that role.
        """
        if role not in self._digests:
            part = self.recipe.find_part(role)
            weights = (
                headers.list_weight_files(self.snapshot, role, part.pickle)
                if part.has_weights
                else []
            )
            small = headers.list_configuration_files(self.snapshot, role)
            self._digests[role] = sorted(
                [*map(self._digest_meaning, small), *map(self.snapshot.digest, weights)]
            )
        return self._digests[role]

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Return what the model says about itself in worker.json, if it has one.

        With the recipe's switches, as a check of it gives them.
        """
        by_path = {file.path: file for file in self.snapshot.files}
        facts: dict[str, Any] = self._read_json(by_path[ABOUT]) if ABOUT in by_path else {}
        if not self.recipe.switches or INDEX not in by_path:
            return facts
        return facts | list_switches(self._read_json(by_path[INDEX]), self.recipe.switches)

    def make_fingerprint(self, pipeline: str, loras: Iterable[LoraFile]) -> str:
        """Return a short digest, equal for two folders of the same model.

        `loras` are the Lightning LoRAs among the folder's own files that belong to it.
        """
        digests = {part.role: self.list_digests(part.role) for part in self.recipe.parts}
        own = {lora.filename: self._digest(lora) for lora in loras}
        text = json.dumps([pipeline, digests, self.facts, own], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_DIGITS]

    def find_difference(self, found: Verified, loras: Iterable[LoraFile]) -> str | None:
        """Name the first thing in a bundle that was not made from this folder; None when all was.

        Every component must have the identity that one made from the folder's files would have.
        `loras` are the Lightning LoRAs among the folder's own files to compare.
        """
        if found.bundle.facts != self.facts:
            return ABOUT
        for role in (part.role for part in self.recipe.parts):
            digests = self.list_digests(role)
            if bool(digests) != (role in found.parts):
                return role
            if digests and not _is_made_of(found, role, digests):
                return role
        recorded = {lora.filename: lora.digest for lora in found.bundle.lightning.values()}
        for lora in loras:
            if recorded.get(lora.filename) != self._digest(lora):
                return lora.filename.rpartition("/")[2]
        return None

    def _digest(self, lora: LoraFile) -> str:
        return self.snapshot.digest(find_file(self.snapshot, lora.filename))

    def _digest_meaning(self, file: RemoteFile) -> str:
        data = self.snapshot.read_file(file)
        try:
            return digest_meaning(file.path.rpartition("/")[2], data)
        except ValueError:
            raise self._make_error(file) from None

    def _read_json(self, file: RemoteFile) -> Any:
        data = self.snapshot.read_file(file)
        try:
            return json.loads(data)
        except ValueError:
            raise self._make_error(file) from None

    def _make_error(self, file: RemoteFile) -> WeightsUnavailable:
        return WeightsUnavailable(
            f"{self.snapshot.repository}: {file.path} is broken JSON; replace that file"
        )


def _is_made_of(found: Verified, role: str, digests: Iterable[str]) -> bool:
    recipe = found.parts[role][1].recipe
    is_ours = recipe.get("recipe") == METHOD
    return (
        is_ours and layout.compute_identity(role, digests, recipe) == found.bundle.components[role]
    )
