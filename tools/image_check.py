"""Carry out the Dockerfile in a fresh Debian root, without Docker, and request a picture from it.

    python -m tools.image_check [--target slim] [--build-arg NAME=VALUE] [--root DIR] [--keep]

Needs root, debootstrap and unshare (util-linux). The build steps reach the package registry as this
machine does; the worker then runs as process 1, without a network and with only the image's
environment.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tools import dockerfile

HERE: Final = Path(__file__).resolve().parent.parent
INSIDE: Final = "IMAGE_CHECK_IN_NAMESPACE"
# how this machine reaches its registry: passed to the build steps, never to the worker
REGISTRY: Final = re.compile(
    r"(pip_|uv_)\w+|\w*(_ca_bundle|_certs?|_cert_file|_cert_dir)|\w+_proxy", re.IGNORECASE
)
PIP_FILES: Final = ("/etc/pip.conf", "/root/.config/pip/pip.conf", "/root/.pip/pip.conf")
# off the platform, the SDK's own fitness checks would fail: there is no GPU and no network
OFF_PLATFORM: Final = {
    "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
    "RUNPOD_SKIP_GPU_CHECK": "true",
}


def say(text: str) -> None:
    """Print one line at once, so that a long step can be followed."""
    print(f"image-check: {text}", flush=True)


def find_mirror(suite: str) -> list[str]:
    """Return this machine's Debian mirror for a suite; empty leaves debootstrap its default."""
    for path in sorted(Path("/etc/apt/sources.list.d").glob("*.sources")):
        for stanza in path.read_text().split("\n\n"):
            fields = dict(re.findall(r"^(\w+):\s*(.+)$", stanza, re.MULTILINE))
            if suite in fields.get("Suites", "").split():
                return [str(fields["URIs"]).split()[0]]
    listed = Path("/etc/apt/sources.list")
    lines = listed.read_text() if listed.exists() else ""
    match = re.search(rf"^deb\s+(?:\[.*?\]\s+)?(\S+)\s+{suite}\s", lines, re.MULTILINE)
    return [match[1]] if match else []


class Root:
    """A Debian root directory in which Dockerfile instructions are carried out."""

    def __init__(self, path: Path, given: Mapping[str, str]) -> None:
        self.path = path
        self.given = given
        self.environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        self.arguments: dict[str, str] = {}
        self.folder = "/"
        self.command: list[str] = []
        self.registry = self._pass_registry()

    def _inside(self, path: str) -> Path:
        return self.path / str(Path(self.folder) / path).lstrip("/")

    def mount(self, source: str, target: str, *options: str) -> None:
        """Bind a file or folder of this machine into the root, until the mount namespace ends."""
        inside = self._inside(target)
        if Path(source).is_dir():
            inside.mkdir(parents=True, exist_ok=True)
        else:
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.touch()
        subprocess.run(["mount", "--bind", *options, source, str(inside)], check=True)

    def _pass_in(self, path: str) -> str:
        """Bind a path of the registry's configuration below /host; return its path there."""
        if not path.startswith("/") or path.count("/") < 2 or not Path(path).exists():
            return path
        target = f"/host{path}"
        if not self._inside(target).exists():
            self.mount(path, target, "-o", "ro")
        return target

    def _pass_registry(self) -> dict[str, str]:
        variables = {k: self._pass_in(v) for k, v in os.environ.items() if REGISTRY.fullmatch(k)}
        for name in filter(os.path.exists, PIP_FILES):
            text = Path(name).read_text()
            inside = self._inside(name)
            inside.parent.mkdir(parents=True, exist_ok=True)
            paths = re.compile(r"(?<=[\s=])(file://)?(/[\w./-]+)")
            inside.write_text(paths.sub(lambda m: (m[1] or "") + self._pass_in(m[2]), text))
        return variables

    def run(self, words: list[str], environment: Mapping[str, str]) -> None:
        """Run a command in the root, in the current folder."""
        change = ["sh", "-c", 'cd "$0" && exec "$@"', self.folder, *words]
        subprocess.run(["chroot", str(self.path), *change], env=dict(environment), check=True)

    def carry_out(self, step: dockerfile.Instruction) -> None:
        """Carry out one instruction; raises ValueError on an unknown one."""
        values = self.arguments | self.environment
        match step.keyword:
            case "ARG":
                declared = {k: dockerfile.expand(v, values) for k, v in step.pairs.items()}
                self.arguments |= {k: self.given.get(k, v) for k, v in declared.items()}
            case "ENV":
                self.environment |= {k: dockerfile.expand(v, values) for k, v in step.pairs.items()}
            case "WORKDIR":
                self.folder = step.rest
                self._inside(".").mkdir(parents=True, exist_ok=True)
            case "COPY":
                *sources, target = step.words
                for source in sources:
                    self._copy(HERE / source, target)
            case "RUN":
                for name, value in step.flags:
                    self._mount_flag(name, value)
                self.run(["sh", "-c", step.rest], self.registry | self.arguments | self.environment)
            case "CMD":
                self.command = step.words
            case _:
                raise ValueError(f"line {step.line}: {step.keyword} is not carried out here")

    def _copy(self, source: Path, target: str) -> None:
        inside = self._inside(target)
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(source, inside, dirs_exist_ok=True, ignore=ignored)
        else:
            into = inside / source.name if target.endswith("/") else inside
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, into)

    def _mount_flag(self, name: str, value: str) -> None:
        """Bind a cache to this machine's folder of that name; leave out a secret."""
        options = dict(part.partition("=")[::2] for part in value.split(","))
        if name != "mount" or options["type"] not in {"cache", "secret"}:
            raise ValueError(f"--{name}={value} is not carried out here")
        if options["type"] == "cache":
            Path(options["target"]).mkdir(parents=True, exist_ok=True)
            self.mount(options["target"], options["target"])


def build(path: Path, target: str, given: Mapping[str, str]) -> Root:
    """Make a fresh root at `path` and carry out every instruction up to a target.

    `given` are build arguments, as for docker build.
    """
    image, steps = dockerfile.parse((HERE / "Dockerfile").read_text()).chain(target)
    suite = re.fullmatch(r"debian:(\w+)-slim", image)
    if not suite:
        raise SystemExit(f"image-check: {image} is not a Debian image that debootstrap can make")
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    began = time.monotonic()
    say(f"{image}, by debootstrap")
    subprocess.run(
        ["debootstrap", "--variant=minbase", suite[1], str(path), *find_mirror(suite[1])],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    root = Root(path, given)
    for name in ("/etc/resolv.conf", "/etc/hosts", "/dev", "/proc"):
        root.mount(name, name)
    for step in steps:
        say(f"{time.monotonic() - began:5.0f} s  {step.keyword} {step.rest[:80]}")
        root.carry_out(step)
    files = (f for f in path.joinpath("app").rglob("*") if f.is_file() and not f.is_symlink())
    size = sum(file.stat().st_size for file in files)
    say(f"{time.monotonic() - began:5.0f} s  built; /app has {size / 1e9:.1f} GB")
    return root


def run_worker(root: Root) -> str:
    """Run the image's command as process 1 without a network; return what it printed."""
    alone = ["unshare", "--net", "--pid", "--fork", "--kill-child"]
    change = ["sh", "-c", 'cd "$0" && exec "$@"', root.folder, *root.command]
    done = subprocess.run(
        [*alone, f"--mount-proc={root.path}/proc", "chroot", str(root.path), *change],
        env=root.environment | OFF_PLATFORM,
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        raise SystemExit(
            f"image-check: rc {done.returncode} from the worker\n{done.stdout[-4000:]}"
        )
    return done.stdout


def find_reply(printed: str) -> dict[str, Any]:
    """Return the reply among the worker's lines; raises SystemExit when there is none."""
    for line in printed.splitlines():
        if line.startswith('{"images"'):
            answer: dict[str, Any] = json.loads(line)
            return answer
    raise SystemExit(f"image-check: no reply with pictures in the output\n{printed[-4000:]}")


def check(root: Root) -> None:
    """Request the picture of test_input.json; raises SystemExit when the reply has none.

    The worker itself refuses to reply with a flat or broken picture.
    """
    say(f"process 1, no network: {' '.join(root.command)}")
    start = time.monotonic()
    reply = find_reply(run_worker(root))
    if not (reply["images"] and all(image.get("base64") for image in reply["images"])):
        raise SystemExit(f"image-check: a reply without a picture: {reply}")
    sizes = ", ".join(f"{image['width']}x{image['height']}" for image in reply["images"])
    model = f"{reply['model']['id']} {reply['model']['precision']}"
    say(f"answered test_input.json in {time.monotonic() - start:.1f} s: {sizes} by {model}")


def main() -> None:
    """Enter a new mount namespace, build and check there, and leave nothing mounted."""
    parser = argparse.ArgumentParser(description="Carry the Dockerfile out without Docker.")
    parser.add_argument("--root", type=Path, default=HERE / "out" / "image-root")
    parser.add_argument("--target", default="slim")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--keep", action="store_true", help="keep the root")
    arguments = parser.parse_args()
    if INSIDE in os.environ:
        given = dict(word.partition("=")[::2] for word in arguments.build_arg)
        check(build(arguments.root, arguments.target, given))
        return
    if os.geteuid():
        raise SystemExit("image-check: run this as root: chroot and mounts need it")
    for tool in ("debootstrap", "unshare"):
        if not shutil.which(tool):
            raise SystemExit(
                f"image-check: apt-get install debootstrap util-linux ({tool} is missing)"
            )
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private"),
            *(sys.executable, "-m", "tools.image_check", *sys.argv[1:]),
        ],
        env={**os.environ, INSIDE: "1"},
        cwd=HERE,
        check=False,
    )
    if not arguments.keep:
        shutil.rmtree(arguments.root, ignore_errors=True)
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
