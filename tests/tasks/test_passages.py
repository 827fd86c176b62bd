"""A long text is cut where a reader would pause, and nothing of it is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.tasks.passages import LEAST, MOST, RUN, clean, split

SENTENCE = "The quick brown fox jumps over the lazy dog near the river bank."
TEXTS = st.one_of(
    st.text(max_size=1500),
    st.lists(
        st.sampled_from(
            [
                "one",
                "Mr",
                "J.",
                "3.",
                "end.",
                "what?",
                "no!",
                "a,",
                "<laugh>",
                "\n\n",
                "。",
                "x" * 90,
            ]
        ),
        max_size=400,
    ).map(" ".join),
)


@given(TEXTS, st.sampled_from([40, 100, MOST]))
def test_passages_are_the_text_and_none_is_too_long_or_too_short(text: str, most: int) -> None:
    whole = clean(text)
    pieces = split(whole, most)
    assert "".join(pieces) == whole
    assert all(len(piece.strip()) <= most for piece in pieces)
    least = min(LEAST, most // 4)
    assert len(pieces) == 1 or all(len(piece.strip()) >= least for piece in pieces)


@given(st.text(max_size=300))
def test_a_clean_text_has_the_words_of_the_text(text: str) -> None:
    if not RUN.search(text):
        assert clean(text).split() == text.split()
    assert clean(clean(text)) == clean(text)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("1,,,,,,,,2", "1,,,,,,,,2"),
        ("1,,,,,,,,,2", "1,,,,,,,,2"),
        ("1" + "," * 4000 + "2", "1,,,,,,,,2"),
        ("a ............... b", "a ...... b"),
        ("a , , , , , , , b", "a , , , b"),
        ("a\n\n- - - - - -\n\nb", "a\n\n- -\n\nb"),
        ("a.\n\n,\n\n,\n\n,\n\nb", "a.\n\n,\n\nb"),
        ("a\n\n---\n\nb", "a\n\n---\n\nb"),
        ("Wait!!!!!!!!!!!! <laugh> What?", "Wait!!!!!!! <laugh> What?"),
        ("**********5 @@@@@@@@@@", "**********5 @@@@@@@@@@"),
        ("a ! ! ! ! ! ?b", "a ! ! ! ?b"),
    ],
)
def test_pauses_in_a_row_are_eight_at_most_and_words_all_stay(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_a_text_of_one_passage_stays_as_it_is() -> None:
    assert split(SENTENCE) == (SENTENCE,)
    assert split("Hi.") == ("Hi.",)
    assert split("x" * MOST) == ("x" * MOST,)
    assert len(split("x" * (MOST + 1))) == 2


def test_sentences_are_kept_together_as_far_as_they_fit() -> None:
    pieces = split(clean(" ".join([SENTENCE] * 6)))
    assert [piece.strip() for piece in pieces] == [
        " ".join([SENTENCE] * 4),
        " ".join([SENTENCE] * 2),
    ]


def test_a_blank_line_always_ends_a_passage() -> None:
    assert split(clean(f"{SENTENCE}\n \n{SENTENCE}\n{SENTENCE}")) == (
        f"{SENTENCE}\n\n",
        f"{SENTENCE} {SENTENCE}",
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Said by J.", "Smith"),
        ("It costs 3.", "Euros"),
        ("Well,", "then"),
        ("Ha!", "<laugh>"),
        ("Ha! <laugh>", "<sigh>"),
    ],
)
def test_these_are_no_ends_of_a_sentence(before: str, after: str) -> None:
    head = f"{SENTENCE} {SENTENCE} {SENTENCE} Some more words to fill it here {before}"
    assert 220 < len(head) < 270
    first, *_ = split(f"{head} {after} {SENTENCE}")
    assert not first.strip().endswith(before)


@pytest.mark.parametrize("mark", [".", "?", "!", "…", "?!", '."', "。", "！"])  # noqa: RUF001 - the marks of Chinese
def test_these_end_a_sentence(mark: str) -> None:
    space = "" if mark in "。！" else " "  # noqa: RUF001 - as above
    sentence = "word " * 25 + f"end{mark}"
    first, _ = split(space.join([sentence] * 3))
    assert first.strip() == space.join([sentence] * 2)


def test_long_sentences_are_cut_at_commas_then_at_words() -> None:
    clause = "word " * 30 + "end,"
    first, *_ = split(" ".join([clause] * 3) + " done.")
    assert first.strip() == clause
    first, *_ = split("word " * 100 + "done.")
    assert first.strip() == ("word " * 56).strip()


def test_a_short_rest_is_joined_to_what_is_before_it() -> None:
    pieces = split(clean(f"{SENTENCE}\n\nYes.\n\n{SENTENCE} {SENTENCE}"))
    assert pieces == (f"{SENTENCE}\n\nYes.\n\n", f"{SENTENCE} {SENTENCE}")
    first, second = split("word " * 55 + "last.\n\nYes.")
    assert abs(len(first) - len(second)) < 10
    assert second.endswith("Yes.")


def test_a_short_piece_is_joined_to_the_shorter_of_its_neighbours() -> None:
    long = f"{SENTENCE} {SENTENCE}"
    assert split(f"{long}\n\nYes.\n\n{SENTENCE}") == (f"{long}\n\n", f"Yes.\n\n{SENTENCE}")
    assert split(f"{SENTENCE}\n\nYes.\n\n{long}") == (f"{SENTENCE}\n\nYes.\n\n", long)


def test_what_has_no_space_near_its_middle_is_cut_there() -> None:
    text = f"{'x' * (MOST - 4)}\n\nYes."
    assert [len(piece) for piece in split(text)] == [len(text) // 2] * 2


def test_a_passage_of_twenty_characters_is_long_enough() -> None:
    for rest, count in (("x" * 19, 1), ("x" * 20, 2)):
        assert len(split(f"{SENTENCE}\n\n{rest}")) == count


def test_a_text_made_to_be_slow_is_cut_at_once() -> None:
    for text in ("." * 5000, "<a" * 2500, "a." * 2500, ". <" * 1600, '."' * 2500, "x " * 2500):
        assert "".join(split(text)) == text


def test_a_passage_has_280_characters_at_most() -> None:
    assert split("x" * 280) == ("x" * 280,)
    assert [len(one) for one in split("x" * 281)] == [140, 141]


@pytest.mark.parametrize(("length", "count"), [(30, 1), (31, 2)])
def test_two_pieces_that_are_exactly_a_passage_together_are_one(length: int, count: int) -> None:
    text = "a" * length + "\n\n" + "b" * 8
    pieces = split(text, 40)
    assert "".join(pieces) == text
    assert len(pieces) == count


@pytest.mark.parametrize(("end", "place"), [(69, 140), (70, 140), (71, 71)])
def test_a_space_is_near_to_the_middle_in_the_two_inner_quarters(end: int, place: int) -> None:
    """Of 281 characters, the middle of which is the 140th."""
    first = "a" * (end - 1) + " "
    text = first + "c" * (260 - end) + "\n\n" + "b" * 19
    assert split(text, MOST) == (text[:place], text[place:])
