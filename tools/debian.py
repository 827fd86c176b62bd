"""A fresh Debian as the image debian:SUITE-slim, in a Buildah storage of its own.

Buildah works with chroot isolation, which needs root and no daemon. Overlay is its storage driver
(STORAGE_DRIVER names another): with it an image shares the layers that it starts from, where vfs
copies all of them for every step.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any, Final, Self

from tools.downloads import Downloads, find_downloads, find_mirror, install

TOOLS: Final = {"buildah": "buildah", "debootstrap": "debootstrap"}


class Buildah:
    """Buildah with its storage in a folder; a context manager that removes the folder.

    The commands in its containers download as this machine does.
    """

    def __init__(self, folder: Path, *, keep: bool = False) -> None:
        install(TOOLS)
        self.downloads: Downloads = find_downloads()
        self.folder = folder.resolve()
        self._keep = keep
        self._store = self.folder / "store"
        temporary = self.folder / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        self._environ = {**os.environ, "TMPDIR": str(temporary)}
        self._volumes = self.downloads.make_volumes(self.folder / "shown")

    def __enter__(self) -> Self:
        self.call("rm", "--all")  # what an interrupted run left
        return self

    def __exit__(self, *_: object) -> None:
        self.call("rm", "--all")
        if not self._keep:
            shutil.rmtree(self.folder)

    def call(self, *words: str, show: bool = False) -> str:
        """Run a command of buildah; return what it printed, or print it if `show`."""
        done = subprocess.run(
            self._command(*words),
            env=self._environ,
            stdout=None if show else subprocess.PIPE,
            text=True,
            check=True,
        )
        return (done.stdout or "").strip()

    def start(self, container: str, folder: str, *words: str, **options: Any) -> Popen[bytes]:
        """Start a command in a folder of a container; `options` are those of subprocess.Popen."""
        inside = ("run", "--isolation", "chroot", "--network", "host", *self._volumes)
        full = self._command(*inside, "--workingdir", folder, container, "--", *words)
        return Popen(full, env=self._environ, stdin=DEVNULL, **options)

    def _command(self, *words: str) -> list[str]:
        driver = os.environ.get("STORAGE_DRIVER", "overlay")
        places = ("--root", str(self._store), "--runroot", str(self.folder / "run"))
        return ["buildah", *places, "--storage-driver", driver, *words]

    def make_debian(self, suite: str) -> str:
        """Make debian:SUITE-slim by debootstrap unless the storage has it; return its name.

        Its environment is that of the downloads, which `build` takes out of what it builds.
        """
        name = f"docker.io/library/debian:{suite}-slim"
        if name in self.call("images", "--format", "{{.Name}}:{{.Tag}}").splitlines():
            return name
        root = self.folder / "debian"
        subprocess.run(
            ["debootstrap", "--variant=minbase", suite, str(root), *find_mirror(suite)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for folder in ("var/cache/apt/archives", "var/lib/apt/lists"):
            shutil.rmtree(root / folder)
        container = self.call("from", "scratch")
        self.call("add", "--quiet", container, str(root))
        variables = [f"--env={k}={v}" for k, v in self.downloads.variables.items()]
        self.call("config", *variables, container)
        self.call("commit", "--quiet", "--rm", container, name)
        shutil.rmtree(root)
        return name

    def build(self, context: Path, target: str, arguments: dict[str, str], name: str) -> None:
        """Build a target of the Dockerfile in `context`; equal steps of earlier builds are kept."""
        self.call(
            *("build", "--isolation", "chroot", "--network", "host", "--pull-never", "--layers"),
            *("--format", "docker", "--target", target, "--tag", name, *self._volumes),
            *(f"--build-arg={key}={value}" for key, value in arguments.items()),
            *(f"--unsetenv={variable}" for variable in self.downloads.variables),
            str(context),
            show=True,
        )

    def inspect(self, image: str) -> dict[str, Any]:
        """Return what an image says about itself: `config` as Docker has it, and `layers`."""
        found = json.loads(self.call("inspect", "--type", "image", image))
        layers = json.loads(found["Manifest"])["layers"]
        return {"config": found["Docker"]["config"], "layers": layers}

    def mount(self, image: str) -> Path:
        """Make a container of an image, and return its root on this machine."""
        return Path(self.call("mount", self.call("from", "--pull-never", image)))
