"""How this machine downloads packages is passed to another root, below a folder of its own."""

from pathlib import Path

import pytest

from tools.downloads import PLACE, find_downloads


def test_files_of_the_settings_stand_below_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "wheels"
    (wheels / "inner").mkdir(parents=True)
    certificate = tmp_path / "own.pem"
    certificate.touch()
    monkeypatch.setenv("PIP_CERT", str(certificate))
    monkeypatch.setenv("PIP_FIND_LINKS", f"{wheels} file://{wheels}/inner /no/such/folder")
    monkeypatch.setenv("UV_INDEX_URL", "https://index.example/simple")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WORKER_SECRET", str(certificate))
    found = find_downloads()
    given = found.variables
    assert given["PIP_CERT"] == f"{PLACE}{certificate}"
    passed = f"{PLACE}{wheels} file://{PLACE}{wheels}/inner /no/such/folder"
    assert given["PIP_FIND_LINKS"] == passed
    assert given["UV_INDEX_URL"] == "https://index.example/simple"
    assert "WORKER_SECRET" not in given
    # a folder is passed once, and only uv's cache can be written
    ours = {file for file in found.files if file.startswith(str(tmp_path))}
    assert ours == {str(tmp_path / name) for name in ("wheels", "own.pem", "cache")}
    options = found.make_volumes(tmp_path / "shown")
    assert options[:2] == ["--volume", f"{tmp_path}/shown:{PLACE}:ro"]
    assert f"{wheels}:{PLACE}{wheels}:ro" in options
    assert f"{tmp_path}/cache:{PLACE}{tmp_path}/cache:rw" in options
    assert (tmp_path / "shown" / str(certificate)[1:]).is_file()
    assert (tmp_path / "shown" / str(wheels)[1:]).is_dir()
