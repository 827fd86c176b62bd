"""Fields of other workers that would change what is made, and that no model here honours."""

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
# These say how far a picture may be left behind: without one they change nothing.
OF_PICTURES: Final = ("strength", "prompt_strength", "denoise", "denoising_strength")


def check(job_input: Mapping[Any, Any], task: Task, verdict: Verdict) -> None:
    """Add a fault for each field whose effect the caller would miss in what is made.

    A word that is a field of the task is left to the task.
    """
    known = fields.map_names(task.input)
    for word, value in job_input.items():
        if not isinstance(word, str) or word in known or value is None:
            continue
        is_decisive = word in WORDS and value not in WORDS[word]
        if is_decisive or (word in OF_PICTURES and task.sign is not None):
            verdict.add_foreign(Detail(word, "is not supported by this worker; leave it out"))
