"""A volume that cannot be written serves what is whole on it, and says what to do where it is not.

HOME is read-only in every one of these starts, too.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker import boot, settings
from worker.bundle import layout
from worker.errors import WeightsUnavailable
from worker.weights import metadata
from worlds import hub as worlds_hub
from worlds import readonly
from worlds.hub import Hub
from worlds.prepared import folder_of
from worlds.readonly import case, started
from worlds.repository import tuned

pytestmark = pytest.mark.skipif(
    readonly.impossible() is not None, reason=str(readonly.impossible())
)
GB = 1 << 30
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with a published model."""
    with worlds_hub.running() as running:
        at = tmp_path_factory.mktemp("published")
        running.add("bob/foo", tuned(folder_of("tiny-edit"), at / "foo", 0.5))
        yield running


@pytest.fixture(scope="module")
def volume(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with the embedded pair, a folder, and a repository in 4bit."""
    home = tmp_path_factory.mktemp("volume")
    shutil.copytree(folder_of("tiny-image"), home / "mine/foo")
    environ = {
        "MODEL_DIR": str(home / "models"),
        "HF_ENDPOINT": hub.endpoint,
        "MIN_STORAGE_FREE_GB": "0",
    }
    boot.prepare(settings.read({**environ, "MODEL": f"tiny,{home}/mine/foo"}))
    boot.prepare(settings.read({**environ, "MODEL": "bob/foo", "PRECISION_MODE": "4bit"}))
    return home


@pytest.fixture
def environ(volume: Path) -> dict[str, str]:
    """What a worker on that volume has set, the hub out of reach and the disk said to be full."""
    return {
        "MODEL_DIR": str(volume / "models"),
        "HF_ENDPOINT": NOWHERE,
        "MIN_STORAGE_FREE_GB": "1000000",
        "DOWNLOAD_RETRIES": "0",
    }


def test_what_is_whole_is_served(volume: Path, environ: dict[str, str]) -> None:
    """The embedded pair, a folder's model and a repository's, without a hub and without room."""
    words = f"tiny,bob/foo,{volume}/mine/foo"
    before = {path: path.stat().st_mtime_ns for path in volume.rglob("*")}
    (answer,) = started([volume], case({**environ, "MODEL": words}, draw=True))
    assert [fact["source"] for fact in answer["facts"]] == ["MODEL_DIR"] * 4
    assert {path: path.stat().st_mtime_ns for path in volume.rglob("*")} == before


def test_nothing_that_a_start_remembers_must_be_there(
    volume: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    """Revisions, sizes and digests only save questions; locks and downloads are for preparing."""
    bare = Path(shutil.copytree(volume, tmp_path / "bare"))
    for path in (bare / "models").iterdir():
        if path.name not in (layout.BUNDLES, layout.COMPONENTS):
            shutil.rmtree(path)
    words = f"tiny,bob/foo,{bare}/mine/foo"
    given = {**environ, "MODEL_DIR": str(bare / "models"), "MODEL": words}
    (answer,) = started([bare], case(given))
    assert [fact["source"] for fact in answer["facts"]] == ["MODEL_DIR"] * 4


def test_the_precision_is_chosen_among_those_that_are_there(
    volume: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    """On a CPU and on a GPU, also without the sizes of what was published."""
    bare = Path(shutil.copytree(volume, tmp_path / "bare"))
    shutil.rmtree(bare / "models/sizes")
    for home in (volume, bare):
        foo = {**environ, "MODEL_DIR": str(home / "models"), "MODEL": "bob/foo"}
        cpu, gpu, asked, other = started(
            [home],
            case(foo),
            case(foo, gpu=40 * GB),
            case({**foo, "PRECISION_MODE": "4bit"}, gpu=40 * GB),
            case({**foo, "PRECISION_MODE": "8bit"}),
        )
        assert [a["facts"][0]["precision"] for a in (cpu, gpu, asked)] == ["4bit"] * 3
        assert other["code"] == "WEIGHTS_UNAVAILABLE"
        assert "4bit" in other["message"]
        assert "8bit" in other["message"]


def test_where_there_is_no_bundle_the_operator_is_told_what_to_do(
    hub: Hub, environ: dict[str, str], volume: Path, tmp_path: Path
) -> None:
    """At once: no hub is asked for weights that cannot be kept, and a restart would not help."""
    empty = tmp_path / "empty"
    (empty / "models").mkdir(parents=True)
    hub.seen.clear()
    given = {**environ, "HF_ENDPOINT": hub.endpoint}
    homes = [empty / "models", empty / "not/yet"]
    words = ["tiny", "bob/foo", "qwen-image", str(volume / "mine/foo")]
    cases = [{**given, "MODEL_DIR": str(h), "MODEL": word} for h in homes for word in words]
    answers = started([empty], *map(case, cases))
    assert len(answers) == len(cases)
    for answer in answers:
        assert answer["code"] == "WEIGHTS_UNAVAILABLE"
        assert not answer["retryable"]
        assert "MODEL_DIR cannot be written" in answer["message"]
        assert "read-write" in answer["message"]
        assert str(tmp_path) not in answer["message"]
    assert hub.seen == []


def test_a_model_that_lacks_a_lora_says_so(environ: dict[str, str], volume: Path) -> None:
    """The bundle is there, and why it is not enough is in the message."""
    given = {**environ, "MODEL": "bob/foo", "LIGHTNING_STEPS": "4"}
    (answer,) = started([volume], case(given))
    assert "no Lightning LoRA for 4 steps" in answer["message"]
    assert "MODEL_DIR cannot be written" in answer["message"]


@pytest.mark.parametrize("word", ["tiny", "bob/foo"])
def test_a_damaged_part_is_told(
    word: str, volume: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    """A flipped bit is found by VERIFY=full when the model is opened; nothing can repair it."""
    home = Path(shutil.copytree(volume, tmp_path / "home"))
    for file in (home / "models" / layout.COMPONENTS).glob("transformer-*/weights-*"):
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    given = {**environ, "MODEL_DIR": str(home / "models"), "MODEL": word, "VERIFY": "full"}
    (answer,) = started([home], case(given, draw=True))
    assert answer["code"] == "WEIGHTS_UNAVAILABLE"
    assert "damaged" in answer["message"]
    assert "cannot be made again in its place" in answer["message"]
    assert not answer["retryable"]


def test_a_downloaded_bundle_is_opened(
    hub: Hub, volume: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    """A bundle that was pushed by somebody and lies here whole."""
    (folder,) = layout.find_bundles("bob/foo", volume / "models")
    files = layout.list_files(layout.verify(folder))
    hub.add("me/foo-4bit", {name: path.read_bytes() for name, path in files.items()})
    home = tmp_path / "home"
    given = {**environ, "MODEL_DIR": str(home), "MODEL": "me/foo-4bit"}
    boot.prepare(settings.read({**given, "HF_ENDPOINT": hub.endpoint, "MIN_STORAGE_FREE_GB": "0"}))
    (answer,) = started([home], case(given))
    assert answer["facts"][0]["precision"] == "4bit"


def test_a_model_beside_the_volume_needs_none(
    volume: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    """A bundle that MODEL or MODEL_PATH names is opened although MODEL_DIR is empty."""
    (folder,) = layout.find_bundles("bob/foo", volume / "models")
    empty = tmp_path / "empty"
    empty.mkdir()
    given = {**environ, "MODEL_DIR": str(empty)}
    answers = started(
        [empty, volume],
        case({**given, "MODEL": str(folder)}),
        case({**given, "MODEL": "bob/foo", "MODEL_PATH": str(folder)}),
    )
    assert [answer["folders"] for answer in answers] == [[str(folder)]] * 2


def test_a_revision_that_cannot_be_kept_is_used(hub: Hub, tmp_path: Path) -> None:
    """A place for revisions that is there and read-only is no reason to fail."""
    (tmp_path / metadata.KEPT).mkdir()
    given = {"MODEL_DIR": str(tmp_path), "HF_ENDPOINT": hub.endpoint}
    code = (
        "import sys; from worker import settings; from worker.weights import metadata;"
        f"print(metadata.resolve('bob/foo', None, settings.read({json.dumps(given)})).commit)"
    )
    said = readonly.python([tmp_path], code)
    assert said.strip().splitlines()[-1] == hub.branches["bob/foo"]["main"]


def test_a_file_where_the_folder_should_be_is_told(environ: dict[str, str], tmp_path: Path) -> None:
    """A MODEL_DIR that is no folder cannot be written either, nor can a link to nowhere."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    homes = [tmp_path / "file", tmp_path / "file/below", tmp_path / "link"]
    for home in homes:
        with pytest.raises(WeightsUnavailable, match="MODEL_DIR cannot be written"):
            boot.prepare(settings.read({**environ, "MODEL": "tiny", "MODEL_DIR": str(home)}))
