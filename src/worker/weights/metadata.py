"""What a hub knows about a repository: the commit of a revision, resolved once, and its files."""

import json
import re
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from worker import log
from worker.errors import WeightsUnavailable
from worker.settings import Settings
from worker.weights import temporary
from worker.weights.download import HubSnapshot
from worker.weights.hub import Hub
from worker.weights.names import MAIN, is_same_repository, make_file_name
from worker.weights.proof import RemoteFile
from worker.weights.retry import AttemptFailed, Patience, classify_status
from worker.weights.transient import OFFLINE, classify_error

KEPT: Final = "revisions"
_FILES: Final = TypeAdapter(tuple[RemoteFile, ...])
# 0.1.0 wrote no revision into the record, and "_" for every other character into its name: such a
# record may be another revision's.
PLAIN: Final = re.compile(r"[A-Za-z0-9.-]+")


def resolve(
    repository: str,
    revision: str | None,
    settings: Settings,
    *,
    patience: Patience | None = None,
) -> HubSnapshot:
    """Return the commit that a revision (default: main) names, with every file's size and digest.

    The answer is recorded in MODEL_DIR: later starts, and a start after a crash, use the same
    commit even if the revision has moved, and ask the hub nothing. Delete MODEL_DIR/revisions to
    ask again. Raises WeightsUnavailable (HubUnreachable when trying later may help), and always
    under HF_HUB_OFFLINE: the files of a recorded commit would still have to be downloaded.
    """
    if settings.hf_hub_offline:
        raise WeightsUnavailable(f"{repository}: {OFFLINE}")
    patience = patience or Patience.from_settings(settings)
    hub = Hub.from_settings(settings)
    path, known = _find_record(repository, revision or MAIN, settings)
    if known is None:
        known = patience.retry(lambda: ask(repository, revision, hub, patience), repository)
        _write_record(path, repository, revision or MAIN, *known)
    commit, files = known
    return HubSnapshot(repository, commit, files, settings, hub, patience, record=path)


def find_known_commit(repository: str, revision: str | None, settings: Settings) -> str | None:
    """Return the commit recorded in MODEL_DIR for a revision (default: main); asks no hub."""
    _, known = _find_record(repository, revision or MAIN, settings)
    return known[0] if known else None


def ask(
    repository: str, revision: str | None, hub: Hub, patience: Patience
) -> tuple[str, tuple[RemoteFile, ...]]:
    """Ask once, by huggingface_hub; raises AttemptFailed or WeightsUnavailable."""
    # imported here: half a second, which a start from a bundle does not need
    from huggingface_hub import HfApi  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    api = HfApi(endpoint=hub.endpoint, token=hub.token or False)
    try:
        info = api.model_info(
            repository, revision=revision, files_metadata=True, timeout=patience.stall_s
        )
    except HFValidationError:
        raise WeightsUnavailable(
            f"{repository[:100]}: not a repository name; write org/name in MODEL"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        retry_after = error.response.headers.get("Retry-After")
        raise classify_status(status, retry_after, repository) from None
    except Exception as error:
        # huggingface_hub 1 and 2 raise the errors of httpx and httpx2, of json, and their own
        raise classify_error(error, repository, custom_host=hub.is_custom) from error
    files = tuple(_read_file(sibling, repository) for sibling in info.siblings or ())
    if not info.sha or not files:
        raise WeightsUnavailable(
            f"{repository}: the hub names no commit, or no files in it: the repository is empty, or"
            " HF_ENDPOINT is not a hub"
        )
    return info.sha, files


def _read_file(sibling: Any, repository: str) -> RemoteFile:
    path = str(sibling.rfilename)
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path:
        raise WeightsUnavailable(f"{repository}: a file would be written outside its folder")
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    if sibling.size is None or not (sha256 or sibling.blob_id):
        raise AttemptFailed("the hub's answer lacks the size or the digest of a file")
    return RemoteFile(path, int(sibling.size), sha256=sha256, blob_id=sibling.blob_id)


def _find_record(
    repository: str, revision: str, settings: Settings
) -> tuple[Path, tuple[str, tuple[RemoteFile, ...]] | None]:
    """Return the file that records a revision, or would, and the commit and files in it."""
    folder = settings.home / KEPT
    path = folder / f"{make_file_name(repository, revision)}.json"
    if (known := _read_record(path, repository, revision)) is not None:
        return path, known
    if PLAIN.fullmatch(revision):
        old = folder / f"{repository.replace('/', '--')}_{revision}.json"
        if (known := _read_record(old, repository, None)) is not None:
            return old, known
    return path, None


def _read_record(
    path: Path, repository: str, revision: str | None
) -> tuple[str, tuple[RemoteFile, ...]] | None:
    try:
        record = json.loads(path.read_bytes())
        if (
            not is_same_repository(record["repository"], repository)
            or record.get("revision") != revision
        ):
            return None
        return str(record["commit"]), _FILES.validate_python(record["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError):
        return None


def _write_record(
    path: Path, repository: str, revision: str, commit: str, files: tuple[RemoteFile, ...]
) -> None:
    record = {
        "repository": repository,
        "revision": revision,
        "commit": commit,
        "files": _FILES.dump_python(files),
    }
    part = temporary.make_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(record))
        temporary.publish(part, path)
    except OSError as error:  # the download itself will report what is wrong with the folder
        with suppress(OSError):  # a read-only folder refuses that too
            part.unlink()
        log.get().warning("revision not kept", repository=repository, reason=error.strerror)
