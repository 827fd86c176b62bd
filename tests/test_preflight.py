"""What the doctor finds, on machines made up through NVML's own interface and on this one."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version
from worlds.nvml import Fact, Nvml

from worker import driver, preflight, settings, versions
from worker.__main__ import main
from worker.preflight import Finding

Machine = Callable[..., dict[str, Finding]]

ROOT = Path(__file__).resolve().parent.parent
LOCKS = [ROOT / "builder" / name for name in ("requirements.lock", "requirements-dev.lock")]
RTX_4090 = ("NVIDIA GeForce RTX 4090", (8, 9), 25_757_220_864, 25_100_000_000)
T4 = ("Tesla T4", (7, 5), 15_655_829_504, 15_500_000_000)
V100 = ("Tesla V100-SXM2-32GB", (7, 0), 34_079_637_504, 34_000_000_000)
RTX_3060 = ("NVIDIA GeForce RTX 3060", (8, 6), 12_619_612_160, 12_000_000_000)


def locked(lock: Path) -> dict[str, set[str]]:
    pins: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==([^\s;\\]+)", lock.read_text(), re.MULTILINE):
        pins.setdefault(name, set()).add(version)
    return pins


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Run the preflight on a machine with this driver, and return its findings by check."""

    def findings(nvml: Nvml | None, **environ: str) -> dict[str, Finding]:
        def load(name: str) -> Nvml:
            if nvml is None:
                raise OSError(name)
            return nvml.load(name)

        monkeypatch.setattr(preflight, "ask", lambda: driver.ask(load))
        monkeypatch.setattr(preflight, "torch_cuda", lambda: (13, 0))
        given = {"MODEL": "qwen-image", **environ}
        return {f.check: f for f in preflight.check(settings.read(given))}

    return findings


def test_the_driver_is_read_through_nvml_and_let_go() -> None:
    nvml = Nvml("580.95.05", 13000, [RTX_4090, T4])
    told = driver.ask(nvml.load)
    assert told is not None
    assert told == driver.Driver("580.95.05", (13, 0), (driver.Gpu(*RTX_4090), driver.Gpu(*T4)))
    assert told.branch == 580
    assert nvml.open == 0


def test_a_machine_without_the_library_has_no_driver() -> None:
    def load(name: str) -> Nvml:
        raise OSError(name)

    assert driver.ask(load) is None


def test_a_driver_that_does_not_answer_says_why_and_is_let_go() -> None:
    nvml = Nvml("580.95.05", 13000, [], fails="nvmlDeviceGetCount_v2")
    with pytest.raises(driver.DriverError, match="Driver/library version mismatch"):
        driver.ask(nvml.load)
    assert nvml.open == 0


def test_a_card_that_fits_has_nothing_to_change(on: Machine) -> None:
    findings = on(Nvml("580.95.05", 13000, [RTX_4090]))
    assert {findings[name].level for name in ("driver", "gpu", "vram")} == {"ok"}
    assert "8.9" in findings["gpu"].found


def test_a_driver_too_old_for_this_torch_is_fatal_and_names_both_ways_out(on: Machine) -> None:
    found = on(Nvml("570.86.15", 12080, [RTX_4090]))["driver"]
    assert found.level == "fatal"
    assert "CUDA 13.0" in found.found
    assert "580" in found.change
    assert "CUDA 12.8" in found.change


def test_a_newer_driver_runs_an_older_build(on: Machine) -> None:
    assert on(Nvml("610.10.01", 14010, [RTX_4090]))["driver"].level == "ok"


def test_an_older_minor_version_of_the_same_major_is_enough(
    on: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = Nvml("580.65.06", 13000, [RTX_4090])
    on(nvml)
    monkeypatch.setattr(preflight, "torch_cuda", lambda: (13, 2))
    found = {f.check: f for f in preflight.check(settings.read({}))}["driver"]
    assert found.level == "ok"


@pytest.mark.parametrize("card", [T4, V100], ids=lambda card: card[0])
def test_a_card_without_bf16_is_fatal(on: Machine, card: Fact) -> None:
    found = on(Nvml("580.95.05", 13000, [card]))["gpu"]
    assert found.level == "fatal"
    assert "Ampere" in found.change


def test_a_card_too_small_for_a_full_model_is_advised_against_but_serves_the_embedded(
    on: Machine,
) -> None:
    nvml = Nvml("580.95.05", 13000, [RTX_3060])
    assert on(nvml)["vram"].level == "advice"
    assert on(nvml, MODEL="tiny")["vram"].level == "ok"


def test_memory_held_by_another_process_is_named(on: Machine) -> None:
    full = (*RTX_4090[:3], 2_000_000_000)
    found = on(Nvml("580.95.05", 13000, [full]))["vram"]
    assert found.level == "advice"
    assert "other process" in found.change


def test_a_mismatched_driver_is_fatal_with_nvml_s_own_words(on: Machine) -> None:
    found = on(Nvml("580.95.05", 13000, [], fails="nvmlInit_v2"))["driver"]
    assert found.level == "fatal"
    assert "version mismatch" in found.found


def test_without_a_gpu_a_full_model_is_fatal_on_the_platform_only(on: Machine) -> None:
    assert on(None)["gpu"].level == "advice"
    assert on(None, RUNPOD_WEBHOOK_GET_JOB="https://x/job-take/1?gpu=1")["gpu"].level == "fatal"
    assert on(None, MODEL="tiny")["gpu"].level == "ok"


def test_an_unknown_model_is_fatal(on: Machine) -> None:
    assert on(None, MODEL="no-such-model")["model"].level == "fatal"


def test_the_oldest_driver_is_known_for_the_locked_torch() -> None:
    cuda = preflight.torch_cuda()
    assert cuda is None or cuda[0] in versions.OLDEST_DRIVER


def test_what_torch_is_built_for_is_what_torch_says() -> None:
    said = torch.version.cuda
    assert preflight.torch_cuda() == (said and tuple(map(int, said.split(".")[:2])))


def test_a_disk_below_the_reserve_is_named(on: Machine, tmp_path: Path) -> None:
    found = on(None, MODEL_DIR=str(tmp_path / "not" / "yet"), MIN_STORAGE_FREE_GB="999999")["disk"]
    assert found.level == "advice"
    assert "999999" in found.change


@pytest.mark.parametrize("below", ["file", "file/below", "link"])
def test_a_place_that_cannot_be_written_is_named(on: Machine, tmp_path: Path, below: str) -> None:
    """As a file or a link to nowhere where the folder should be; a start serves what is there."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    found = on(None, MODEL_DIR=str(tmp_path / below))["disk"]
    assert (found.level, found.found) == ("advice", "MODEL_DIR cannot be written")


def test_the_preflight_does_not_import_torch() -> None:
    code = (
        "import sys; from worker import preflight, settings;"
        "preflight.check(settings.read({})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("torch", "2.5.1+cu124"),
        ("transformers", "4.57.0"),
        ("bitsandbytes", "0.46.0"),
        ("bitsandbytes", "0.48.0"),
        ("diffusers", "0.39.0"),
        ("runpod", "1.10.0"),
        ("runpod", "1.11.3"),
        ("pillow", "12.2.0"),
        ("urllib3", "2.6.9"),
        ("filelock", "3.20.2"),
        ("kernels", "0.1"),
    ],
)
def test_known_bad_versions_are_refused(package: str, version: str) -> None:
    assert versions.known_bad(package, Version(version)) is not None


@pytest.mark.parametrize(
    ("package", "version"),
    [("torch", "2.11.0"), ("transformers", "5.17.0"), ("bitsandbytes", "0.47.0")],
)
def test_other_versions_are_not(package: str, version: str) -> None:
    assert versions.known_bad(package, Version(version)) is None


def test_a_bad_version_is_fatal_and_says_what_to_install(
    on: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = versions.installed
    monkeypatch.setattr(
        versions, "installed", lambda p: Version("0.46.0") if p == "bitsandbytes" else real(p)
    )
    found = on(None)["bitsandbytes"]
    assert (found.level, found.change) == ("fatal", "install 0.50.2")


@pytest.mark.parametrize(
    ("torch_version", "vision", "words"),
    [
        ("2.13.0", "0.27.0", "not made for"),
        ("2.13.0+cu130", "0.28.0+cpu", "two builds"),
    ],
)
def test_torch_and_torchvision_must_match(
    on: Machine, monkeypatch: pytest.MonkeyPatch, torch_version: str, vision: str, words: str
) -> None:
    real = versions.installed
    made = {"torch": Version(torch_version), "torchvision": Version(vision)}
    monkeypatch.setattr(versions, "installed", lambda p: made.get(p) or real(p))
    found = on(None)["torch and torchvision"]
    assert found.level == "fatal"
    assert words in found.found


def test_the_lock_is_the_tested_set() -> None:
    pins = locked(LOCKS[0])
    assert {name: pins[name] for name in versions.TESTED} == {
        name: {version} for name, version in versions.TESTED.items()
    }


def test_no_lock_holds_a_version_known_to_be_bad() -> None:
    found = [
        versions.known_bad(name, Version(version))
        for lock in LOCKS
        for name, pins in locked(lock).items()
        for version in pins
    ]
    assert len(found) > 100
    assert not any(found)


def test_what_is_installed_is_what_the_locks_say() -> None:
    """The locks resolve for this Python and platform, which are the image's own."""
    wanted = {}
    for lock in LOCKS:
        for line in re.findall(r"^([a-z0-9][^\\\n]*==[^\\\n]*)", lock.read_text(), re.MULTILINE):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                wanted[requirement.name] = requirement.specifier
    assert len(wanted) > 100
    for name, specifier in wanted.items():
        version = versions.installed(name)
        assert version is not None, name
        assert specifier.contains(version.public, prereleases=True), name


def test_every_pin_of_every_lock_has_a_hash() -> None:
    for lock in [*LOCKS, ROOT / "builder" / "requirements-uv.lock"]:
        blocks = re.split(r"^(?=[a-z0-9])", lock.read_text(), flags=re.MULTILINE)[1:]
        assert blocks
        assert all("--hash=sha256:" in block for block in blocks)


def test_the_doctor_prints_json_and_succeeds_on_this_machine() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker", "doctor", "--json"], capture_output=True, check=False
    )
    told = json.loads(done.stdout)
    assert (done.returncode, told["ok"]) == (0, True)
    assert {"python", "torch", "model", "gpu", "memory", "disk"} <= {
        finding["check"] for finding in told["findings"]
    }
    assert all(set(f) == {"check", "level", "found", "change"} for f in told["findings"])


def test_the_doctor_fails_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODEL", "no-such-model")
    assert main(["doctor"]) == 1
    assert re.search(r"^fatal +model", capsys.readouterr().out, re.MULTILINE)


def test_wrong_settings_are_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOWNLOAD_WORKERS", "many")
    assert main(["doctor"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("WORKER_NOT_READY: DOWNLOAD_WORKERS")
    assert len(error.splitlines()) == 1
