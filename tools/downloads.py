"""How this machine downloads packages, for a root that is not this machine's: variables and files.

The settings of pip and uv, certificates and proxies reach the commands in a root as variables,
whose paths stand below PLACE there. Nothing of it becomes part of an image or a commit.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PLACE: Final = "/mnt"  # a folder that every Debian has, so that a mount there leaves nothing behind
VARIABLE: Final = re.compile(
    r"(pip_|uv_)\w+|\w*(_ca_bundle|_ca_certs|_certs?|_cert_file|_cert_dir)|\w+_proxy", re.IGNORECASE
)
FILE: Final = re.compile(r"(?<![^\s=])(file://)?(/[\w.-]+(?:/[\w.-]+)+)")
OPTION: Final = re.compile(r"^global\.([\w-]+)=('.*')$", re.MULTILINE)
SUITE: Final = re.compile(r"^deb\s+(?:\[.*?\]\s+)?(\S+)\s+(\S+)\s", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Downloads:
    """Variables for the commands in another root, and this machine's files that they name."""

    variables: Mapping[str, str]
    files: tuple[str, ...]

    def make_volumes(self, folder: Path) -> list[str]:
        """Return buildah's options that show the files below PLACE; `folder` gets their places."""
        options = ["--volume", f"{folder}:{PLACE}:ro"]
        for file in self.files:
            place = folder / file.removeprefix("/")
            if Path(file).is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
            writable = "rw" if file == self.variables["UV_CACHE_DIR"].removeprefix(PLACE) else "ro"
            options += ["--volume", f"{file}:{PLACE}{file}:{writable}"]
        return options


def _print(*words: str) -> str:
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def find_downloads() -> Downloads:
    """Return how this machine downloads packages, with uv's cache, so that nothing comes twice."""
    cache = _print(str(Path(sys.executable).parent / "uv"), "cache", "dir").strip()
    Path(cache).mkdir(parents=True, exist_ok=True)
    options = OPTION.findall(_print(sys.executable, "-m", "pip", "config", "list"))
    named = {f"PIP_{k.upper().replace('-', '_')}": str(ast.literal_eval(v)) for k, v in options}
    named |= {k: v for k, v in os.environ.items() if VARIABLE.fullmatch(k)}
    named["UV_CACHE_DIR"] = cache
    found: set[str] = set()

    def place(match: re.Match[str]) -> str:
        if not Path(match[2]).exists():
            return match[0]
        found.add(match[2])
        return f"{match[1] or ''}{PLACE}{match[2]}"

    variables = {name: FILE.sub(place, value) for name, value in named.items()}
    outermost = {f for f in found if found.isdisjoint(str(p) for p in Path(f).parents)}
    return Downloads(variables, tuple(sorted(outermost)))


def find_mirror(suite: str) -> list[str]:
    """Return this machine's Debian mirror for a suite; empty leaves debootstrap its default."""
    for path in sorted(Path("/etc/apt/sources.list.d").glob("*.sources")):
        for stanza in path.read_text().split("\n\n"):
            fields = dict(re.findall(r"^(\S+):\s*(.+)$", stanza, re.MULTILINE))
            if suite in fields.get("Suites", "").split():
                return [str(fields["URIs"]).split()[0]]
    listed = Path("/etc/apt/sources.list")
    lines = SUITE.findall(listed.read_text()) if listed.exists() else []
    return [mirror for mirror, its_suite in lines if its_suite == suite][:1]


def install(packages: Mapping[str, str]) -> None:
    """Install the Debian packages whose command is missing, given as command -> package."""
    missing = [package for command, package in packages.items() if not shutil.which(command)]
    if not missing:
        return
    if os.geteuid() or not shutil.which("apt-get"):
        raise SystemExit(f"install as root: apt-get install {' '.join(missing)}")
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    words = ["apt-get", "install", "-qqy", "--no-install-recommends", *missing]
    subprocess.run(words, check=True, env=environ, stdout=subprocess.DEVNULL)
