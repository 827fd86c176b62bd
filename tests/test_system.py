"""On Windows every command says to use WSL 2, whatever is installed there, without a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from worker import system
from worker.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
# Windows as a fresh Python there has it: none of POSIX's modules, none of our dependencies.
WINDOWS = """
import os, sys, types
POSIX = {"fcntl", "grp", "pwd", "resource", "termios", "_posixsubprocess"}

class Missing:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in POSIX or top not in {*sys.stdlib_module_names, "worker", "handler"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
for name in POSIX:
    sys.modules.pop(name, None)
for name in ("sysconf", "statvfs", "fork", "getuid", "kill", "sched_getaffinity"):
    delattr(os, name)
sys.modules["_winapi"] = types.ModuleType("_winapi")  # Windows' own, for shutil
sys.platform = sys.argv.pop(1)
"""


def run(platform: str, *words: str) -> subprocess.CompletedProcess[str]:
    start = "import runpy; runpy.run_module('worker', run_name='__main__')"
    if words[0] == "handler.py":
        start = "import handler; sys.exit(handler.main())"
    command = [sys.executable, "-c", f"{WINDOWS}\n{start}", platform, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("platform", ["win32", "cygwin", "msys"])
def test_the_doctor_on_windows_says_to_use_wsl_2(platform: str) -> None:
    done = run(platform, "doctor")
    assert (done.returncode, done.stderr) == (1, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith("fatal   system  Windows")
    assert "WSL 2" in line


def test_the_doctor_on_windows_says_so_to_programs_too() -> None:
    done = run("win32", "doctor", "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["ok"]) == (1, False)
    (finding,) = answer["findings"]
    assert (finding["check"], finding["level"]) == ("system", "fatal")
    assert "WSL 2" in finding["change"]


@pytest.mark.parametrize("words", [("run",), ("prepare", "tiny"), ("push", "x", "me/y")])
def test_no_other_command_gets_further(words: tuple[str, ...]) -> None:
    done = run("win32", *words)
    assert (done.returncode, done.stderr) == (1, "")
    assert "WSL 2" in done.stdout


def test_neither_does_handler_py() -> None:
    done = run("win32", "handler.py")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "WSL 2" in line


def test_the_page_that_it_names_is_there() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        fault = system.find_fault()
    assert fault is not None
    page = fault.change.rpartition(" ")[2]
    assert "WSL 2" in (ROOT / page).read_text(encoding="utf-8")


def test_linux_has_no_fault() -> None:
    assert system.find_fault() is None
    assert main(["doctor"]) == 0
