"""What a word that is not known was meant to be: a slip, another case, other dashes."""

import difflib
import unicodedata
from collections.abc import Iterable
from typing import Any, Final

# A longer word is no slip of one of ours, and comparing takes time with the square of the length.
LONGEST: Final = 60
# Of SequenceMatcher.ratio. One letter too many, too few or wrong in five gives 0.8 and more; one
# wrong in four (mask for task) 0.75, which is more often another word than a slip.
CUTOFF: Final = 0.8
# Two letters swapped give 0.75 in four (edti for edit) and 0.67 in three, and are a slip.
SWAPPED: Final = 0.65


def guess(word: Any, known: Iterable[str], *, slips: bool = True) -> str | None:
    """Return the known word that was meant, None when no one is near.

    Letters and digits alone count: `numInferenceSteps` and `NUM-INFERENCE-STEPS` are
    `num_inference_steps`. Without `slips` nothing more is forgiven.
    """
    if not isinstance(word, str) or len(word) > LONGEST or not (given := _letters(word)):
        return None
    names = {_letters(name): name for name in known}
    if given in names or not slips:
        return names.get(given)
    matcher = difflib.SequenceMatcher(autojunk=False)
    matcher.set_seq2(given)
    best, found = 0.0, None
    for letters, name in names.items():
        enough = SWAPPED if sorted(letters) == sorted(given) else CUTOFF
        matcher.set_seq1(letters)
        if matcher.real_quick_ratio() < enough or matcher.quick_ratio() < enough:
            continue
        ratio = matcher.ratio()
        if ratio >= enough and ratio > best:
            best, found = ratio, name
    return found


def _letters(word: str) -> str:
    """Fold a word: no case, no accents, no width, and nothing between its letters and digits."""
    folded = unicodedata.normalize("NFKD", word.casefold())
    return "".join(character for character in folded if character.isalnum())[:LONGEST]
