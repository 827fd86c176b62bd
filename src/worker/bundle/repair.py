"""A damaged part is made again once; if it is still damaged, it is not made a third time."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Final

from worker import log
from worker.bundle.layout import Damaged, list_libraries, quarantine, verify
from worker.errors import WeightsUnavailable

NOTES: Final = "mended"


def start(damage: Damaged, home: Path) -> None:
    """Quarantine a damaged part so that it can be made again, and leave a note of it.

    The note stays until a bundle with the part has opened: without it, weights that never open
    would be downloaded and prepared at every start. Raises WeightsUnavailable when there already
    is a note, written with the same libraries, or when the part cannot be quarantined.
    """
    note = _find_note(damage.folder, home)
    if _is_kept(note):
        raise make_error(damage)
    log.get().warning("damaged part quarantined", reason=damage.message)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"libraries": list_libraries()}))
        quarantine(damage.folder)
    except OSError as error:
        raise WeightsUnavailable(
            f"{damage.message}; it cannot be made again in its place ({error.strerror}): replace it"
        ) from damage


def make_error(damage: Damaged) -> WeightsUnavailable:
    """Return the error for a part that was made again and is still damaged."""
    return WeightsUnavailable(
        f"{damage.message}; it was made again once and is still damaged: the weights do not fit"
        " this worker, or the disk loses data. It is not made a third time: name another model, or"
        f" delete {NOTES}/ of MODEL_DIR to try again"
    )


def finish(bundle: Path, home: Path) -> None:
    """Delete the notes of a bundle and its parts, which have opened."""
    if not (home / NOTES).is_dir():
        return
    with suppress(OSError, Damaged):
        for part in (bundle, *(folder for folder, _ in verify(bundle).parts.values())):
            _find_note(part, home).unlink(missing_ok=True)


def _find_note(part: Path, home: Path) -> Path:
    return home / NOTES / f"{part.name}.json"


def _is_kept(note: Path) -> bool:
    """Return whether a part was made again with these libraries: with others it may open."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        is_same: bool = json.loads(note.read_bytes())["libraries"] == list_libraries()
        return is_same
    return False
