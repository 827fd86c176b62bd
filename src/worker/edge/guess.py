"""What an unknown word was meant to be: a typo, another case, other dashes."""

import difflib
import unicodedata
from collections.abc import Iterable
from typing import Any, Final

# A longer word is no typo for one of ours, and comparing takes time quadratic in the length.
LONGEST_GUESS: Final = 60
# Of SequenceMatcher.ratio. One letter too many, too few or wrong in five gives 0.8 and more; one
# wrong in four (mask for task) 0.75, which is more often another word than a typo.
CUTOFF: Final = 0.8
# Two letters swapped give 0.75 in four (edti for edit) and 0.67 in three, and are a typo.
SWAPPED: Final = 0.65


def guess(word: Any, known: Iterable[str]) -> str | None:
    """Return the known word that was meant, None when none is near.

    Only letters and digits count: `numInferenceSteps` and `NUM-INFERENCE-STEPS` are
    `num_inference_steps`.
    """
    if not isinstance(word, str) or len(word) > LONGEST_GUESS:
        return None
    given = _extract_letters(word)
    names: dict[str, str] = {}
    for name in known:  # of several that differ in nothing else, the first
        names.setdefault(_extract_letters(name), name)
    if given in names:
        return names[given]
    matcher = difflib.SequenceMatcher(autojunk=False)
    matcher.set_seq2(given)
    near: dict[str, float] = {}
    for letters, name in names.items():
        matcher.set_seq1(letters)
        enough = SWAPPED if sorted(letters) == sorted(given) else CUTOFF
        # the quick ratio is an upper bound of the other and costs next to nothing
        if matcher.real_quick_ratio() >= enough and matcher.ratio() >= enough:
            near[name] = matcher.ratio()
    return max(near, key=near.__getitem__, default=None)


def _extract_letters(word: str) -> str:
    """Fold a word: one case, no accents, one form, and nothing between its letters and digits."""
    folded = unicodedata.normalize("NFKD", word.casefold())
    return "".join(character for character in folded if character.isalnum())[:LONGEST_GUESS]
