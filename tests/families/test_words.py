"""What only a family knows is in its own folder: nothing else says the words of its parts."""

import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "worker"
WORDS = re.compile(r"qwen|img_mod|transformer_blocks|text_encoder|vae", re.IGNORECASE)
# file -> what it may say: the default model and an alias, and which versions break whose classes
ALLOWED = {
    "settings.py": r"qwen-image-edit-2511|QWEN_HOME",
    "versions.py": r"Qwen2\.5-VL|Qwen-Image",
}
FILES = sorted(
    path.relative_to(SOURCE).as_posix()
    for path in SOURCE.rglob("*.py")
    if path.relative_to(SOURCE).parts[0] != "families"
)


def said(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if WORDS.search(line)]


@pytest.mark.parametrize("name", FILES)
def test_no_file_outside_the_families_says_a_family_s_words(name: str) -> None:
    text = (SOURCE / name).read_text(encoding="utf-8")
    assert said(re.sub(ALLOWED[name], "", text) if name in ALLOWED else text) == []


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_allowed_is_said(name: str) -> None:
    """An exception that nothing needs any more must go."""
    assert said((SOURCE / name).read_text(encoding="utf-8"))
