"""What the doctor finds, on machines made up through NVML's own interface and on this one."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

from worker import driver, preflight, settings, versions
from worker.__main__ import main
from worker.driver import CONTEXT_BYTES
from worker.families.catalogue import CATALOGUE, estimate_needs
from worker.families.qwen_image.planning import PART_SIZES
from worker.finding import Finding, Level
from worlds.nvml import Fact, Nvml

Machine = Callable[..., dict[str, Finding]]

ROOT = Path(__file__).resolve().parent.parent
LOCKS = {name: ROOT / "builder" / f"requirements-{name}.lock" for name in ("cu128", "cu130", "dev")}
RTX_4090 = ("NVIDIA GeForce RTX 4090", (8, 9), 25_757_220_864, 25_100_000_000)
A100 = ("NVIDIA A100-SXM4-80GB", (8, 0), 85_899_345_920, 84_900_000_000)
T4 = ("Tesla T4", (7, 5), 15_655_829_504, 15_500_000_000)
V100 = ("Tesla V100-SXM2-32GB", (7, 0), 34_079_637_504, 34_000_000_000)
RTX_3060 = ("NVIDIA GeForce RTX 3060", (8, 6), 12_619_612_160, 12_000_000_000)
RTX_3050 = ("NVIDIA GeForce RTX 3050", (8, 6), 8_589_934_592, 8_400_000_000)


def locked(lock: Path) -> dict[str, set[str]]:
    pins: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==([^\s;\\]+)", lock.read_text(), re.MULTILINE):
        pins.setdefault(name, set()).add(version)
    return pins


def find_installed_build() -> versions.TorchBuild:
    torch_version = versions.find_version("torch")
    assert torch_version is not None
    build = versions.find_build(torch_version)
    assert build is not None, f"no image has torch {torch_version}"
    return build


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Run the preflight on a machine with this driver, and return its findings by check."""

    def findings(nvml: Nvml | None, **environ: str) -> dict[str, Finding]:
        def load(name: str) -> Nvml:
            if nvml is None:
                raise OSError(name)
            return nvml.load(name)

        monkeypatch.setattr(preflight, "query_driver", lambda: driver.query_driver(load))
        monkeypatch.setattr(preflight, "read_torch_cuda", lambda: (13, 0))
        given = {"MODEL": "qwen-image", **environ}
        return {f.check: f for f in preflight.check(settings.read(given))}

    return findings


def test_the_driver_is_read_through_nvml_and_let_go() -> None:
    nvml = Nvml("580.95.05", 13000, [RTX_4090, T4])
    answer = driver.query_driver(nvml.load)
    assert answer is not None
    assert answer == driver.Driver("580.95.05", (13, 0), (driver.Gpu(*RTX_4090), driver.Gpu(*T4)))
    assert nvml.open == 0


def test_a_machine_without_the_library_has_no_driver() -> None:
    def load(name: str) -> Nvml:
        raise OSError(name)

    assert driver.query_driver(load) is None


def test_a_driver_that_does_not_answer_says_why_and_is_let_go() -> None:
    nvml = Nvml("580.95.05", 13000, [], fails="nvmlDeviceGetCount_v2")
    with pytest.raises(driver.DriverError, match="Driver/library version mismatch"):
        driver.query_driver(nvml.load)
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("card", "capability"), [(RTX_4090, "8.9"), (A100, "8.0")], ids=["4090", "A100"]
)
def test_a_card_that_fits_has_nothing_to_change(on: Machine, card: Fact, capability: str) -> None:
    findings = on(Nvml("580.95.05", 13000, [card]))
    names = ("driver", "gpu", "vram", "model", "licence", "python")
    assert {findings[name].level for name in names} == {"ok"}
    assert findings["gpu"].found == f"{card[0]}, compute capability {capability}"


def test_the_first_of_several_cards_is_the_one_that_is_used(on: Machine) -> None:
    findings = on(Nvml("580.95.05", 13000, [RTX_4090, T4]))
    assert findings["gpu"].found.startswith(RTX_4090[0])
    assert findings["vram"].found.startswith("25.1 of 25.8 GB free")


def put_tools(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let the machine have Python's headers, or none, and a compiler, or none."""
    headers = folder / "include"
    headers.mkdir()
    for name in names:
        file = (headers if name == "Python.h" else folder) / name
        file.touch(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(headers)})


@pytest.mark.parametrize(
    ("names", "level", "missing"),
    [
        (["gcc", "Python.h"], "ok", ""),
        (["clang", "Python.h"], "ok", ""),
        (["Python.h"], "advice", "no C compiler"),
        (["gcc"], "advice", "no {headers}"),
        ([], "advice", "no C compiler and no {headers}"),
    ],
)
def test_what_compiled_blocks_need_is_looked_for(
    on: Machine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    level: str,
    missing: str,
) -> None:
    put_tools(tmp_path, monkeypatch, *names)
    found = on(Nvml("580.95.05", 13000, [RTX_4090]))["compiler"]
    lacking = missing.format(headers=tmp_path / "include" / "Python.h")
    there = str(tmp_path / names[0]) if names else ""
    words = f"{lacking}: the blocks will run uncompiled" if missing else there
    assert (found.level, found.found) == (level, words)
    assert ("COMPILE=off" in found.change) is bool(missing)


def test_no_compiler_is_looked_for_where_nothing_is_compiled(on: Machine) -> None:
    card = Nvml("580.95.05", 13000, [RTX_4090])
    assert "compiler" not in on(card, COMPILE="off")
    assert "compiler" not in on(card, MODEL="tiny")
    assert "compiler" not in on(None)


def test_a_driver_too_old_for_this_torch_is_fatal_and_names_both_ways_out(on: Machine) -> None:
    found = on(Nvml("570.86.15", 12080, [RTX_4090]))["driver"]
    assert found.level == "fatal"
    assert "CUDA 13.0" in found.found
    assert found.change.startswith(
        "use the image for CUDA 12.8, or allow only hosts with driver 580"
    )
    assert "(allowedCudaVersions: 13.0, 13.1, " in found.change


@pytest.mark.parametrize(
    ("version", "cuda", "images"),
    [
        ("570.86.15", 12080, "; runs the image for CUDA 12.8"),
        ("575.51.03", 12090, "; runs the image for CUDA 12.8"),
        ("580.65.06", 13000, "; runs the image for CUDA 12.8 or 13.0"),
        ("610.10.01", 14010, "; runs the image for CUDA 12.8 or 13.0"),
    ],
)
def test_a_driver_that_runs_this_torch_is_right_and_says_which_images_it_runs(
    on: Machine, monkeypatch: pytest.MonkeyPatch, version: str, cuda: int, images: str
) -> None:
    nvml = Nvml(version, cuda, [RTX_4090])
    on(nvml)
    monkeypatch.setattr(preflight, "read_torch_cuda", lambda: (12, 8))
    found = {f.check: f for f in preflight.check(settings.read({"MODEL": "tiny"}))}["driver"]
    newest = f"{cuda // 1000}.{cuda % 1000 // 10}"
    assert (found.level, found.found) == ("ok", f"{version}, CUDA up to {newest}{images}")


def test_a_driver_that_runs_no_image_but_another_torch_says_no_more_than_that(
    on: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(Nvml("550.54.15", 12040, [RTX_4090]))
    monkeypatch.setattr(preflight, "read_torch_cuda", lambda: (12, 4))
    found = {f.check: f for f in preflight.check(settings.read({"MODEL": "tiny"}))}["driver"]
    assert (found.level, found.found) == ("ok", "550.54.15, CUDA up to 12.4")


@pytest.mark.parametrize(
    ("version", "built", "floor"),
    [
        (("535.54.03", 12020), (12, 8), "driver 570 or newer"),
        (("580.65.06", 13000), (13, 2), "driver 580 or newer"),
    ],
)
def test_an_older_minor_version_of_the_same_major_may_work_and_is_advised_against(
    on: Machine,
    monkeypatch: pytest.MonkeyPatch,
    version: tuple[str, int],
    built: tuple[int, int],
    floor: str,
) -> None:
    on(Nvml(*version, [RTX_4090]))
    monkeypatch.setattr(preflight, "read_torch_cuda", lambda: built)
    found = {f.check: f for f in preflight.check(settings.read({}))}["driver"]
    assert found.level == "advice"
    assert found.found.endswith("which may work on GPUs older than Blackwell")
    assert found.change.startswith(f"allow only hosts with {floor} (allowedCudaVersions: ")


@pytest.mark.parametrize("card", [T4, V100], ids=lambda card: card[0])
def test_a_card_without_bf16_is_fatal(on: Machine, card: Fact) -> None:
    found = on(Nvml("580.95.05", 13000, [card]))["gpu"]
    assert found.level == "fatal"
    assert "Ampere" in found.change


def test_what_another_machine_of_the_endpoint_may_have_otherwise_is_marked(on: Machine) -> None:
    """Its driver and its card; not a missing one, nor what the operator has set."""
    platform = {"RUNPOD_WEBHOOK_GET_JOB": "https://x/job-take/1?gpu=1"}
    for nvml in (
        Nvml("570.86.15", 12080, [RTX_4090]),
        Nvml("580.95.05", 13000, [T4]),
        Nvml("580.95.05", 13000, [], fails="nvmlDeviceGetCount_v2"),
    ):
        broken = preflight.pick_fatal(list(on(nvml, **platform).values()))
        assert broken
        assert all(finding.of_host for finding in broken)
        assert not any("of_host" in finding.as_json() for finding in broken)
    for environ in ({}, {"MODEL": "no-such-model"}):
        findings = list(on(None, **platform, **environ).values())
        assert any(not finding.of_host for finding in preflight.pick_fatal(findings))


def test_a_card_too_small_for_a_full_model_is_advised_against_but_serves_the_embedded(
    on: Machine,
) -> None:
    nvml = Nvml("580.95.05", 13000, [RTX_3050])
    assert on(nvml)["vram"].level == "advice"
    assert on(nvml, MODEL="tiny")["vram"].level == "ok"


def test_memory_used_by_another_process_is_named(on: Machine) -> None:
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


def test_an_unknown_model_is_fatal_and_the_machine_is_judged_for_a_full_one(on: Machine) -> None:
    findings = on(None, MODEL="no-such-model")
    assert (findings["model"].level, findings["gpu"].level) == ("fatal", "advice")


def test_between_the_first_and_the_last_release_of_cuda_none_is_left_out() -> None:
    """RunPod matches a host's version exactly: one that is not named is not allowed."""
    for (major, minor), after in pairwise(versions.CUDA_RELEASES):
        assert after in ((major, minor + 1), (major + 1, 0))


def test_an_image_s_driver_is_no_older_than_the_first_of_its_major_version() -> None:
    for build in versions.TORCH_BUILDS:
        assert build.driver >= versions.OLDEST_DRIVER[build.cuda[0]]
        assert versions.list_releases(build.cuda)[0] == versions.write_cuda(build.cuda)


def test_the_installed_torch_is_built_for_the_cuda_of_its_image() -> None:
    assert preflight.read_torch_cuda() == find_installed_build().cuda


@pytest.mark.parametrize(
    ("version", "cuda"),
    [
        ("cuda = '12.8'", (12, 8)),
        ("cuda = '13.0.1'", (13, 0)),
        ("cuda = None", None),
        ("hip = '6.2'", None),
        (None, None),
    ],
)
def test_a_torch_says_in_its_file_what_it_is_built_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str | None, cuda: Any
) -> None:
    made = ModuleType("torch")
    made.__spec__ = ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))
    if version is not None:
        (tmp_path / "version.py").write_text(version)
    monkeypatch.setitem(sys.modules, "torch", made)
    assert preflight.read_torch_cuda() == cuda


@pytest.mark.parametrize("is_there", [True, False])
def test_where_no_torch_can_be_imported_none_is_built_for_cuda(
    monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    """It is not installed, or only an empty folder has its name."""
    empty = ModuleType("torch")
    empty.__spec__ = ModuleSpec("torch", None)
    monkeypatch.setitem(sys.modules, "torch", empty if is_there else None)
    assert preflight.read_torch_cuda() is None


def test_what_torch_is_built_for_is_what_torch_says() -> None:
    said = torch.version.cuda
    assert preflight.read_torch_cuda() == (said and tuple(map(int, said.split(".")[:2])))


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
    assert versions.find_known_bad(package, Version(version)) is not None


@pytest.mark.parametrize(
    ("package", "version"),
    [("torch", "2.11.0"), ("transformers", "5.17.0"), ("bitsandbytes", "0.47.0")],
)
def test_other_versions_are_not(package: str, version: str) -> None:
    assert versions.find_known_bad(package, Version(version)) is None


def test_a_bad_version_is_fatal_and_says_what_to_install(
    on: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = versions.find_version
    monkeypatch.setattr(
        versions, "find_version", lambda p: Version("0.46.0") if p == "bitsandbytes" else real(p)
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
    real = versions.find_version
    made = {"torch": Version(torch_version), "torchvision": Version(vision)}
    monkeypatch.setattr(versions, "find_version", lambda p: made.get(p) or real(p))
    found = on(None)["torch and torchvision"]
    assert found.level == "fatal"
    assert words in found.found


@pytest.mark.parametrize("build", versions.TORCH_BUILDS, ids=lambda build: build.name)
def test_each_image_s_lock_has_its_own_torch_and_the_tested_versions(
    build: versions.TorchBuild,
) -> None:
    pins = locked(LOCKS[build.name])
    tested = {name: tested[0] for name, tested in versions.TESTED.items()}
    tested |= {"torch": build.torch, "torchvision": build.torchvision}
    assert {name: pins[name] for name in tested} == {n: {version} for n, version in tested.items()}
    assert build.torch in versions.TESTED["torch"]
    assert build.torchvision in versions.TESTED["torchvision"]


@pytest.mark.parametrize(
    ("torch_version", "name"),
    [
        ("2.10.0", "+cu128"),
        ("2.10.0+cu128", "+cu128"),
        ("2.13.0", "+cu130"),
        ("2.13.0+cpu", "+torch2.13.0.cpu"),
        ("2.13.0+cu128", "+torch2.13.0.cu128"),
        ("2.11.0", "+torch2.11.0"),
        (None, ""),
    ],
)
def test_a_torch_is_named_by_its_image_or_by_itself(torch_version: str | None, name: str) -> None:
    given = None if torch_version is None else Version(torch_version)
    assert versions.name_build(given) == name
    assert Version(f"0.2.0{name}").public == "0.2.0"


def test_no_lock_holds_a_version_known_to_be_bad() -> None:
    found = [
        versions.find_known_bad(name, Version(version))
        for lock in LOCKS.values()
        for name, pins in locked(lock).items()
        for version in pins
    ]
    assert len(found) > 100
    assert not any(found)


def test_what_is_installed_is_what_the_locks_of_one_image_say() -> None:
    """The locks resolve for this Python and platform, which are the image's own."""
    pinned = {}
    for text in (LOCKS[find_installed_build().name].read_text(), LOCKS["dev"].read_text()):
        for line in re.findall(r"^([a-z0-9][^\\\n]*==[^\\\n]*)", text, re.MULTILINE):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                pinned[requirement.name] = requirement.specifier
    assert len(pinned) > 100
    for name, specifier in pinned.items():
        version = versions.find_version(name)
        assert version is not None, name
        assert specifier.contains(version.public, prereleases=True), name


def test_what_is_installed_has_all_that_each_package_requires() -> None:
    """Set-up installs the locks without resolving them, so a package that they lack shows here."""
    uv = Path(sys.executable).with_name("uv")
    done = subprocess.run(
        [uv, "pip", "check", "--python", sys.executable],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_pin_of_every_lock_has_a_hash() -> None:
    for lock in [*LOCKS.values(), ROOT / "builder" / "requirements-uv.lock"]:
        blocks = re.split(r"^(?=[a-z0-9])", lock.read_text(), flags=re.MULTILINE)[1:]
        assert blocks
        assert all("--hash=sha256:" in block for block in blocks)


def test_the_doctor_prints_json_and_succeeds_on_this_machine() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker", "doctor", "--json"], capture_output=True, check=False
    )
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["ok"]) == (0, True)
    assert {"python", "torch", "model", "gpu", "memory", "disk"} <= {
        finding["check"] for finding in answer["findings"]
    }
    assert all(set(f) == {"check", "level", "found", "change"} for f in answer["findings"])


def test_the_doctor_fails_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODEL", "no-such-model")
    assert main(["doctor"]) == 1
    assert re.search(r"^fatal +model", capsys.readouterr().out, re.MULTILINE)


def test_wrong_settings_are_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOWNLOAD_WORKERS", "many")
    assert main(["doctor"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("WORKER_NOT_READY: DOWNLOAD_WORKERS")
    assert len(error.splitlines()) == 1


def test_a_finding_without_advice_has_none() -> None:
    assert Finding("gpu", "ok", "it is there").as_json() == {
        "check": "gpu",
        "level": "ok",
        "found": "it is there",
        "change": "",
    }


def test_only_fatal_findings_are_fatal() -> None:
    levels: list[Level] = ["ok", "advice", "fatal", "fatal"]
    found = [Finding(str(n), level, "") for n, level in enumerate(levels)]
    assert [finding.check for finding in preflight.pick_fatal(found)] == ["2", "3"]


@pytest.mark.parametrize(
    ("cuda", "newest"),
    [
        *((13020, (13, 2)), (12080, (12, 8)), (11000, (11, 0))),
        *((12110, (12, 11)), (12990, (12, 99))),
    ],
)
def test_the_newest_cuda_of_a_driver_is_a_major_and_a_minor(
    cuda: int, newest: tuple[int, int]
) -> None:
    answer = driver.query_driver(Nvml("580.95.05", cuda, []).load)
    assert answer is not None
    assert (answer.cuda, answer.gpus) == (newest, ())


def test_names_are_read_as_long_as_nvml_may_write_them() -> None:
    """nvml.h: 80 bytes for a version, 96 for a name, with the zero at the end."""
    nvml = Nvml("5" * 79, 13000, [("N" * 95, *RTX_4090[1:])])
    answer = driver.query_driver(nvml.load)
    assert answer is not None
    assert (answer.version, answer.gpus[0].name) == ("5" * 79, "N" * 95)


def need(**environ: str) -> dict[str, tuple[int, int]]:
    """Return what the default model takes of a GPU, CUDA's context included, by precision."""
    given = settings.read(environ)
    (spec,) = CATALOGUE.resolve(given.model, given, has_gpu=True)
    needs = estimate_needs(spec, given)
    return {p: (n.whole + CONTEXT_BYTES, n.least + CONTEXT_BYTES) for p, n in needs.items()}


def card(total: int, free: int | None = None) -> Nvml:
    return Nvml("580.95.05", 13000, [("card", (8, 0), total, total if free is None else free)])


def test_a_card_is_enough_for_the_most_exact_precision_that_fits_it(on: Machine) -> None:
    """To the byte; where the smallest fits only without the text encoder, that waits."""
    sizes = need()
    for precision, (whole, _) in sizes.items():
        found = on(card(whole), MODEL="")["vram"]
        assert (found.level, found.change) == ("ok", "")
        assert found.found.endswith(f": qwen-image-edit-2511 in {precision}")
    for total in (sizes["4bit"][0] - 1, sizes["4bit"][1]):
        found = on(card(total), MODEL="")["vram"]
        assert found.level == "ok"
        assert found.found.endswith(" in 4bit, part of it in the host's memory")
    found = on(card(sizes["4bit"][1] - 1), MODEL="")["vram"]
    assert found.level == "advice"
    assert found.found.endswith(", too little for qwen-image-edit-2511")
    words = [f"{size / 1e9:.1f} GB" for size in sizes["4bit"]]
    assert found.change.startswith(
        f"use a pool of GPUs with {words[0]} for 4bit, at the least {words[1]}"
    )


def test_what_jobs_may_request_counts(on: Machine) -> None:
    """Larger pictures, LoRAs and batches take more, which the card must have too."""
    plain = need()["4bit"][0]
    for environ in (
        {"MAX_PIXELS": "4194304"},
        {"LORAS": "style=org/name"},
        {"BATCH_SIZE": "8", "BATCH_MAX_PIXELS": "8388608"},
        {"LIGHTNING_STEPS": "8,4"},
    ):
        assert need(**environ)["4bit"][0] > plain
        found = on(card(plain), MODEL="", **environ)["vram"].found
        assert not found.endswith(": qwen-image-edit-2511 in 4bit")


def test_a_precision_that_does_not_fit_is_advised_against_with_the_one_that_does(
    on: Machine,
) -> None:
    sizes = need()
    found = on(card(sizes["8bit"][0]), MODEL="", PRECISION_MODE="bf16")["vram"]
    assert (found.level, found.change) == ("advice", "set PRECISION_MODE=8bit")
    found = on(card(sizes["8bit"][1]), MODEL="", PRECISION_MODE="bf16")["vram"]
    assert found.change == "set PRECISION_MODE=8bit"
    found = on(card(sizes["8bit"][1] - 1), MODEL="", PRECISION_MODE="bf16")["vram"]
    assert found.change == "set PRECISION_MODE=4bit"
    found = on(card(sizes["4bit"][1] - 1), MODEL="", PRECISION_MODE="8bit")["vram"]
    assert f"{sizes['8bit'][0] / 1e9:.1f} GB for 8bit" in found.change


def test_memory_that_another_process_has_is_not_counted(on: Machine) -> None:
    whole, least = need()["4bit"]
    assert on(card(2 * whole, least), MODEL="")["vram"].level == "ok"
    found = on(card(2 * whole, least - 1), MODEL="")["vram"]
    assert found.level == "advice"
    assert found.change == "end the other process that holds the GPU's memory"


def test_a_repository_that_is_not_known_yet_is_not_judged_by_its_memory(on: Machine) -> None:
    found = on(card(12_000_000_000), MODEL="org/name")["vram"]
    assert (found.level, found.found) == ("ok", "12.0 of 12.0 GB free")
    found = on(card(4_000_000_000), MODEL="org/name,qwen-image")["vram"]
    assert found.found == "4.0 of 4.0 GB free, too little for qwen-image"


def test_each_of_several_models_is_judged_by_its_memory(on: Machine) -> None:
    """The embedded ones are not: they run anywhere."""
    models = "qwen-image,tiny-image,qwen-image-2512"
    found = on(card(99_000_000_000), MODEL=models)["vram"]
    fitting = "qwen-image in bf16, qwen-image-2512 in bf16"
    assert (found.level, found.found) == ("ok", f"99.0 of 99.0 GB free: {fitting}")


def test_what_is_known_of_the_parts_is_what_was_computed() -> None:
    sizes = json.loads((ROOT / "bench" / "results" / "sizes.json").read_text())
    assert PART_SIZES.keys() == sizes.keys()
    for precision, parts in PART_SIZES.items():
        for name in ("transformer", "text_encoder", "vae", "lora"):
            assert getattr(parts, name) == round(sizes[precision][name] * 1e9)


def test_the_embedded_model_needs_no_memory_of_a_card(on: Machine) -> None:
    used = (*RTX_3060[:3], 1_000_000_000)
    found = on(Nvml("580.95.05", 13000, [used]), MODEL="tiny")["vram"]
    assert (found.level, found.found) == ("ok", "1.0 of 12.6 GB free")


def test_one_full_model_among_the_embedded_is_enough_to_need_a_gpu(on: Machine) -> None:
    assert on(None, MODEL="tiny,qwen-image")["gpu"].level == "advice"
    findings = on(None, MODEL="tiny")
    assert findings["model"] == Finding("model", "ok", "tiny-image, tiny-edit")
    assert findings["gpu"].found.startswith("no NVIDIA driver: ")


def test_a_driver_without_a_gpu_is_named(on: Machine) -> None:
    found = on(Nvml("580.95.05", 13000, []))["gpu"]
    assert (found.level, found.found) == ("advice", "driver 580.95.05 without a GPU")


@pytest.mark.parametrize(
    ("built", "level", "words"),
    [
        (None, "advice", "install a torch built for CUDA"),
        ((12, 9), "ok", ""),
        ((13, 2), "advice", "driver 580 or newer"),
        (
            *((14, 1), "fatal"),
            "use the image for CUDA 12.8 or 13.0, or allow only hosts with CUDA 14",
        ),
    ],
)
def test_a_torch_fits_a_driver_by_the_major_version_of_cuda(
    on: Machine,
    monkeypatch: pytest.MonkeyPatch,
    built: tuple[int, int] | None,
    level: str,
    words: str,
) -> None:
    on(Nvml("580.95.05", 13000, [RTX_4090]))
    monkeypatch.setattr(preflight, "read_torch_cuda", lambda: built)
    found = {f.check: f for f in preflight.check(settings.read({"MODEL": "qwen-image"}))}
    assert found["driver"].level == level
    assert words in found["driver"].change
    assert ("allowedCudaVersions" in found["driver"].change) is (built == (13, 2))
    assert found["driver"].found.startswith("580.95.05, CUDA up to 13.0")
    assert found["gpu"].level == "ok"


def test_a_gpu_is_used_where_driver_and_torch_have_one(
    on: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(Nvml("580.95.05", 13000, [RTX_4090, T4]))
    assert preflight.find_usable_gpu() == driver.Gpu(*RTX_4090)
    monkeypatch.setattr(preflight, "read_torch_cuda", lambda: None)
    assert preflight.find_usable_gpu() is None
    for nvml in (None, Nvml("580.95.05", 13000, []), Nvml("5", 1, [], fails="nvmlInit_v2")):
        on(nvml)
        assert preflight.find_usable_gpu() is None


def machine_of(monkeypatch: pytest.MonkeyPatch, *, pages: int, limit: int | None) -> None:
    """Give this machine so many pages of 1000 bytes, and its container a limit."""
    sizes = {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": pages}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    monkeypatch.setattr(preflight, "_limit", lambda: limit)


@pytest.mark.parametrize(
    ("pages", "limit", "level", "found"),
    [
        (10_000_000, None, "ok", "10.0 GB"),
        (9_999_999, None, "advice", "10.0 GB"),
        (32_000_000, 10_000_000_000, "ok", "10.0 GB"),
        (32_000_000, 9_000_000_000, "advice", "9.0 GB"),
        (8_000_000, 64_000_000_000, "advice", "8.0 GB"),
    ],
)
def test_a_full_model_is_prepared_in_10_gb_of_what_the_container_may_use(
    on: Machine,
    monkeypatch: pytest.MonkeyPatch,
    pages: int,
    limit: int | None,
    level: str,
    found: str,
) -> None:
    machine_of(monkeypatch, pages=pages, limit=limit)
    answer = on(None)["memory"]
    assert (answer.level, answer.found) == (level, found)
    assert on(None, MODEL="tiny")["memory"].level == "ok"


def test_the_limit_of_a_container_is_a_number_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def holding(text: str | None) -> int | None:
        def read_text(path: Path) -> str:
            assert str(path) == "/sys/fs/cgroup/memory.max"
            if text is None:
                raise FileNotFoundError
            return text

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", read_text)
            return preflight._limit()

    assert holding("9000000000\n") == 9_000_000_000
    assert holding("max\n") is None
    assert holding(None) is None


def test_a_disk_is_checked_at_its_reserve(
    on: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for free, reserve, level in (
        (3_000_000_000, "3", "ok"),
        (2_999_999_999, "3", "advice"),
        (3_000_000_000, "3.1", "advice"),
    ):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        found = on(None, MODEL_DIR=str(tmp_path), MIN_STORAGE_FREE_GB=reserve)["disk"]
        assert (found.level, found.found) == (level, "3.0 GB free")
    assert "asks for 3.1 GB" in found.change


def test_a_bucket_is_reported(on: Machine) -> None:
    bucket = {"BUCKET_ACCESS_KEY_ID": "a-key-id", "BUCKET_SECRET_ACCESS_KEY": "a-secret"}
    assert on(None)["bucket"].found == "none"
    named = {**bucket, "BUCKET_ENDPOINT_URL": "https://s.example", "BUCKET_NAME": "b"}
    found = on(None, **named)["bucket"]
    assert (found.level, found.found) == ("ok", "pictures go to it")
    found = on(None, **named, BUCKET_PREFIX="..")["bucket"]
    assert found.level == "fatal"
    assert found.found.startswith("this endpoint's bucket is not set up: ")


def test_python_is_reported_by_its_three_numbers(on: Machine) -> None:
    assert on(None)["python"].found == ".".join(map(str, sys.version_info[:3]))


@pytest.mark.parametrize(
    ("package", "version", "level", "found", "change"),
    [
        ("diffusers", None, "fatal", "not installed", "install diffusers 0.42.1"),
        (
            "diffusers",
            "0.43.0",
            "advice",
            "0.43.0, untested",
            "install 0.42.1, which the tests run on",
        ),
        ("diffusers", "0.42.1+local", "ok", "0.42.1+local", ""),
        ("diffusers", "0.42.1", "ok", "0.42.1", ""),
        ("torch", None, "fatal", "not installed", "install torch 2.10.0"),
        (
            *("torch", "2.11.0", "advice", "2.11.0, untested"),
            "install 2.10.0 or 2.13.0, which the tests run on",
        ),
        ("torch", "2.10.0+cu128", "ok", "2.10.0+cu128", ""),
        ("torch", "2.13.0", "ok", "2.13.0", ""),
        ("urllib3", "2.7", "ok", "2.7", ""),
        ("urllib3", "2.6", "fatal", "2.6: older than its security fixes", "install 2.7 or newer"),
        ("kernels", None, None, "", ""),
    ],
)
def test_a_package_is_missing_bad_untested_or_right(
    on: Machine,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    version: str | None,
    level: str | None,
    found: str,
    change: str,
) -> None:
    real = versions.find_version
    given = None if version is None else Version(version)
    monkeypatch.setattr(versions, "find_version", lambda p: given if p == package else real(p))
    answer = on(None).get(package)
    assert "filelock" in on(None), "what comes after it is looked at too"
    if level is None:
        assert answer is None
    else:
        assert answer == Finding(package, level, found, change)  # type: ignore[arg-type] # a level


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (("2.13.0", "0.28.1"), None),
        (("2.13.0+cu130", "0.28.0+cu130"), None),
        (("2.13.0+cu130", "0.28.0"), None),
        (("2.13.0", "0.28.0+cpu"), None),
        (("2.12.0", "0.27.0"), None),
        (("2.13.0", "1.28.0"), "install torchvision 0.28.x of the same build"),
        (("2.13.0", None), None),
        ((None, "0.28.0"), None),
    ],
)
def test_a_pair_of_torch_and_torchvision_is_checked_where_both_are_there(
    on: Machine,
    monkeypatch: pytest.MonkeyPatch,
    made: tuple[str | None, str | None],
    words: str | None,
) -> None:
    real = versions.find_version
    given = {
        name: None if text is None else Version(text)
        for name, text in zip(("torch", "torchvision"), made, strict=True)
    }
    monkeypatch.setattr(versions, "find_version", lambda p: given[p] if p in given else real(p))
    answer = on(None).get("torch and torchvision")
    assert (answer and answer.change) == words


def test_what_is_not_installed_has_no_version() -> None:
    assert versions.find_version("a-package-that-nobody-has") is None
    assert str(versions.find_version("packaging")).count(".") >= 1


# The first version that is right again, for every row that has one.
@pytest.mark.parametrize(
    ("package", "bad", "good"),
    [
        ("torch", "2.5.9", "2.6"),
        ("transformers", "5.2.9", "5.3"),
        ("diffusers", "0.39.9", "0.40"),
        ("bitsandbytes", "0.45.4", "0.45.5"),
        ("bitsandbytes", "0.46.0", "0.46.1"),
        ("bitsandbytes", "0.48.0", "0.48.1"),
        ("soundfile", "0.12.9", "0.13"),
        ("runpod", "1.11.9", "1.12"),
        ("pillow", "12.2.9", "12.3"),
        ("urllib3", "2.6.9", "2.7"),
        ("filelock", "3.20.2", "3.20.3"),
    ],
)
def test_a_version_is_bad_up_to_the_one_that_fixes_it(package: str, bad: str, good: str) -> None:
    assert versions.find_known_bad(package, Version(bad)) is not None
    assert versions.find_known_bad(package, Version(good)) is None
    assert versions.find_known_bad(f"not-{package}", Version(bad)) is None


def test_a_bad_version_says_why_and_what_to_install() -> None:
    for row in versions.KNOWN_BAD:
        assert len(row.why.split()) >= 2
        named = row.instead.partition(" ")[0]
        assert named == "nothing:" or not row.versions.contains(Version(named))
    old = versions.find_known_bad("runpod", Version("1.10.0"))
    newer = versions.find_known_bad("runpod", Version("1.10.1"))
    assert old is not None
    assert newer is not None
    assert old.why != newer.why
    assert versions.find_known_bad("torch", Version("2.5.0rc1+cu126")) is not None


@pytest.mark.parametrize(
    ("cuda", "branch"), [((12, 4), 525), ((12, 8), 570), ((13, 0), 580), ((13, 1), 580)]
)
def test_the_driver_that_a_build_needs_is_named(
    on: Machine, monkeypatch: pytest.MonkeyPatch, cuda: tuple[int, int], branch: int
) -> None:
    on(Nvml("470.1", 11040, [RTX_4090]))
    monkeypatch.setattr(preflight, "read_torch_cuda", lambda: cuda)
    found = {f.check: f for f in preflight.check(settings.read({"MODEL": "qwen-image"}))}
    assert found["driver"].level == "fatal"
    assert found["driver"].change.startswith(f"allow only hosts with driver {branch} or newer")


def test_the_doctor_prints_a_line_for_each_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [Finding("gpu", "ok", "one"), Finding("memory", "advice", "few", "have more")]
    monkeypatch.setattr(preflight, "check", lambda _: found)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ok      gpu     one",
        "advice  memory  few  -> have more",
    ]
    found.append(Finding("disk", "fatal", "none"))
    assert main(["doctor", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer == {"ok": False, "findings": [finding.as_json() for finding in found]}


def test_the_doctor_asks_torch_about_a_gpu_that_is_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here there is none, which torch says."""
    monkeypatch.setattr(preflight, "check", lambda _: [])
    monkeypatch.setattr(preflight, "find_usable_gpu", lambda: driver.Gpu(*RTX_4090))
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.startswith("advice  attention  torch does not answer")


def test_push_refuses_a_folder_without_a_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(tmp_path), "me/x"]) == 1
    answer = "WEIGHTS_UNAVAILABLE: push: the folder holds no bundle (no manifest.json)\n"
    assert capsys.readouterr().err.endswith(answer)


@pytest.mark.parametrize(
    "words",
    [
        *([], ["heal"], ["push", "only-one"], ["prepare"]),
        ["playground", "--endpoint", "abc", "--port", "many"],
    ],
)
def test_a_command_that_is_incomplete_ends_with_its_usage(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: python -m worker")


def test_run_refuses_a_wrong_environment_as_handler_py_does(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RUNPOD_WEBHOOK_GET_JOB", raising=False)
    monkeypatch.setenv("MAX_PIXELS", "many")
    assert main(["run"]) == 1
    answer = json.loads(capfd.readouterr().err.splitlines()[-1])
    assert (answer["event"], answer["error_code"]) == ("start failed", "WORKER_NOT_READY")
    assert answer["reason"].startswith("MAX_PIXELS: ")


def test_a_gated_model_needs_a_token_whose_account_accepted_its_licence(on: Machine) -> None:
    """Said before the first byte is downloaded, as is the licence of every model."""
    found = on(None, MODEL="flux-2-dev,flux-2-klein-4b")["licence"]
    assert (found.level, found.found) == (
        "advice",
        "flux-2-dev flux-non-commercial-license, gated, flux-2-klein-4b apache-2.0",
    )
    assert found.change == (
        "accept the licence of black-forest-labs/FLUX.2-dev on the hub, and set HF_TOKEN"
    )
    assert on(None, MODEL="flux-2-dev", HF_TOKEN="hf_x")["licence"].level == "ok"
    assert on(None, MODEL="flux-2-klein-4b")["licence"].level == "ok"
