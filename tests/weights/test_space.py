"""Room is counted as the disk counts it: each file once, other disks not, down to zero."""

import errno
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from worker import settings
from worker.errors import VolumeFull, WeightsUnavailable
from worker.weights import space

MB = 1_000_000


@pytest.fixture
def mount() -> Iterator[Callable[[Path], None]]:
    """Put a disk in memory on a folder until the test ends."""
    with ExitStack() as leaving:

        def mounted(folder: Path) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            command = ["mount", "-t", "tmpfs", "-o", "size=16M", "tmpfs", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(done.stderr.strip() or "mount failed")
            leaving.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)

        yield mounted


def written(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path


def test_other_disks_below_the_home_do_not_count(
    tmp_path: Path, mount: Callable[[Path], None]
) -> None:
    """The quota is the volume's: what is mounted in it lies elsewhere, and so does all in that."""
    home = tmp_path / "home"
    written(home / "own/file", 2 * MB)
    mount(home / "other")
    mount(home / "own/deeper/other")
    written(home / "other/file", 3 * MB)
    written(home / "other/folder/file", 3 * MB)
    written(home / "own/deeper/other/file", 3 * MB)
    assert 2 * MB <= space.count_used_bytes(home) < 2.1 * MB
    assert 3 * MB <= space.count_used_bytes(home / "own/deeper/other") < 3.1 * MB


def test_the_quota_is_of_the_volume_that_the_home_is_on(
    tmp_path: Path, mount: Callable[[Path], None]
) -> None:
    """Neighbours on the volume count, what is above its mount point does not."""
    written(tmp_path / "above", 5 * MB)
    mount(tmp_path / "volume")
    written(tmp_path / "volume/neighbour/file", 3 * MB)
    home = tmp_path / "volume/home"
    written(home / "file", 2 * MB)
    read = settings.read({"VOLUME_SIZE_GB": "0.012", "MODEL_DIR": str(home)})
    (tmp_path / "link").symlink_to(home)
    for folder in (home, tmp_path / "link"):
        free = space.free_bytes(folder / "not/there/yet", read)
        assert 6.9 * MB < free <= 7 * MB


def test_what_the_disk_has_left_bounds_a_larger_quota(
    tmp_path: Path, mount: Callable[[Path], None]
) -> None:
    mount(tmp_path / "volume")
    written(tmp_path / "volume/file", 6 * MB)
    read = settings.read({"VOLUME_SIZE_GB": "100", "MODEL_DIR": str(tmp_path / "volume")})
    assert 10 * MB < space.free_bytes(tmp_path / "volume", read) < 11 * MB


def test_a_quota_that_is_used_up_leaves_nothing(
    tmp_path: Path, mount: Callable[[Path], None]
) -> None:
    mount(tmp_path / "volume")
    written(tmp_path / "volume/file", 3 * MB)
    read = settings.read({"VOLUME_SIZE_GB": "0.002", "MODEL_DIR": str(tmp_path / "volume")})
    assert space.free_bytes(tmp_path / "volume", read) == 0


def test_a_sparse_file_takes_what_is_in_it(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(50 * MB)
    written(tmp_path / "small", 1)
    assert 0 < space.count_used_bytes(tmp_path) < MB


def test_links_to_files_elsewhere_do_not_count(tmp_path: Path) -> None:
    target = written(tmp_path / "elsewhere", 3 * MB)
    home = tmp_path / "home"
    home.mkdir()
    (home / "link").symlink_to(target)
    (home / "gone").symlink_to(tmp_path / "nothing")
    written(tmp_path / "folder/file", 3 * MB)
    (home / "folder").symlink_to(tmp_path / "folder")
    assert space.count_used_bytes(home) < MB


def test_room_for_exactly_what_is_needed_is_room_enough(
    tmp_path: Path, mount: Callable[[Path], None]
) -> None:
    mount(tmp_path / "volume")
    read = settings.read({"MIN_STORAGE_FREE_GB": "0.002", "MODEL_DIR": str(tmp_path / "volume")})
    free = space.free_bytes(tmp_path / "volume", read)
    space.require_space(free - 2 * MB, tmp_path / "volume", read)
    with pytest.raises(VolumeFull):
        space.require_space(free - 2 * MB + 1, tmp_path / "volume", read)


@pytest.mark.parametrize(("size", "said"), [(9_999_999, "10.000 MB"), (10_000_000, "0.01 GB")])
def test_small_sizes_are_told_in_mb(tmp_path: Path, size: int, said: str) -> None:
    read = settings.read({"MODEL_DIR": str(tmp_path)})
    error = space.explain_disk_failure(errno.ENOSPC, size, tmp_path, read)
    assert isinstance(error, VolumeFull)
    assert f"while {said} were written" in error.message


def test_a_full_disk_says_how_much_is_missing(
    tmp_path: Path, mount: Callable[[Path], None]
) -> None:
    mount(tmp_path / "volume")
    read = settings.read({"MODEL_DIR": str(tmp_path / "volume")})
    free = space.free_bytes(tmp_path / "volume", read)
    error = space.explain_disk_failure(errno.ENOSPC, free + 3 * MB, tmp_path / "volume", read)
    assert isinstance(error, VolumeFull)
    assert "at least 3.000 MB more is needed" in error.message
    assert "quota" not in error.message


def test_a_quota_that_the_disk_does_not_show_is_named(tmp_path: Path) -> None:
    """EDQUOT with room enough on the disk: the limit is the account's."""
    read = settings.read({"MODEL_DIR": str(tmp_path)})
    free = space.free_bytes(tmp_path, read)
    for number, needed, named in (
        (errno.EDQUOT, 1, True),
        (errno.EDQUOT, free + 10_000 * MB, False),
        (errno.ENOSPC, 1, False),
    ):
        error = space.explain_disk_failure(number, needed, tmp_path, read)
        assert isinstance(error, VolumeFull)
        assert ("its quota is used up" in error.message) == named
        assert "-" not in error.message.split("at least")[1].split("more")[0]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_place_that_cannot_be_written_is_told_as_that(tmp_path: Path, number: int) -> None:
    with (
        pytest.raises(WeightsUnavailable, match=r"^MODEL_DIR cannot be written: mount"),
        space.translate_errors(1, tmp_path, settings.read({})),
    ):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_place_that_is_full_is_told_as_that(tmp_path: Path, number: int) -> None:
    with (
        pytest.raises(VolumeFull, match="was full"),
        space.translate_errors(1, tmp_path, settings.read({})),
    ):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", [errno.ECONNRESET, errno.ENOENT, None])
def test_an_error_that_is_not_about_the_place_stays_what_it_is(
    tmp_path: Path, number: int | None
) -> None:
    error = OSError(number, "x") if number else OSError("x")
    with pytest.raises(OSError) as raised, space.translate_errors(1, tmp_path, settings.read({})):  # noqa: PT011 - which one is tested
        raise error
    assert raised.value is error


def test_an_error_of_ours_passes_as_it_is(tmp_path: Path) -> None:
    error = VolumeFull("of the inner block")
    with (
        pytest.raises(VolumeFull) as raised,
        space.translate_errors(1, tmp_path, settings.read({})),
    ):
        raise error
    assert raised.value is error


@pytest.mark.parametrize(("size", "said"), [(8_000_500, "8.001 MB"), (8_000_495, "8.000 MB")])
def test_a_mb_is_a_million_bytes(tmp_path: Path, size: int, said: str) -> None:
    error = space.explain_disk_failure(errno.ENOSPC, size, tmp_path, settings.read({}))
    assert isinstance(error, VolumeFull)
    assert f"the disk was full while {said} were written: at least" in error.message


@pytest.mark.parametrize(("needed", "named"), [(100, True), (101, False)])
def test_a_quota_is_named_where_the_disk_itself_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needed: int, *, named: bool
) -> None:
    monkeypatch.setattr(space, "free_bytes", lambda *_: 100)
    error = space.explain_disk_failure(errno.EDQUOT, needed, tmp_path, settings.read({}))
    assert isinstance(error, VolumeFull)
    assert ("written (its quota is used up): at least" in error.message) == named


def test_a_quota_of_gb_is_counted_to_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk itself has room enough; a file takes whole blocks."""
    disk = SimpleNamespace(f_bavail=1 << 30, f_frsize=1 << 12)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    monkeypatch.setattr(space, "_find_volume", lambda _: Path("/"))
    read = settings.read({"VOLUME_SIZE_GB": "3", "MODEL_DIR": str(tmp_path)})
    assert space.free_bytes(tmp_path, read) == 3_000_000_000
    file = written(tmp_path / "file", MB)
    assert space.count_used_bytes(tmp_path) == file.stat().st_blocks * 512


def test_what_goes_while_it_is_counted_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever comes first: the others do."""
    names = [written(tmp_path / name, MB).name for name in ("a", "b")]
    names += [written(tmp_path / name / "file", MB).parent.name for name in ("c", "d")]
    lstat = Path.lstat
    for gone in names:

        def read(path: Path, gone: str = gone) -> os.stat_result:
            if path.name == gone:
                raise FileNotFoundError(errno.ENOENT, "gone")
            return lstat(path)

        monkeypatch.setattr(Path, "lstat", read)
        assert 3 * MB <= space.count_used_bytes(tmp_path) < 3.1 * MB


@pytest.mark.parametrize(
    ("number", "writable"),
    [
        (None, True),
        (errno.ENOSPC, True),
        (errno.EROFS, False),
        (errno.EACCES, False),
        (errno.EIO, False),
        (errno.ENOENT, False),
    ],
)
def test_a_place_is_writable_if_files_can_be_made_in_it_or_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None, *, writable: bool
) -> None:
    """A full disk is one that can be written."""
    make = tempfile.TemporaryFile
    asked: list[Path] = []

    def made(*, dir: Path) -> object:  # noqa: A002 - its own name
        asked.append(dir)
        if number is not None:
            raise OSError(number, os.strerror(number))
        return make(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", made)
    assert space.is_writable(tmp_path / "not/there/yet") == writable
    assert asked == [tmp_path]


def test_a_link_to_nothing_and_a_file_are_no_writable_places(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "file").touch()
    assert not space.is_writable(tmp_path / "link")
    assert not space.is_writable(tmp_path / "file")
