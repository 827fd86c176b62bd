"""What one start has compiled the next loads; what is wrong with it costs a compile, no more."""

import hashlib
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
import torch
from torch import Tensor
from torch._inductor import codecache  # noqa: F401 - registers its kind of artifact
from torch.compiler._cache import CacheArtifactManager

from worker import settings
from worker.bundle import kept_graphs
from worker.bundle.kept_graphs import KeptGraphs, digest_sources
from worker.engine import artifacts
from worker.engine.compiled import Compiled

NEW = {"event": "compiled graphs kept", "log_level": "info"}
OLD = {"event": "compiled graphs loaded", "log_level": "info"}
# In another process, as the next worker: whether inductor found its graphs, and compiled none.
NEXT = textwrap.dedent(
    """
    import sys, torch
    from torch._dynamo.utils import counters
    from worker import settings
    from worker.bundle.kept_graphs import KeptGraphs
    from worker.engine.compiled import Compiled

    def multiply(x, y):
        return (torch.mm(x, y),)

    KeptGraphs(settings.read({"MODEL_DIR": sys.argv[1]}), ["a"]).load()
    run = Compiled(multiply)
    with torch.inference_mode():
        x = torch.rand(7, 5)
        assert torch.equal(run(x, x.T)[0], x @ x.T)
    assert run.is_active
    found = counters["inductor"]
    print(found["fxgraph_cache_hit"], found["fxgraph_cache_miss"])
    """
)


@pytest.fixture(autouse=True)
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A compiler that has compiled nothing, in this process or on its own disk."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "own"))
    CacheArtifactManager.clear()
    yield
    CacheArtifactManager.clear()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """MODEL_DIR, which is not there yet."""
    return tmp_path / "models"


def kept(home: Path, *words: str, **environ: str) -> KeptGraphs:
    """Return the graphs of a kind, as a start opens them."""
    given = {"MODEL_DIR": str(home), "MIN_STORAGE_FREE_GB": "0", **environ}
    return KeptGraphs(settings.read(given), words or ("a",))


def compile_one(name: str, size: int = 1) -> None:
    """Have torch record something as compiled: a graph without Triton code."""
    graph = SimpleNamespace(_triton_bundle=None, code=name * size)
    CacheArtifactManager.record_artifact("inductor", f"key-{name}", pickle.dumps(graph))


def installed(tmp_path: Path) -> list[str]:
    """Return what torch's compiler finds on its disk."""
    return sorted(path.parent.name for path in (tmp_path / "own").rglob("*") if path.is_file())


def files(home: Path) -> list[Path]:
    return sorted((home / "compiled").iterdir()) if (home / "compiled").is_dir() else []


def save(home: Path, *words: str, **environ: str) -> list[dict[str, Any]]:
    """Save what is compiled; return the lines of the log."""
    with structlog.testing.capture_logs() as lines:
        kept(home, *words, **environ).keep()
    return lines  # type: ignore[return-value] # a capture of mutable mappings


def load(home: Path, *words: str) -> list[dict[str, Any]]:
    """Load in a start that has compiled nothing; return the lines of the log."""
    CacheArtifactManager.clear()
    with structlog.testing.capture_logs() as lines:
        kept(home, *words).load()
    return lines  # type: ignore[return-value] # the same


def multiply(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return (torch.mm(x, y),)


def test_another_process_finds_every_graph_that_this_one_compiled(home: Path) -> None:
    """By inductor itself, called as the blocks call it, with an empty cache of its own.

    A product alone needs no C++ compiler. Another process is what this is about: what torch wrote
    must not depend on anything of this one.
    """
    run = Compiled(multiply)
    with torch.inference_mode():
        x = torch.rand(7, 5)
        run(x, x.T)
    assert run.is_active
    assert save(home)[0].items() >= NEW.items()
    environ = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(home / "empty")}
    command = [sys.executable, "-c", NEXT, str(home)]
    found = subprocess.run(command, env=environ, check=True, capture_output=True, text=True)
    assert found.stdout.splitlines()[-1] == "1 0"


def test_what_is_kept_is_installed_for_the_same_kind_alone(home: Path, tmp_path: Path) -> None:
    compile_one("x")
    save(home, "a", "b")
    assert load(home, "ab") == []
    assert installed(tmp_path) == []
    (line,) = load(home, "a", "b")
    assert line.items() >= OLD.items()
    assert line["bytes"] == files(home)[0].stat().st_size
    assert installed(tmp_path) == ["key-x"]


def test_only_what_is_more_than_what_was_loaded_is_written_and_replaces_it(home: Path) -> None:
    assert save(home) == []
    assert files(home) == []
    compile_one("x")
    save(home)
    (first,) = files(home)
    CacheArtifactManager.clear()
    start = kept(home)
    start.load()
    compile_one("x")
    with structlog.testing.capture_logs() as lines:
        start.keep()
    assert (lines, files(home)) == ([], [first])
    compile_one("y")
    compile_one("x")
    with structlog.testing.capture_logs() as lines:
        start.keep()
    assert [line["event"] for line in lines] == [NEW["event"]]
    (second,) = files(home)
    assert second != first
    assert artifacts.load(second.read_bytes()) == {"inductor key-x", "inductor key-y"}


def test_each_model_of_a_worker_keeps_all_of_its_own(home: Path) -> None:
    """What the second has in common with the first is in both."""
    for kind, names in (("a", "xy"), ("b", "yz")):
        for name in names:
            compile_one(name)
        save(home, kind)
    found = {artifacts.load(file.read_bytes()) for file in files(home)}
    assert found == {
        frozenset({"inductor key-x", "inductor key-y"}),
        frozenset({"inductor key-y", "inductor key-z"}),
    }


def spoil_cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def spoil_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def spoil_format(file: Path) -> None:
    """Another program's bytes, under their own digest."""
    file.unlink()
    key, digest = file.stem.split("-")[0], hashlib.sha256(b"\xff" * 9).hexdigest()
    file.with_name(f"{key}-{digest}.graphs").write_bytes(b"\xff" * 9)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_cut, "its digest differs"),
        (spoil_bit, "its digest differs"),
        (spoil_format, "torch cannot read it"),
    ],
)
def test_damaged_graphs_are_deleted_and_made_again(
    home: Path, tmp_path: Path, spoil: Any, reason: str
) -> None:
    compile_one("x")
    save(home)
    spoil(files(home)[0])
    lines = load(home)
    shown = [(line["event"], line["reason"]) for line in lines if "reason" in line]
    assert shown == [("compiled graphs not loaded", reason)]
    assert (files(home), installed(tmp_path)) == ([], [])
    compile_one("x")
    assert save(home)[0].items() >= NEW.items()
    assert len(files(home)) == 1


def test_graphs_that_cannot_be_read_stay_for_others(home: Path) -> None:
    """As where the disk of this worker is full: another's may not be."""
    compile_one("x")
    save(home)
    (file,) = files(home)
    content = file.read_bytes()
    file.unlink()
    file.mkdir()
    (line,) = load(home)
    assert line["reason"] == "Is a directory"
    assert "reason" in line
    assert file.is_dir()
    file.rmdir()
    file.write_bytes(content)
    assert load(home)[0].items() >= OLD.items()


def test_a_volume_that_takes_nothing_costs_a_line_of_the_log(home: Path) -> None:
    compile_one("x")
    (line,) = save(home, MIN_STORAGE_FREE_GB="1e9")
    assert line["event"] == "compiled graphs not kept"
    assert "more disk space is needed" in line["reason"]
    assert files(home) == []
    home.joinpath("compiled").rmdir()
    home.joinpath("compiled").write_text("a file")
    compile_one("x")
    (line,) = save(home)
    assert (line["event"], line["reason"]) == ("compiled graphs not kept", "File exists")


def test_a_disk_that_fills_while_writing_leaves_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_one("x")

    def fill(part: Path, data: bytes) -> int:
        with part.open("wb") as file:
            file.write(data[:1])
        raise OSError(28, "No space left on device", str(part))

    monkeypatch.setattr(Path, "write_bytes", fill)
    (line,) = save(home)
    assert (line["event"], line["reason"]) == (
        "compiled graphs not kept",
        "No space left on device",
    )
    assert files(home) == []


def test_graphs_over_the_limit_are_neither_written_nor_read(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_one("x", 100)
    save(home)
    size = files(home)[0].stat().st_size
    monkeypatch.setattr(kept_graphs, "MOST_FILE_BYTES", size)
    assert load(home)[0].items() >= OLD.items()
    files(home)[0].unlink()
    compile_one("x", 100)
    assert save(home)[0]["event"] == "compiled graphs kept"
    assert files(home)[0].stat().st_size == size
    monkeypatch.setattr(kept_graphs, "MOST_FILE_BYTES", size - 1)
    assert load(home)[0]["event"] == "compiled graphs not loaded"
    assert files(home) == []
    compile_one("x", 100)
    assert save(home)[0]["event"] == "compiled graphs not kept"
    assert files(home) == []


def save_in_turn(home: Path, *names: str) -> None:
    """Save one kind after another, each a second newer."""
    for seconds, name in enumerate(names, 1):
        CacheArtifactManager.clear()
        compile_one(name)
        save(home, name)
        for file in files(home):
            stat = file.stat()
            if stat.st_mtime > len(names):
                os.utime(file, (seconds, seconds))


def is_there(home: Path, name: str) -> bool:
    return bool(load(home, name))


def test_the_kinds_that_were_used_last_stay(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_graphs, "MOST_KINDS", 2)
    save_in_turn(home, "a", "b")
    assert is_there(home, "a")  # and so it was used last
    compile_one("c")
    save(home, "c")
    assert [is_there(home, name) for name in "abc"] == [True, False, True]


def test_all_kinds_together_have_a_limit(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_in_turn(home, "a", "b")
    size = files(home)[0].stat().st_size
    monkeypatch.setattr(kept_graphs, "MOST_BYTES", 3 * size)
    CacheArtifactManager.clear()
    compile_one("c")
    save(home, "c")
    assert len(files(home)) == 3
    monkeypatch.setattr(kept_graphs, "MOST_BYTES", 3 * size - 1)
    compile_one("d")
    save(home, "c")  # two artifacts, and the oldest leaves
    assert [is_there(home, name) for name in "abc"] == [False, True, True]


def add_kinds(home: Path, count: int, size: int) -> list[Path]:
    """Leave empty graphs of so many kinds, of `size` bytes each, the last used last."""
    (home / "compiled").mkdir(parents=True)
    left = [home / "compiled" / f"{number:020x}-{'0' * 64}.graphs" for number in range(count)]
    for seconds, file in enumerate(left, 1):
        file.touch()
        os.truncate(file, size)
        os.utime(file, (seconds, seconds))
    return left


@pytest.mark.parametrize("others", [15, 16])
def test_sixteen_kinds_stay(home: Path, others: int) -> None:
    left = add_kinds(home, others, 1)
    compile_one("x")
    save(home)
    assert len(files(home)) == 16
    assert set(left) - set(files(home)) == set(left[: others - 15])


@pytest.mark.parametrize("more", [0, 1])
def test_a_gibibyte_of_all_kinds_stays(home: Path, more: int) -> None:
    compile_one("x")
    save(home)
    (own,) = files(home)
    size = own.stat().st_size
    own.unlink()
    own.parent.rmdir()
    (other,) = add_kinds(home, 1, (1 << 30) - size + more)
    CacheArtifactManager.clear()
    compile_one("x")
    save(home)
    assert own.exists()
    assert other.exists() == (not more)


@pytest.mark.parametrize(
    ("size", "reason"),
    [(256 << 20, "its digest differs"), ((256 << 20) + 1, "more than 268435456 bytes")],
)
def test_graphs_of_256_mebibytes_are_read_and_of_more_are_not(
    home: Path, size: int, reason: str
) -> None:
    compile_one("x")
    save(home)
    os.truncate(files(home)[0], size)
    (line,) = load(home)
    assert (line["event"], line["reason"]) == ("compiled graphs not loaded", reason)


def test_graphs_are_discarded_by_a_start_that_loaded_them(home: Path) -> None:
    """One that cannot compile at all knows nothing of them."""
    compile_one("x")
    save(home)
    kept(home).drop()
    assert len(files(home)) == 1
    start = kept(home)
    start.load()
    start.drop()
    assert files(home) == []


def add_own(home: Path, *names: str) -> list[Path]:
    """Leave several files of one kind, as workers that wrote at once do; the last is the newest."""
    made = []
    for seconds, name in enumerate(names, 1):
        CacheArtifactManager.clear()
        compile_one(name)
        save(home)
        (file,) = (home / "compiled").glob(f"{kept(home).key}-*.graphs")
        os.utime(file, (seconds, seconds))
        hidden = file.with_suffix(".hidden")
        made.append(file.rename(hidden))
    CacheArtifactManager.clear()
    return [path.rename(path.with_suffix(".graphs")) for path in made]


def test_of_several_files_of_a_kind_the_newest_is_loaded(home: Path, tmp_path: Path) -> None:
    add_own(home, "x", "y", "z")
    assert load(home)[0].items() >= OLD.items()
    assert installed(tmp_path) == ["key-z"]


def test_what_another_worker_deletes_meanwhile_hides_nothing(home: Path, tmp_path: Path) -> None:
    """A link to nothing is listed and cannot be read, as what is deleted in between."""
    compile_one("x")
    save(home)
    gone = home / "compiled" / f"{kept(home).key}-{'0' * 64}.graphs"
    gone.symlink_to(home / "nowhere")
    assert load(home)[0].items() >= OLD.items()
    assert installed(tmp_path) == ["key-x"]


def test_what_cannot_be_deleted_keeps_nothing_from_being_kept(home: Path) -> None:
    stays = home / "compiled" / f"{kept(home).key}-{'0' * 64}.graphs"
    stays.mkdir(parents=True)
    compile_one("x")
    assert save(home)[0].items() >= NEW.items()
    assert len(files(home)) == 2


def test_what_replaces_or_discards_graphs_leaves_none_of_their_kind(home: Path) -> None:
    add_own(home, "x", "y", "z")
    compile_one("other")
    save(home, "b")
    (other,) = [file for file in files(home) if file.stem.startswith(kept(home, "b").key)]
    CacheArtifactManager.clear()
    compile_one("new")
    save(home)
    assert len(files(home)) == 2
    for file in add_own(home, "x", "y"):
        assert file.exists()
    start = kept(home)
    start.load()
    start.drop()
    assert files(home) == [other]


def test_a_start_keeps_what_it_compiled_and_drops_what_failed(home: Path) -> None:
    compile_one("x")
    kept(home).settle(is_compiled=True)
    assert len(files(home)) == 1
    start = kept(home)
    start.load()
    start.settle(is_compiled=False)
    assert files(home) == []


def test_a_limit_that_shrinks_deletes_all_that_is_over_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_in_turn(home, "a", "b", "c", "d")
    monkeypatch.setattr(kept_graphs, "MOST_KINDS", 1)
    CacheArtifactManager.clear()
    compile_one("e")
    save(home, "e")
    assert [is_there(home, name) for name in "abcde"] == [False] * 4 + [True]


def test_graphs_that_are_used_on_a_disk_that_takes_no_date_are_loaded(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_one("x")
    save(home)

    def refuse(_path: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    (line,) = load(home)
    assert line.items() >= OLD.items()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(5, "Input/output error", "/secret/place"), "Input/output error"),
        (OSError("/secret/place"), "OSError"),
        (ValueError("a value"), "a value"),
        (RuntimeError("/secret/place"), "RuntimeError"),
    ],
)
def test_a_reason_names_no_path(
    error: Exception, reason: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_one("x")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("worker.weights.temporary.publish", fail)
    (line,) = save(home)
    assert (line["event"], line["reason"]) == ("compiled graphs not kept", reason)
    assert files(home) == []


def test_what_a_dead_process_was_writing_is_deleted(home: Path) -> None:
    (home / "compiled").mkdir(parents=True)
    left = home / "compiled" / ".a.graphs.h00000000-1-1-1.part"
    left.touch()
    os.utime(left, (0, 0))
    compile_one("x")
    save(home)
    assert not left.exists()


def test_code_is_another_with_any_other_name_or_content(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "b.py").write_text("2")
    (tmp_path / "c.txt").write_text("3")
    first = digest_sources([tmp_path])
    (tmp_path / "c.txt").write_text("4")
    assert digest_sources([tmp_path]) == first
    (tmp_path / "inner" / "b.py").write_text("3")
    second = digest_sources([tmp_path])
    (tmp_path / "inner" / "b.py").rename(tmp_path / "inner" / "c.py")
    assert len({first, second, digest_sources([tmp_path])}) == 3
    inner = tmp_path / "inner"
    assert digest_sources([tmp_path, inner]) != digest_sources([tmp_path])
    assert digest_sources([inner]) != digest_sources([tmp_path])
    (inner / "d.py").write_text("1")
    third = digest_sources([tmp_path])
    (inner / "d.py").write_text("2")
    assert digest_sources([tmp_path]) != third


def test_graphs_depend_on_the_device_and_every_version(monkeypatch: pytest.MonkeyPatch) -> None:
    names = artifacts.list_makers(torch.device("cpu"))
    assert f"torch {torch.__version__}" in names
    assert {name.split()[0] for name in names[2:]} == {"torch", "triton", "bitsandbytes"}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    found = artifacts.list_makers(torch.device("cuda"))
    assert set(found) - set(names) == {"a card", "capability 9.0"}
