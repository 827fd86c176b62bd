"""Tokenizers and processors of plain files: opened as they are, no code of a repository is run."""

from pathlib import Path
from typing import Any


def open_tokenizer(folder: Path) -> Any:
    """Open a tokenizer; raises what transformers does for files that are none."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - takes seconds to import

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def open_processor(folder: Path) -> Any:
    """Open a processor; raises what transformers does for files that are none."""
    from transformers import AutoProcessor  # noqa: PLC0415 - takes seconds to import

    return AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
