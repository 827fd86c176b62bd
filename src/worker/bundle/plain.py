"""Tokenizers and processors of plain files: opened as they are, no code of a repository is run."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from worker.errors import WeightsUnavailable

T = TypeVar("T")


def open_tokenizer(folder: Path) -> Any:
    """Open a tokenizer; raises what transformers does for files that are none."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - takes seconds to import

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def open_processor(folder: Path) -> Any:
    """Open a processor; raises what transformers does for files that are none."""
    from transformers import AutoProcessor  # noqa: PLC0415 - takes seconds to import

    return AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def try_opening(
    component: str, files: Mapping[str, bytes], opening: Callable[[Path], T], of: str
) -> T:
    """Open a component from its small files alone, which are those of a model, `of`.

    Raises WeightsUnavailable.
    """
    with tempfile.TemporaryDirectory(prefix="worker-") as folder:
        for name, data in files.items():
            Path(folder, name).write_bytes(data)
        try:
            return opening(Path(folder))
        except Exception as error:
            # whatever transformers raises for such files, it raises every time
            raise WeightsUnavailable(
                f"{component}/ cannot be opened ({type(error).__name__}): its files are not those"
                f" of a {of}"
            ) from error
