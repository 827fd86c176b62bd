"""A folder of files -> one commit in a hub repository, by huggingface_hub."""

import sys
from collections.abc import Mapping
from pathlib import Path

from worker.errors import HubUnreachable, WeightsUnavailable
from worker.settings import Settings
from worker.weights.hub import Hub
from worker.weights.retry import AttemptFailed, classify_status
from worker.weights.transient import classify_error


def push(files: Mapping[str, Path], repository: str, settings: Settings) -> str:
    """Upload files (path in the repository -> local file) in one commit; return the commit.

    A missing repository is created, private. huggingface_hub uploads large files first and skips
    those that the hub has, so that an interrupted push can be continued. Raises WeightsUnavailable
    (no token, or one that may not write), HubUnreachable.
    """
    from huggingface_hub import CommitOperationAdd, HfApi  # noqa: PLC0415 - half a second
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415
    from huggingface_hub.utils.tqdm import disable_progress_bars  # noqa: PLC0415

    hub = Hub.from_settings(settings)
    if hub.token is None:
        raise WeightsUnavailable("push needs HF_TOKEN, a token that may write")
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    if not sys.stderr.isatty():
        disable_progress_bars()
    operations = [CommitOperationAdd(path, str(local)) for path, local in sorted(files.items())]
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        commit = api.create_commit(repository, operations, commit_message="Upload")
    except HFValidationError:
        raise WeightsUnavailable(f"{repository[:100]}: not a repository name: org/name") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if isinstance(classify_status(status, None, repository), AttemptFailed):
            raise _make_unreachable(repository, f"the hub answered {status}") from None
        raise WeightsUnavailable(
            f"{repository}: the hub refuses the push (status {status}): HF_TOKEN must be one that"
            " may write to it"
        ) from None
    except Exception as error:
        failure = classify_error(error, repository, custom_host=hub.is_custom)
        if isinstance(failure, AttemptFailed):
            reason = f"the upload broke off ({type(error).__name__})"
            raise _make_unreachable(repository, reason) from error
        raise failure from error
    return commit.oid


def _make_unreachable(repository: str, reason: str) -> HubUnreachable:
    return HubUnreachable(f"{repository}: {reason}; push again, and it goes on where it stopped")
