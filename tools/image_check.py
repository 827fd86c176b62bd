"""Build the image of every target and CUDA variant from the Dockerfile, and use its worker.

    python -m tools.image_check [--target slim] [--cuda cu128] [--keep]

Needs root and Debian or Ubuntu; buildah, debootstrap and iproute2 are installed if they are
missing. The base image is made by debootstrap, and the build downloads packages as this machine
does. A baked image is built with the embedded models. Writes bench/results/image.json.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from tools.debian import Buildah
from tools.downloads import install
from tools.image_worker import TESTED, say
from worker.versions import TORCH_BUILDS

HERE: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = HERE / "out" / "image-check"
RESULTS: Final = HERE / "bench" / "results" / "image.json"
VARIANTS: Final = tuple(build.name for build in TORCH_BUILDS)
# target -> its build arguments, and where a worker that starts again finds its weights
TARGETS: Final = {"slim": ({}, "MODEL_DIR"), "baked": ({"MODEL": TESTED["MODEL"]}, "image")}


def find_suite(text: str) -> str:
    """Return the Debian release that a Dockerfile starts from; raises SystemExit without one."""
    match = re.search(r"^ARG DEBIAN=(\w+)$", text, re.MULTILINE)
    if not match:
        raise SystemExit("image-check: the Dockerfile has no ARG DEBIAN")
    return match[1]


def check_config(buildah: Buildah, config: dict[str, Any]) -> None:
    """Refuse an image that runs as another user, or that keeps how this machine downloads."""
    if config["User"] not in ("", "root") or config["Entrypoint"]:
        raise SystemExit(f"image-check: not its command as root: {config}")
    names = {variable.partition("=")[0] for variable in config["Env"]}
    if left := names & set(buildah.downloads.variables):
        raise SystemExit(f"image-check: the image keeps {', '.join(sorted(left))}")


def check(buildah: Buildah, cuda: str, target: str) -> float:
    """Build an image and use its worker; return the image's GB, unpacked."""
    arguments, source = TARGETS[target]
    name = f"worker:{cuda}-{target}"
    begin = time.monotonic()
    buildah.build(HERE, target, {"CUDA": cuda, **arguments}, name)
    seconds = time.monotonic() - begin
    found = buildah.inspect(name)
    check_config(buildah, found["config"])
    size: float = sum(layer["size"] for layer in found["layers"]) / 1e9
    say(f"{name}: built in {seconds:.0f} s, {size:.2f} GB")
    root = buildah.mount(name)
    alone = ("unshare", "--net", "--mount", "--propagation", "private")
    inside = (sys.executable, "-m", "tools.image_worker")
    words = (str(root), json.dumps(found["config"]), source)
    done = subprocess.run([*alone, *inside, *words], cwd=HERE, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    buildah.call("rm", "--all")
    return round(size, 2)


def main() -> None:
    """Check what was asked for, one CUDA variant after another, each removed before the next."""
    parser = argparse.ArgumentParser(description="Build the image and use its worker.")
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--cuda", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--keep", action="store_true", help="keep the images in out/image-check")
    given = parser.parse_args()
    if os.geteuid():
        raise SystemExit("image-check: run this as root: chroot and mounts need it")
    install({"ip": "iproute2", "unshare": "util-linux"})
    sizes: dict[str, dict[str, float]] = {cuda: {} for cuda in given.cuda}
    suite = find_suite((HERE / "Dockerfile").read_text())
    with Buildah(FOLDER, keep=given.keep) as buildah:
        say(f"{buildah.make_debian(suite)}, by debootstrap")
        for cuda in given.cuda:
            for target in given.target:
                sizes[cuda][target] = check(buildah, cuda, target)
            if not given.keep:
                buildah.call("rmi", "--force", *(f"worker:{cuda}-{t}" for t in given.target))
    say(f"GB, unpacked: {sizes}")
    if sizes.keys() == set(VARIANTS) and all(
        found.keys() == set(TARGETS) for found in sizes.values()
    ):
        RESULTS.write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
