"""A word for a LoRA means a name, a file of the hub or a URL, and never a path."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.loras.origin import HubFile, check_name, name_url, read_hub_file, read_word

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("style", "names"),
        (" style-2.safetensors ", "names"),
        ("org/name", "hub"),
        ("org/name/sub/file.safetensors@refs/pr/1", "hub"),
        ("https://a.test/file.safetensors?token=1", "urls"),
        ("HTTP://a.test/", "urls"),
    ],
)
def test_a_word_is_of_the_kind_that_it_looks_like(text: str, kind: str) -> None:
    assert read_word(text, 0.5).kind == kind
    assert read_word(text, 0.5).scale == 0.5


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("org/name", HubFile("org/name")),
        ("Org/na.me@main", HubFile("Org/na.me", None, "main")),
        ("o/n/a b.safetensors", HubFile("o/n", "a b.safetensors")),
        (f"o/n/x/y.safetensors@{COMMIT}", HubFile("o/n", "x/y.safetensors", COMMIT)),
        ("o/n/\u732b.safetensors", HubFile("o/n", "\u732b.safetensors")),
        ("o/n@refs/pr/1", HubFile("o/n", None, "refs/pr/1")),
    ],
)
def test_a_file_of_the_hub_may_have_a_path_and_a_revision(text: str, found: HubFile) -> None:
    assert read_hub_file(text) == found


def test_only_a_commit_never_moves() -> None:
    assert read_hub_file(f"o/n@{COMMIT}").is_fixed
    assert not read_hub_file("o/n@main").is_fixed
    assert not read_hub_file(f"o/n@{COMMIT[:-1]}").is_fixed
    assert not read_hub_file("o/n").is_fixed


# What leads out of a folder, out of a repository, or into another's URL.
HOSTILE = [
    *("../x", "..", ".", "./x", "/etc/passwd", "~/x", "a/../b", "org/..", "../org", "C:\\x\\y"),
    *("org/name/../x.safetensors", "org/name/.git/x.safetensors", "org/name/x/", "org//name"),
    *("org/name/x.bin", "org/name/x.pt", "org/name/x", "org/name/x.safetensors/y"),
    *("org/name@../x", "org/name@/x", "org/name@a..b", "org/name@", "org/name@a b", "org/na?me"),
    *("org/name/a%2e%2e.safetensors", "org/name/a?b.safetensors", "org/name/a#b.safetensors"),
    *("org/name/a\\b.safetensors", "org/name/a\nb.safetensors", "org/name/a\x00.safetensors"),
    *("file:///etc/passwd", "ftp://a.test/x", "s3://b/x", "data:;base64,AAAA", "", " ", "a\u0300b"),
    *("-x", ".x", "a..b", "a b", "a" * 101, "org/" + "n" * 97, "o/n/" + "x" * 600, "\ud800", "a\n"),
    *("https://" + "a" * 9000, "org/name/\ud800.safetensors", "org/name/\u202e.safetensors"),
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_word_for_a_lora_is_refused(text: str) -> None:
    if text == "a\n":  # blanks around a word mean nothing
        assert read_word(text).text == "a"
        return
    with pytest.raises(ValueError, match=r"must|is empty"):
        read_word(text)


@given(st.text())
def test_whatever_is_accepted_stays_in_its_place(text: str) -> None:
    try:
        word = read_word(text)
    except ValueError:
        return
    assert ".." not in word.text or word.kind == "urls"
    assert not word.text.startswith(("/", ".", "~"))
    if word.kind == "names":
        assert check_name(word.text) == word.text
        assert "/" not in word.text


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://a.test/x/style.safetensors?X-Signature=secret", "style.safetensors"),
        ("https://a.test/", "url"),
        ("https://a.test/a%20b", "url"),
        ("https://[a.test/secret", "url"),
    ],
)
def test_a_reply_names_a_url_without_its_secrets(url: str, name: str) -> None:
    assert name_url(url) == name


def test_a_word_and_a_url_have_a_longest() -> None:
    """In characters: a repository's file of 500, an address of 8190."""
    path = "/".join(("o/n", "x" * 200, "y" * 200, ""))
    longest = path + "z" * (500 - len(path) - len(".safetensors")) + ".safetensors"
    assert read_word(longest).text == longest
    with pytest.raises(ValueError, match="at most 500 characters"):
        read_word(longest.replace("z", "zz", 1))
    url = "https://a.test/".ljust(8190, "x")
    assert read_word(url).text == url
    with pytest.raises(ValueError, match="at most 8190 characters"):
        read_word(f"{url}x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        (" \t", "is empty"),
        ("C:\\x\\y", "must be org/repository"),
        ("a\\b", "must be org/repository"),
        ("a b", "must be a name of letters"),
    ],
)
def test_what_a_word_must_be_is_told_by_what_it_looks_like(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        read_word(text)
