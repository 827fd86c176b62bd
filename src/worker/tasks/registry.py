"""The tasks that callers may request, by name, and the fields of all their inputs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from worker.edge import fields, reading
from worker.edge.fields import FieldFacts
from worker.edge.reading import Read, Vocabulary
from worker.tasks import picture_tasks, speech
from worker.tasks.task import Task

# In the order in which messages list them.
TASKS: Final[dict[str, Task]] = {**picture_tasks.PICTURE_TASKS, speech.SPEECH.name: speech.SPEECH}
# Other words for tasks.
MEANINGS: Final[dict[str, str]] = {
    "txt2img": "text-to-image",
    "multi_reference": "edit",
    "text-to-speech": speech.SPEECH.name,
    "tts": speech.SPEECH.name,
}
# Known names of tasks that a later version may have: requesting one is not a typo.
LATER: Final = ("layered",)


def find_usual_task() -> Task:
    """Return the task that is meant where nothing requests another."""
    return next(task for task in TASKS.values() if task.sign is None)


def map_foreign(task: Task) -> Mapping[str, str]:
    """Return the words of fields that only tasks of another kind have, with the name of that."""
    own = fields.map_names(task.input)
    kinds = [other.key for other in TASKS.values()]
    return {
        word: other.name if kinds.count(other.key) == 1 else f"{other.noun}s"
        for other in reversed(TASKS.values())
        if other.key != task.key
        for word in fields.map_names(other.input)
        if word not in own
    }


def list_signed() -> list[Task]:
    """Return the tasks that a field of theirs asks for: of several, the first here is meant."""
    return [task for task in reversed(TASKS.values()) if task.sign is not None]


def build_vocabulary(task: Task) -> Vocabulary:
    """Return the words of a task that are not in its own fields."""
    own = fields.map_names(task.input)
    having: dict[str, list[str]] = {}
    for other in TASKS.values():
        for word in fields.map_names(other.input):
            if word not in own:
                having.setdefault(word, []).append(other.name)
    return Vocabulary(
        {"tasks": {name: name for name in (*TASKS, *LATER)} | MEANINGS, "formats": task.formats},
        {
            word: f"{fields.join_words(others)} {'has' if len(others) == 1 else 'have'} it"
            for word, others in having.items()
        },
    )


def read_input(given: Mapping[Any, Any], task: Task) -> Read:
    """Read every field of a job's input on its own, as a task's; never raises."""
    return reading.read(given, task.input, build_vocabulary(task))


def map_words() -> Mapping[str, str]:
    """Return the field that each word of any task's input means, in the first task that has it."""
    meanings: dict[str, str] = {}
    for task in TASKS.values():
        for word, name in fields.map_names(task.input).items():
            meanings.setdefault(word, name)
    return meanings


def list_request_words() -> frozenset[str]:
    """Return the words that request something: a task's required fields, and op."""
    return frozenset(
        word
        for task in TASKS.values()
        for word, name in fields.map_names(task.input).items()
        if name == "op" or name in fields.list_required(task.input)
    )


def list_fields() -> tuple[FieldFacts, ...]:
    """Return every field of every task, in the order of the documentation, each once.

    A field that some tasks lack or do not use, or that differs between tasks, names those that
    have it.
    """
    having: dict[FieldFacts, list[Task]] = {}
    for task in TASKS.values():
        lossy = [form for form in dict.fromkeys(task.formats.values()) if form not in task.lossless]
        own = {
            "{formats}": ", ".join(task.formats),
            "{format}": task.default_format,
            "{lossy}": " and ".join(lossy) or "none",
        }
        for row in fields.list_rows(task.input):
            tasks = having.setdefault(_fill(row, own), [])
            if row.name not in task.unused:
                tasks.append(task)
    signs = [f"{task.sign}: {task.name}" for task in list_signed()]
    common = {
        "{tasks}": ", ".join(f"`{name}`" for name in TASKS),
        "{inferred}": ", ".join((*signs, f"else {find_usual_task().name}")),
    }
    return tuple(
        replace(
            _fill(row, {**common, "{noun}": tasks[0].noun}),
            tasks=() if len(tasks) == len(TASKS) else tuple(task.name for task in tasks),
        )
        for row, tasks in having.items()
        if tasks
    )


def describe_value(row: FieldFacts) -> dict[str, Any]:
    """Return the JSON Schema of a field's value, with the words of the first task that has it."""
    task = TASKS[row.tasks[0]] if row.tasks else next(iter(TASKS.values()))
    schema = dict(fields.map_schemas(task.input)[row.name])
    if (choices := schema.pop(fields.CHOICES, None)) is not None:
        words = TASKS if choices == "tasks" else build_vocabulary(task).choices[choices]
        schema["enum"] = list(words)
    return schema


def _fill(row: FieldFacts, words: Mapping[str, str]) -> FieldFacts:
    """Put words in place of those in braces."""
    accepts, default = row.accepts, row.default
    for place, word in words.items():
        accepts, default = accepts.replace(place, word), default.replace(place, word)
    return replace(row, accepts=accepts, default=default)
