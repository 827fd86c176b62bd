"""What a published folder holds, by its bytes: the identity of a model that has no repository."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from worker.bundle import headers, layout
from worker.bundle.layout import METHOD, Verified
from worker.bundle.making import Recipe
from worker.errors import WeightsUnavailable
from worker.weights.checkpoint import ABOUT
from worker.weights.proof import RemoteFile
from worker.weights.snapshot import Snapshot, find_file
from worker.weights.spec import LoraFile

# What a config.json says of who wrote it, not of what it describes.
VOLATILE: Final = ("_name_or_path", "_diffusers_version", "transformers_version")
FINGERPRINT_DIGITS: Final = 12


def digest_meaning(name: str, data: bytes) -> str:
    """Return the digest of what a small file says, without who wrote it."""
    if name.endswith(".json"):
        value = json.loads(data)
        if isinstance(value, dict):
            value = {key: held for key, held in value.items() if key not in VOLATILE}
        data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return f"{name}:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class Content:
    """A published folder whose files are read once, as far as they are asked for.

    Its components are the recipe's, whose small ones come first: most differences are found without
    reading the largest. Everything raises as the snapshot does, and WeightsUnavailable for broken
    JSON.
    """

    snapshot: Snapshot
    recipe: Recipe
    _digests: dict[str, list[str]] = field(default_factory=dict, compare=False, repr=False)

    def list_digests(self, role: str) -> list[str]:
        """Return what identifies a component; empty when the folder has none of that role.

        The digests of its shards and the meanings of its small files.
        """
        if role not in self._digests:
            has_weights = self.recipe.part(role).has_weights
            weights = headers.list_weight_files(self.snapshot, role) if has_weights else []
            small = headers.list_configuration_files(self.snapshot, role)
            self._digests[role] = sorted(
                [*map(self._meaning, small), *map(self.snapshot.digest, weights)]
            )
        return self._digests[role]

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Return what the model tells of itself in worker.json, if it has one."""
        for file in self.snapshot.files:
            if file.path == ABOUT:
                facts: dict[str, Any] = self._json(file)
                return facts
        return {}

    def make_fingerprint(self, pipeline: str, loras: Iterable[LoraFile]) -> str:
        """Return a short digest that two folders share when they are the same model.

        `loras` are the Lightning LoRAs among the folder's own files that belong to it.
        """
        held = {part.role: self.list_digests(part.role) for part in self.recipe.parts}
        own = {lora.filename: self._digest(lora) for lora in loras}
        text = json.dumps([pipeline, held, self.facts, own], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_DIGITS]

    def find_difference(self, found: Verified, loras: Iterable[LoraFile]) -> str | None:
        """Say what of a bundle was not made of this folder; None when all was.

        Every component must have the identity that one made of the folder's files would have.
        `loras` are the Lightning LoRAs to compare among the folder's own files.
        """
        if found.bundle.facts != self.facts:
            return ABOUT
        for role in (part.role for part in self.recipe.parts):
            held = self.list_digests(role)
            if bool(held) != (role in found.parts):
                return role
            if held and not _is_made_of(found, role, held):
                return role
        recorded = {lora.filename: lora.digest for lora in found.bundle.lightning.values()}
        for lora in loras:
            if recorded.get(lora.filename) != self._digest(lora):
                return lora.filename.rpartition("/")[2]
        return None

    def _digest(self, lora: LoraFile) -> str:
        return self.snapshot.digest(find_file(self.snapshot, lora.filename))

    def _meaning(self, file: RemoteFile) -> str:
        data = self.snapshot.read_file(file)
        try:
            return digest_meaning(file.path.rpartition("/")[2], data)
        except ValueError:
            raise self._broken(file) from None

    def _json(self, file: RemoteFile) -> Any:
        data = self.snapshot.read_file(file)
        try:
            return json.loads(data)
        except ValueError:
            raise self._broken(file) from None

    def _broken(self, file: RemoteFile) -> WeightsUnavailable:
        return WeightsUnavailable(
            f"{self.snapshot.repository}: {file.path} is broken JSON; replace that file"
        )


def _is_made_of(found: Verified, role: str, held: Iterable[str]) -> bool:
    recipe = found.parts[role][1].recipe
    is_ours = recipe.get("recipe") == METHOD
    return is_ours and layout.compute_identity(role, held, recipe) == found.bundle.components[role]
