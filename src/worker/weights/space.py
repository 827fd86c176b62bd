"""Disk space: checked before the first byte is written, and reported when it runs out."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from worker.errors import VolumeFull, WeightsUnavailable, WorkerError
from worker.settings import Settings

GB_BYTES: Final = 1_000_000_000
FULL: Final = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE: Final = (errno.EROFS, errno.EACCES, errno.EPERM)
# A name or size that a file system does not accept, a path through a file, a failing disk.
UNUSABLE_DISK: Final = (
    errno.ENAMETOOLONG,
    errno.EFBIG,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.EINVAL,
    errno.EIO,
    errno.ESTALE,
    errno.ENODEV,
    errno.ENXIO,
    errno.EOPNOTSUPP,
)


def find_existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    while not folder.is_dir():
        folder = folder.parent
    return folder


def free_bytes(folder: Path, settings: Settings) -> int:
    """Return how many bytes may still be written below a folder.

    Network volumes report the cluster's free space, not the quota: with VOLUME_SIZE_GB set, the
    answer is at most that size minus what is on the volume.
    """
    folder = find_existing(folder)
    state = os.statvfs(folder)
    free = state.f_bavail * state.f_frsize
    if settings.volume_size_gb is not None:
        volume = _find_volume(folder)
        # a home on no volume: the quota is meant for it, not for the container
        root = find_existing(settings.home) if volume == Path(volume.anchor) else volume
        free = min(free, int(settings.volume_size_gb * GB_BYTES) - count_used_bytes(root))
    return max(free, 0)


def count_used_bytes(root: Path) -> int:
    """Return the bytes that a tree takes on its disk, other disks mounted in it excluded."""
    device = root.stat().st_dev
    total = 0
    counted: set[int] = set()
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if _read_device(Path(folder, f)) == device]
        for name in files:
            try:
                state = Path(folder, name).lstat()
            except OSError:  # another worker's temporary file, deleted meanwhile
                continue
            if state.st_ino not in counted:
                counted.add(state.st_ino)
                total += state.st_blocks * 512  # POSIX counts st_blocks in 512 bytes
    return total


def require_space(needed: int, folder: Path, settings: Settings) -> None:
    """Check that `needed` bytes fit below the folder and leave MIN_STORAGE_FREE_GB.

    Raises VolumeFull, which says how much is missing.
    """
    free = free_bytes(folder, settings)
    reserve = int(settings.min_storage_free_gb * GB_BYTES)
    if (missing := needed + reserve - free) > 0:
        raise VolumeFull(
            f"{_show_gb(missing)} more disk space is needed: {_show_gb(needed)} to write and"
            f" {_show_gb(reserve)} to leave free (MIN_STORAGE_FREE_GB), and {_show_gb(free)} is"
            " free; take a larger volume, or delete what it no longer needs"
        )


@contextmanager
def translate_errors(needed: int, folder: Path, settings: Settings) -> Iterator[None]:
    """Turn a disk error inside the block into a WorkerError.

    `needed` is how many bytes the block writes. Raises VolumeFull for ENOSPC and EDQUOT, and
    WeightsUnavailable when the folder cannot be written at all.
    """
    try:
        yield
    except WorkerError:
        raise
    except OSError as error:
        if failure := explain_disk_failure(error.errno, needed, folder, settings):
            raise failure from error
        raise


def explain_disk_failure(
    number: int | None, needed: int, folder: Path, settings: Settings
) -> WorkerError | None:
    """Return the WorkerError for an errno; None for one that is not about the disk.

    None of them is retried: a disk that refuses once refuses again.
    """
    if number in FULL:
        free = free_bytes(folder, settings)
        quota = "" if free < needed or number == errno.ENOSPC else " (its quota is used up)"
        return VolumeFull(
            f"the disk was full while {_show_gb(needed)} were written{quota}: at least"
            f" {_show_gb(max(needed - free, 0))} more is needed; take a larger volume, or delete"
            " what it no longer needs"
        )
    if number in UNWRITABLE:
        return make_unwritable()
    if number in UNUSABLE_DISK:
        return WeightsUnavailable(
            f"MODEL_DIR cannot hold the weights ({os.strerror(number)}): set it to a folder of"
            " another disk"
        )
    return None


def is_writable(folder: Path) -> bool:
    """Return whether files can be created in a folder, or it itself where it does not exist."""
    try:
        while not os.path.lexists(folder):
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        return error.errno not in (*UNWRITABLE, *UNUSABLE_DISK, errno.ENOENT)


def make_unwritable(why: str = "") -> WeightsUnavailable:
    """Return the error for a MODEL_DIR that cannot be written; `why` says why it must be."""
    return WeightsUnavailable(
        f"MODEL_DIR cannot be written{why}: mount the volume read-write, or set MODEL_DIR to a"
        " folder that this worker may write"
    )


def _find_volume(folder: Path) -> Path:
    """Return the mount point above a folder."""
    folder = folder.resolve()
    while not folder.is_mount():
        folder = folder.parent
    return folder


def _read_device(folder: Path) -> int | None:
    try:
        return folder.lstat().st_dev
    except OSError:
        return None


def _show_gb(count: int) -> str:
    return (
        f"{count / GB_BYTES:.2f} GB" if count >= GB_BYTES // 100 else f"{count / 1_000_000:.3f} MB"
    )
