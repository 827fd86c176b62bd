"""What a hub knows of a repository: a revision's commit, once and for all, and its files."""

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
from worker.weights.address import Hub
from worker.weights.download import HubSnapshot
from worker.weights.names import MAIN, file_name, same
from worker.weights.passing import OFFLINE, failure
from worker.weights.proof import RemoteFile
from worker.weights.retry import Again, Patience, refused

KEPT: Final = "revisions"
_FILES: Final = TypeAdapter(tuple[RemoteFile, ...])
# 0.1.0 kept no revision in the record and wrote "_" for each of the other signs of its name: what
# it kept under such a name could be another revision's.
_UNSAFE: Final = re.compile(r"[^\w.-]+")
PLAIN: Final = re.compile(r"[A-Za-z0-9.-]+")


def resolve(
    repository: str,
    revision: str | None,
    settings: Settings,
    *,
    patience: Patience | None = None,
) -> HubSnapshot:
    """Return the commit that a revision (default: main) means, with every file's size and digest.

    The answer is kept in MODEL_DIR: later starts, and a start after a crash, go on with the same
    commit although the revision may have moved, and ask the hub nothing. Delete
    MODEL_DIR/revisions to ask again. Raises WeightsUnavailable, and HubUnreachable when trying
    later may help. Under HF_HUB_OFFLINE nothing is asked: a commit that is known is one whose files
    would still have to come.
    """
    if settings.hf_hub_offline:
        raise WeightsUnavailable(f"{repository}: {OFFLINE}")
    patience = patience or Patience.of(settings)
    hub = Hub.of(settings)
    log.hide(hub.token)
    kept, known = _known(repository, revision or MAIN, settings)
    if known is None:
        known = patience.insist(lambda: _ask(repository, revision, hub, patience), repository)
        _keep(kept, repository, revision or MAIN, *known)
    commit, files = known
    return HubSnapshot(repository, commit, files, settings, hub, patience, kept=kept)


def known_commit(repository: str, revision: str | None, settings: Settings) -> str | None:
    """Return the commit that MODEL_DIR remembers for a revision (default: main); asks nobody."""
    _, known = _known(repository, revision or MAIN, settings)
    return known[0] if known else None


def _ask(
    repository: str, revision: str | None, hub: Hub, patience: Patience
) -> tuple[str, tuple[RemoteFile, ...]]:
    """Ask once, by huggingface_hub; raises Again or WeightsUnavailable."""
    # imported here: half a second that a start from a bundle does not need
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
        raise refused(status, error.response.headers.get("Retry-After"), repository) from None
    except Exception as error:
        # huggingface_hub 1 and 2 raise the errors of httpx and httpx2, of json, and their own
        raise failure(error, repository, named=hub.named) from error
    files = tuple(_file(sibling, repository) for sibling in info.siblings or ())
    if not info.sha or not files:
        raise WeightsUnavailable(
            f"{repository}: the hub names no commit or no files of it: the repository is empty, or"
            " HF_ENDPOINT is no hub"
        )
    return info.sha, files


def _file(sibling: Any, repository: str) -> RemoteFile:
    path = str(sibling.rfilename)
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path:
        raise WeightsUnavailable(f"{repository}: a file of it would be written outside its folder")
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    if sibling.size is None or not (sha256 or sibling.blob_id):
        raise Again("the hub's answer lacks the size or the digest of a file")
    return RemoteFile(path, int(sibling.size), sha256=sha256, blob_id=sibling.blob_id)


def _known(
    repository: str, revision: str, settings: Settings
) -> tuple[Path, tuple[str, tuple[RemoteFile, ...]] | None]:
    """Return what is remembered of a revision and the file that it is, or would be, in."""
    folder = settings.home / KEPT
    own = folder / f"{file_name(repository, revision)}.json"
    if (known := _kept(own, repository, revision)) is not None:
        return own, known
    if PLAIN.fullmatch(revision):
        old = folder / f"{_UNSAFE.sub('_', repository.replace('/', '--'))}_{revision}.json"
        if (known := _kept(old, repository, None)) is not None:
            return old, known
    return own, None


def _kept(
    path: Path, repository: str, revision: str | None
) -> tuple[str, tuple[RemoteFile, ...]] | None:
    try:
        record = json.loads(path.read_bytes())
        if not same(record["repository"], repository) or record.get("revision") != revision:
            return None
        return str(record["commit"]), _FILES.validate_python(record["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError):
        return None


def _keep(
    path: Path, repository: str, revision: str, commit: str, files: tuple[RemoteFile, ...]
) -> None:
    record = {
        "repository": repository,
        "revision": revision,
        "commit": commit,
        "files": _FILES.dump_python(files, mode="json"),
    }
    part = temporary.unique(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(record))
        temporary.publish(part, path)
    except OSError as error:  # the files themselves will say what is wrong with the place
        with suppress(OSError):  # a read-only place refuses that too
            part.unlink()
        log.get().warning("revision not kept", repository=repository, reason=error.strerror)
