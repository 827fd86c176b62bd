"""What can be known before anything is loaded: versions, driver, GPU, memory and disk.

Milliseconds, without torch. `boot` stops on a fatal finding; `python -m worker doctor` prints all.
"""

import importlib.util
import os
import runpy
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from worker import versions
from worker.driver import CONTEXT_BYTES, Driver, DriverError, Gpu, query_driver
from worker.errors import DeliveryFailed, WorkerError
from worker.families import catalogue
from worker.families.family import DeviceNeed
from worker.finding import Finding
from worker.media.s3 import read_own_bucket
from worker.setting_values import Precision
from worker.settings import Settings
from worker.weights import space
from worker.weights.spec import ModelSpec

# preparing holds the largest published shard (5 GB) and one LoRA, besides Python and torch
LEAST_MEMORY: Final = 10_000_000_000
GB: Final = 1_000_000_000


def check(settings: Settings) -> list[Finding]:
    """Check everything that can be known before anything is loaded; never raises."""
    findings = [*_check_python(), *_check_packages()]
    full, large = True, list[ModelSpec]()
    try:
        driver, problem = query_driver(), ""
    except DriverError as error:
        driver, problem = None, str(error)
    try:
        has_gpu = driver is not None and bool(driver.gpus)
        specs = catalogue.CATALOGUE.resolve(settings.model, settings, has_gpu=has_gpu)
        full = any(spec.needs_gpu for spec in specs)
        large = [spec for spec in specs if spec.needs_gpu]
        findings.append(Finding("model", "ok", ", ".join(spec.name for spec in specs)))
        findings.append(_check_licences(specs, settings))
    except WorkerError as error:
        findings.append(Finding("model", "fatal", error.message, "fix MODEL"))
    if problem:
        findings.append(
            Finding(
                "driver",
                "fatal",
                f"the NVIDIA driver does not answer: {problem}",
                "use another machine, or restart this one (a driver was updated under it)",
                of_host=True,
            )
        )
    else:
        findings += _check_gpu(
            driver, read_torch_cuda(), full=full, on_platform=settings.on_platform
        )
        if driver is not None and driver.gpus:
            findings.append(_check_room(driver.gpus[0], large, settings))
        if has_gpu and full and settings.compile == "auto":
            findings.append(_check_compiler())
    findings += [*_check_memory(full=full), *_check_disk(settings), *_check_bucket(settings)]
    return findings


def _check_licences(specs: Sequence[ModelSpec], settings: Settings) -> Finding:
    """Name each model's licence; what is gated comes with a token whose account has accepted it."""
    found = ", ".join(
        f"{spec.name} {spec.licence}{', gated' if spec.is_gated else ''}" for spec in specs
    )
    gated = [spec.repository for spec in specs if spec.is_gated and spec.folder is None]
    if gated and settings.hf_token is None:
        change = f"accept the licence of {' and '.join(gated)} on the hub, and set HF_TOKEN"
        return Finding("licence", "advice", found, change)
    return Finding("licence", "ok", found)


def find_usable_gpu() -> Gpu | None:
    """Return the first GPU; None without one, or with a torch that cannot use it."""
    try:
        driver = query_driver()
    except DriverError:
        return None
    if driver is None or not driver.gpus or read_torch_cuda() is None:
        return None
    return driver.gpus[0]


def pick_fatal(findings: list[Finding]) -> list[Finding]:
    """Return the findings with which no start can succeed."""
    return [finding for finding in findings if finding.level == "fatal"]


def read_torch_cuda() -> tuple[int, int] | None:
    """Return the CUDA that the installed torch is built for, None for a CPU build or no torch.

    Read from torch/version.py alone: importing torch takes seconds.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).with_name("version.py")
    cuda = runpy.run_path(str(file)).get("cuda") if file.is_file() else None
    if not cuda:
        return None
    major, minor = str(cuda).split(".")[:2]
    return int(major), int(minor)


def _check_python() -> Iterator[Finding]:
    yield Finding("python", "ok", ".".join(map(str, sys.version_info[:3])))


def _check_packages() -> Iterator[Finding]:
    for package in dict.fromkeys([*versions.TESTED, *(bad.package for bad in versions.KNOWN_BAD)]):
        version = versions.find_version(package)
        tested = versions.TESTED.get(package, ())
        if version is None:
            if tested:
                yield Finding(package, "fatal", "not installed", f"install {package} {tested[0]}")
            continue
        bad = versions.find_known_bad(package, version)
        if bad:
            yield Finding(package, "fatal", f"{version}: {bad.why}", f"install {bad.instead}")
        elif tested and version.public not in tested:
            change = f"install {' or '.join(tested)}, which the tests run on"
            yield Finding(package, "advice", f"{version}, untested", change)
        else:
            yield Finding(package, "ok", str(version))
    yield from _check_pair()


def _check_pair() -> Iterator[Finding]:
    torch, vision = versions.find_version("torch"), versions.find_version("torchvision")
    if torch is None or vision is None:
        return
    expected = versions.choose_torchvision(torch)
    if f"{vision.major}.{vision.minor}" != expected:
        yield Finding(
            "torch and torchvision",
            "fatal",
            f"torchvision {vision} is not made for torch {torch}",
            f"install torchvision {expected}.x of the same build",
        )
    elif torch.local and vision.local and torch.local != vision.local:
        yield Finding(
            "torch and torchvision",
            "fatal",
            f"two builds: {torch} and {vision}",
            "install both from one index",
        )


def _check_gpu(
    driver: Driver | None, torch_cuda: tuple[int, int] | None, *, full: bool, on_platform: bool
) -> Iterator[Finding]:
    """Check the driver and its first GPU; `full` is whether a model needs a GPU."""
    if driver is None or not driver.gpus:
        found = "no NVIDIA driver" if driver is None else f"driver {driver.version} without a GPU"
        if full and on_platform:
            yield Finding("gpu", "fatal", found, "give the endpoint a GPU pool, or set MODEL=tiny")
        elif full:
            yield Finding("gpu", "advice", found, "a full model needs a GPU; MODEL=tiny does not")
        else:
            yield Finding("gpu", "ok", f"{found}: the embedded model runs on the CPU")
        return
    yield _check_driver(driver, torch_cuda)
    yield _check_device(driver.gpus[0])


def _check_driver(driver: Driver, torch_cuda: tuple[int, int] | None) -> Finding:
    """Check that a driver runs the installed torch, and say which images it runs."""
    found = f"{driver.version}, CUDA up to {versions.write_cuda(driver.cuda)}"
    runnable = [versions.write_cuda(b.cuda) for b in versions.list_runnable_builds(driver.cuda)]
    if torch_cuda is None:
        return Finding(
            "driver",
            "advice",
            f"{found}; this torch is built without CUDA, so the GPU stays unused",
            "install a torch built for CUDA",
        )
    if driver.cuda >= torch_cuda:
        images = f"; runs the image for CUDA {' or '.join(runnable)}" if runnable else ""
        return Finding("driver", "ok", f"{found}{images}")
    found = f"{found}; this torch is built for CUDA {versions.write_cuda(torch_cuda)}"
    change = f"allow only hosts with {_name_oldest_driver(torch_cuda)}"
    if allowed := versions.list_releases(torch_cuda):
        change = f"{change} (allowedCudaVersions: {', '.join(allowed)})"
    if driver.cuda[0] == torch_cuda[0]:
        found = f"{found}, which may work on GPUs older than Blackwell"
        return Finding("driver", "advice", found, change)
    if runnable:
        change = f"use the image for CUDA {' or '.join(runnable)}, or {change}"
    return Finding("driver", "fatal", found, change, of_host=True)


def _check_compiler() -> Finding:
    """Look for the C compiler that Triton takes (triton.runtime.build), and Python's headers."""
    compiler = shutil.which("gcc") or shutil.which("clang")
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    missing = ["no C compiler"] * (compiler is None) + [f"no {header}"] * (not header.is_file())
    if missing:
        change = "install gcc and python3-dev, or set COMPILE=off"
        found = f"{' and '.join(missing)}: the blocks will run uncompiled"
        return Finding("compiler", "advice", found, change)
    return Finding("compiler", "ok", str(compiler))


def _name_oldest_driver(torch_cuda: tuple[int, int]) -> str:
    """Name the oldest driver for a torch: an image's own, else the first of its major version."""
    own = (build.driver for build in versions.TORCH_BUILDS if build.cuda == torch_cuda)
    branch = next(own, versions.OLDEST_DRIVER.get(torch_cuda[0]))
    return f"driver {branch} or newer" if branch else f"CUDA {torch_cuda[0]}"


def _check_device(gpu: Gpu) -> Finding:
    capability = ".".join(map(str, gpu.capability))
    found = f"{gpu.name}, compute capability {capability}"
    if gpu.capability < versions.OLDEST_CAPABILITY:
        change = "use a pool of Ampere or newer"
        return Finding("gpu", "fatal", f"{found}: no bf16", change, of_host=True)
    return Finding("gpu", "ok", found)


def _check_room(gpu: Gpu, specs: Sequence[ModelSpec], settings: Settings) -> Finding:
    """Check that each model that needs a GPU fits it, as far as what it takes is known."""
    found = f"{gpu.free / GB:.1f} of {gpu.total / GB:.1f} GB free"
    fitting = []
    for spec in specs:
        needs = catalogue.estimate_needs(spec, settings)
        if not needs:
            continue
        if (fit := _find_fit(needs, settings, gpu.room)) is not None:
            fitting.append(f"{spec.name} in {fit}")
        elif _find_fit(needs, settings, gpu.total - CONTEXT_BYTES) is not None:
            change = "end the other process that holds the GPU's memory"
            return Finding("vram", "advice", f"{found}, too little for {spec.name}", change)
        else:
            change = _advise_memory(needs, settings, gpu)
            return Finding("vram", "advice", f"{found}, too little for {spec.name}", change)
    return Finding("vram", "ok", ": ".join([found, *([", ".join(fitting)] * bool(fitting))]))


def _find_fit(needs: Mapping[Precision, DeviceNeed], settings: Settings, room: int) -> str | None:
    """Return in which precision a model fits so many bytes, and how; None: it does not.

    The choice is that of worker.engine.precision, which this must not import.
    """
    mode = settings.precision_mode
    modes = [*needs][::-1] if mode == "auto" else [mode]
    for precision in modes:
        if needs[precision].whole <= room:
            return precision
    return (
        f"{modes[-1]}, part of it in the host's memory" if needs[modes[-1]].least <= room else None
    )


def _advise_memory(needs: Mapping[Precision, DeviceNeed], settings: Settings, gpu: Gpu) -> str:
    """Return which precision fits a GPU on which the one that was chosen does not, or which GPU."""
    room = gpu.total - CONTEXT_BYTES
    fitting = [precision for precision, need in needs.items() if need.least <= room]
    if fitting:
        return f"set PRECISION_MODE={fitting[-1]}"
    mode = settings.precision_mode
    precision = next(iter(needs)) if mode == "auto" else mode  # the smallest first
    least, whole = (
        (size + CONTEXT_BYTES) / GB for size in (needs[precision].least, needs[precision].whole)
    )
    return (
        f"use a pool of GPUs with {whole:.1f} GB for {precision}, at the least {least:.1f} GB"
        " with part of the model in the host's memory"
    )


def _limit() -> int | None:
    """Return the memory limit of this container in bytes (cgroup v2), None where there is none."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):
        return None


def _check_memory(*, full: bool) -> Iterator[Finding]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    total = min(total, _limit() or total)
    if full and total < LEAST_MEMORY:
        yield Finding(
            "memory",
            "advice",
            f"{total / GB:.1f} GB",
            "preparing a full model needs about 10 GB: prepare it on a larger machine",
        )
    else:
        yield Finding("memory", "ok", f"{total / GB:.1f} GB")


def _check_disk(settings: Settings) -> Iterator[Finding]:
    if not space.is_writable(settings.home):
        yield Finding(
            "disk",
            "advice",
            "MODEL_DIR cannot be written",
            "mount it writable, or fill it beforehand (python -m worker prepare)",
        )
        return
    free = shutil.disk_usage(space.find_existing(settings.home)).free
    found = f"{free / GB:.1f} GB free"
    if free < settings.min_storage_free_gb * GB:
        yield Finding(
            "disk",
            "advice",
            found,
            f"MIN_STORAGE_FREE_GB asks for {settings.min_storage_free_gb:g} GB: enlarge the volume",
        )
    else:
        yield Finding("disk", "ok", found)


def _check_bucket(settings: Settings) -> Iterator[Finding]:
    try:
        bucket = read_own_bucket(settings)
    except DeliveryFailed as error:
        yield Finding(
            "bucket", "fatal", error.message, "fix BUCKET_NAME, _PREFIX, _STYLE or _ENDPOINT_URL"
        )
    else:
        yield Finding("bucket", "ok", "pictures go to it" if bucket else "none")
