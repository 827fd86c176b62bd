"""One family of models, as it is known before its module is imported."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from worker.weights.meaning import Complete
from worker.weights.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Family:
    """What is known of a family without torch.

    `rows` are its published models, the oldest first, each with the `family` module that opens it;
    that module has `make_ready(spec, settings, gpu, taken=...)` and `prepare(spec, settings, gpu)`.
    `groups` maps a word of MODEL to the names of several rows. `classes` maps each class under
    which it is published to how a model of that class is completed. `form` says in words what a
    folder of its published weights looks like.
    """

    rows: tuple[ModelSpec, ...]
    classes: Mapping[str, Complete]
    form: str
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
