"""A LoRA of the hub: found at one commit, downloaded by the client of the weights, and proven."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Final

from worker import log
from worker.errors import HubUnreachable, LoraFetchFailed, LoraRefused, WeightsUnavailable
from worker.loras.configuration import CONFIGURATION_NAME, LARGEST_CONFIGURATION, PEFT_NAME
from worker.loras.form import find_form_fault
from worker.loras.kept import Fetched, KeptLoras
from worker.loras.origin import HubFile
from worker.settings import Settings
from worker.weights import metadata
from worker.weights.download import HubSnapshot
from worker.weights.hub import Hub
from worker.weights.proof import RemoteFile
from worker.weights.retry import Missing, Patience

# By which names diffusers and peft save a LoRA.
USUAL_NAMES: Final = ("pytorch_lora_weights.safetensors", PEFT_NAME)


class Abandoned(Exception):
    """Unwind a download that no job waits for any more."""


def fetch_from_hub(
    requested: HubFile,
    key: str,
    kept: KeptLoras,
    settings: Settings,
    *,
    with_token: bool,
    stop: threading.Event,
) -> Fetched:
    """Bring a file of the hub into the cache, unless its bytes are there, and return what it is.

    Blocks. Raises LoraRefused, LoraFetchFailed, VolumeFull; Abandoned soon after `stop` is set.
    """
    own = Hub.from_settings(settings)
    hub = own if with_token else Hub(own.endpoint, None)
    patience = Patience.from_settings(settings)
    with _translate(requested):
        if settings.hf_hub_offline:
            raise LoraRefused("this worker contacts no hub (HF_HUB_OFFLINE)")
        commit, files = patience.retry(
            lambda: metadata.ask(requested.repository, requested.revision, hub, patience),
            requested.repository,
        )
        snapshot = HubSnapshot(requested.repository, commit, files, settings, hub, patience)
        file = _choose(requested, files)
        if file.size > settings.max_lora_bytes:
            raise LoraRefused(f"a LoRA must have at most {settings.max_lora_bytes} bytes")
        configuration = _read_configuration(snapshot, file)
        if file.sha256 is not None and kept.has(file.sha256, file.size):
            fetched = Fetched(file.sha256, file.size, configuration)
            kept.record(key, fetched)
            return fetched
        kept.make_room(file.size)
        into = kept.make_part(key)
        try:

            def check_stop(_file: RemoteFile, _done: int) -> None:
                if stop.is_set():
                    raise Abandoned

            proven = snapshot.fetch_file(file, into, check_stop)
            if fault := find_form_fault(proven.path):
                raise LoraRefused(f"{requested.repository}: {fault}")
            fetched = Fetched(proven.sha256, file.size, configuration)
            kept.keep(proven.path, key, fetched)
        finally:
            shutil.rmtree(into, ignore_errors=True)
    return fetched


def _choose(requested: HubFile, files: tuple[RemoteFile, ...]) -> RemoteFile:
    """Return the requested file of a repository, or its only LoRA; raises LoraRefused."""
    named = {file.path: file for file in files if file.path.endswith(".safetensors")}
    if requested.path is not None:
        if requested.path in named:
            return named[requested.path]
        raise LoraRefused(f"{requested.repository} has no file of that name at that revision")
    usual = [named[name] for name in USUAL_NAMES if name in named]
    found = usual or list(named.values())
    if len(found) == 1:
        return found[0]
    names = f"one of {', '.join(sorted(named)[:5])}" if named else "another: it has no safetensors"
    raise LoraRefused(f"{requested.repository}: name {names}")


def _read_configuration(snapshot: HubSnapshot, file: RemoteFile) -> str | None:
    """Return the adapter_config.json next to a file; None when there is none.

    It is about every LoRA there: a repository is one publication, of one training.
    """
    path = PurePosixPath(file.path).with_name(CONFIGURATION_NAME).as_posix()
    found = next((one for one in snapshot.files if one.path == path), None)
    if found is None:
        return None
    if found.size > LARGEST_CONFIGURATION:
        raise LoraRefused(f"its {CONFIGURATION_NAME} has {found.size} bytes, which none has")
    try:
        return snapshot.read_file(found).decode()
    except UnicodeDecodeError:
        raise LoraRefused(f"its {CONFIGURATION_NAME} is no text") from None


@contextmanager
def _translate(requested: HubFile) -> Iterator[None]:
    """Turn what the hub's client raises into errors about a LoRA; the log has its own words."""
    try:
        yield
    except HubUnreachable as error:
        log.get().warning("lora not fetched", reason=error.message)
        raise LoraFetchFailed(
            f"the hub did not deliver {requested.repository}; try later"
        ) from None
    except WeightsUnavailable as error:
        log.get().warning("lora not fetched", reason=error.message)
        reason = (
            "the hub has no such repository, revision or file, or it is private"
            if isinstance(error, Missing)
            else "the hub refuses it: it is private or gated, there is none, or it was taken down"
        )
        raise LoraRefused(f"{requested.repository}: {reason}") from None
