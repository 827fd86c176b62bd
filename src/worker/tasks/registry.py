"""The tasks that callers may ask for, by name, and what all of their inputs say together."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from worker.edge import fields, reading
from worker.edge.fields import FieldFacts
from worker.edge.reading import Read, Vocabulary
from worker.tasks import picture
from worker.tasks.task import Task

# In the order in which messages list them.
TASKS: Final[dict[str, Task]] = {task.name: task for task in (picture.TEXT_TO_IMAGE, picture.EDIT)}
# Names that are known, so that asking for one is not a slip; a later version may have the task.
LATER: Final = ("img2img", "inpaint", "layered", "speech")


def usual() -> Task:
    """Return the task that is meant where nothing asks for another."""
    return next(task for task in TASKS.values() if task.sign is None)


def vocabulary(task: Task) -> Vocabulary:
    """Return the words of a task that its fields do not have themselves."""
    own = fields.names(task.input)
    having: dict[str, list[str]] = {}
    for other in TASKS.values():
        for word in fields.names(other.input):
            if word not in own:
                having.setdefault(word, []).append(other.name)
    return Vocabulary(
        {"tasks": {name: name for name in (*TASKS, *LATER)}, "formats": task.formats},
        {
            word: f"{' and '.join(others)} {'has' if len(others) == 1 else 'have'} it"
            for word, others in having.items()
        },
    )


def read(given: Mapping[Any, Any], task: Task) -> Read:
    """Judge every field of a job's input by itself, as one of a task; never raises."""
    return reading.read(given, task.input, vocabulary(task))


def names() -> Mapping[str, str]:
    """Return the field that each word of any task's input means, in the first task that has it."""
    found: dict[str, str] = {}
    for task in TASKS.values():
        for word, name in fields.names(task.input).items():
            found.setdefault(word, name)
    return found


def asking() -> frozenset[str]:
    """Return the words of which a job's input must have one: a task's required fields, and op."""
    return frozenset(
        word
        for task in TASKS.values()
        for word, name in fields.names(task.input).items()
        if name == "op" or name in fields.required(task.input)
    )


def table() -> tuple[FieldFacts, ...]:
    """Return every field of every task, in the order of the documentation, each once.

    A field that some tasks lack, or that differs among them, says which have it.
    """
    having: dict[FieldFacts, list[Task]] = {}
    for task in TASKS.values():
        lossy = [form for form in dict.fromkeys(task.formats.values()) if form not in task.lossless]
        own = {
            "{formats}": ", ".join(task.formats),
            "{format}": task.default_format,
            "{lossy}": " and ".join(lossy) or "none",
        }
        for row in fields.rows(task.input):
            having.setdefault(_filled(row, own), []).append(task)
    signs = [f"{task.sign}: {task.name}" for task in TASKS.values() if task.sign is not None]
    common = {
        "{tasks}": ", ".join(f"`{name}`" for name in TASKS),
        "{inferred}": ", ".join((*signs, f"else {usual().name}")),
    }
    return tuple(
        replace(
            _filled(row, {**common, "{noun}": tasks[0].noun}),
            tasks=() if len(tasks) == len(TASKS) else tuple(task.name for task in tasks),
        )
        for row, tasks in having.items()
    )


def _filled(row: FieldFacts, words: Mapping[str, str]) -> FieldFacts:
    """Put words in place of those in braces."""
    accepts, default = row.accepts, row.default
    for place, word in words.items():
        accepts, default = accepts.replace(place, word), default.replace(place, word)
    return replace(row, accepts=accepts, default=default)
