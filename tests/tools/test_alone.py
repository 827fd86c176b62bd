"""Tests by themselves: one that needs what another made fails, and is named."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

SUITE = """
import os
import pytest

made = []

def test_makes():
    made.append(1)

def test_needs_what_the_other_made():
    assert made

@pytest.fixture(scope="module")
def shared():
    return []

@pytest.mark.parametrize("number", [3, 4])
def test_has_the_first_of_its_parameters(shared, number, tmp_path):
    shared.append(number)
    assert shared == [3]

class TestOther:
    def test_makes(self, shared, tmp_path):
        assert not shared
        assert not list(tmp_path.iterdir())
        (tmp_path / "own").touch()
"""
DEATH = """
def test_ends_its_process():
    os._exit(7)
"""


def alone(tmp_path: Path, text: str) -> tuple[int, str]:
    """Run a file of tests by themselves; return the status and what was printed."""
    file = tmp_path / "test_some.py"
    file.write_text(text)
    # outside the project nothing says that the order stays
    plain = ("-p", "no:cacheprovider", "-p", "no:randomly")
    words = (sys.executable, "-m", "tools.alone", *plain, str(file))
    environ = {**os.environ, "PYTEST_DEBUG_TEMPROOT": str(tmp_path)}
    done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_what_needs_another_test_fails_and_the_others_do_not(tmp_path: Path) -> None:
    status, text = alone(tmp_path, SUITE)
    assert status == 1
    assert "1 failed, 3 passed" in text
    assert "::test_needs_what_the_other_made" in text
    assert "assert made" in text


def test_one_that_ends_its_process_is_named_with_its_status(tmp_path: Path) -> None:
    status, text = alone(tmp_path, SUITE.replace("    assert made\n", "    pass\n") + DEATH)
    assert status == 1
    assert "1 failed, 4 passed" in text
    assert "its process ended with 7" in text


def test_tests_that_stand_alone_pass_and_share_one_temporary_folder(tmp_path: Path) -> None:
    status, text = alone(tmp_path, SUITE.replace("    assert made\n", "    assert not made\n"))
    assert status == 0
    assert "4 passed" in text
    assert text.split()[0] == "....", "each is told once"
    assert len(list(tmp_path.glob("pytest-of-*/pytest-[0-9]*"))) == 1, "one folder for all"


def test_a_file_that_cannot_be_imported_is_no_success(tmp_path: Path) -> None:
    status, text = alone(tmp_path, "import nothing_of_this_name\n")
    assert status == 2
    assert "nothing_of_this_name" in text
