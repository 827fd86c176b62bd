"""What is no complete safetensors file is refused by name, before a byte of weights is read."""

from pathlib import Path

import pytest

from worker.loras.form import START_BYTES, find_form_fault, name_other
from worlds.adapters import NO_LORAS, lora_bytes


@pytest.mark.parametrize("name", NO_LORAS)
def test_another_file_is_named_as_what_it_is(tmp_path: Path, name: str) -> None:
    data, words = NO_LORAS[name]
    (tmp_path / "file").write_bytes(data)
    fault = find_form_fault(tmp_path / "file") or ""
    assert words in fault
    assert not words.startswith(("a ", "JSON", "empty")) or fault.startswith(f"it is {words}")


def test_a_lora_has_no_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(lora_bytes())
    assert find_form_fault(tmp_path / "file") is None
    assert name_other(lora_bytes()[:START_BYTES]) is None


@pytest.mark.parametrize(
    ("length", "is_one"), [(1, False), (2, True), (0, False), ((1 << 56) + 9, False)]
)
def test_a_header_has_at_least_an_empty_object(length: int, is_one: bool) -> None:
    assert (name_other(length.to_bytes(8, "little") + b"{") is None) == is_one


def test_a_header_has_a_bound() -> None:
    start = [(16_000_000 + more).to_bytes(8, "little") + b"{" for more in (0, 1)]
    assert name_other(start[0]) is None
    assert name_other(start[1]) == "no safetensors file"


@pytest.mark.parametrize("blanks", [b" ", b"\r", b"\n", b"\t", b"\r\n \t"])
def test_blanks_before_a_page_are_part_of_it(blanks: bytes) -> None:
    assert name_other(blanks + b"<p>") == "a web page"
    assert name_other(b"_" + blanks + b"<p>") == "no safetensors file"
    assert name_other(b"_<p>") == "no safetensors file"
