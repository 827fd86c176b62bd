"""Fields that would change what is made, and that no model here honours, or none for this task."""

from collections.abc import Mapping
from typing import Any, Final

from worker.edge import fields
from worker.edge.verdict import Verdict
from worker.errors import Detail
from worker.tasks.task import Task

# Each word with the values that change nothing, whatever else is given; null never does.
WORDS: Final[Mapping[str, tuple[Any, ...]]] = {
    **dict.fromkeys(("mask", "mask_image", "mask_url", "mask_base64"), ("",)),
    **dict.fromkeys(("loras", "lora", "lora_weights", "lora_url"), ("", [])),
    "background": ("", "auto", "opaque"),
}
# What asks for nothing, in a field that another kind of task has; false does too, and 0 does not.
EMPTY: Final[tuple[Any, ...]] = ("", [], {})
# A job has its input under this word: next to other fields it is a leftover of that.
JOB: Final = "input"
# These say how far a picture may be left behind: without one they change nothing.
OF_PICTURES: Final = ("strength", "prompt_strength", "denoise", "denoising_strength")


def check(
    job_input: Mapping[Any, Any], task: Task, foreign: Mapping[str, str], verdict: Verdict
) -> None:
    """Add a fault for each field whose effect the caller would miss in what is made.

    A word that is a field of the task is left to the task. `foreign` maps words that only other
    kinds of task have to the name of those; such a field may be empty or false.
    """
    known = fields.map_names(task.input)
    for word, value in job_input.items():
        if not isinstance(word, str) or word in known or value is None:
            continue
        if word in foreign and word != JOB and value is not False and value not in EMPTY:
            message = f"is for {foreign[word]}, not for {task.name}"
            verdict.add_foreign(Detail(word, message))
            continue
        is_decisive = word in WORDS and value not in WORDS[word]
        if is_decisive or (word in OF_PICTURES and task.sign is not None):
            verdict.add_foreign(Detail(word, "is not supported by this worker; leave it out"))
