"""Which models are in memory: all that fit, else the least recently used is evicted."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

from worker import log
from worker.errors import ModelNotServed
from worker.seam import Model, Openable, Served


class Residency:
    """The models of this worker, at most `budget` bytes of them resident, jobs included.

    None is no limit.

    `published` maps a task to the names of the models that MODEL may name for it.
    """

    def __init__(
        self,
        models: Sequence[Openable],
        *,
        budget: int | None,
        published: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._models = {model.served.id: model for model in models}
        self._budget = budget
        self._published = published or {}
        self._resident: OrderedDict[str, Model] = OrderedDict()

    @property
    def served(self) -> tuple[Served, ...]:
        """Every model that callers may name, in the order of MODEL."""
        return tuple(model.served for model in self._models.values())

    def take(self, model_id: str) -> Model:
        """Return that model, opened first where it is not resident; in the lane to the device."""
        if model_id in self._resident:
            self._resident.move_to_end(model_id)
            return self._resident[model_id]
        if model_id not in self._models:
            raise ModelNotServed(f"model: this worker serves {', '.join(self._models)}")
        while self._resident and not self._has_room_for(model_id):
            evicted, model = self._resident.popitem(last=False)
            model.release()
            log.get().info("model evicted", model=evicted, room_for=model_id)
        opened = self._models[model_id].open()
        self._resident[model_id] = opened
        return opened

    def find_open(self, model_id: str) -> Model | None:
        """Return that model where it is resident; in any thread."""
        return self._resident.get(model_id)

    def fill(self) -> Iterator[Model]:
        """Open models in their order while they fit, and yield each, to be warmed."""
        for model_id in self._models:
            if self._resident and not self._has_room_for(model_id):
                log.get().info("model left closed: no room beside the others", model=model_id)
                continue
            yield self.take(model_id)

    def list_addable(self, task: str) -> Sequence[str]:
        """Name the models that MODEL may name for a task."""
        return self._published.get(task, ())

    def report_health(self) -> Mapping[str, object]:
        """Return which models are resident and where each came from."""
        models = {
            model_id: {"resident": model_id in self._resident, **model.facts}
            for model_id, model in self._models.items()
        }
        return {"models": models}

    def _has_room_for(self, model_id: str) -> bool:
        """Return whether a model fits next to the resident ones, and the largest job of any."""
        models = [self._models[name] for name in (*self._resident, model_id)]
        return self._budget is None or count_weights(models) + count_working(models) <= self._budget


def count_weights(models: Sequence[Openable]) -> int:
    """Return the bytes of the weights of models; parts that they share count once."""
    parts: dict[str, int] = {}
    for model in models:
        parts |= model.parts
    return sum(parts.values())


def count_working(models: Sequence[Openable]) -> int:
    """Return the bytes that models take beside their weights.

    That is the largest job of any of them, and what the others keep between jobs.
    """
    jobs = (model.served.working - model.served.kept for model in models)
    return max(jobs) + count_kept_between(models)


def count_kept_between(models: Sequence[Openable]) -> int:
    """Return the bytes beside their weights that models keep between jobs."""
    return sum(model.served.kept for model in models)


def limit_together(models: Sequence[Openable], budget: int | None) -> list[Openable]:
    """Limit what callers may request so that all models stay resident, where that is possible.

    Where it is not, even with the smallest limits, each keeps what it serves alone.
    """
    if budget is None:
        return list(models)
    left = budget - count_weights(models)
    free = left - count_kept_between(models)
    limited = [
        model.limit(free + model.served.kept) if model.limit is not None else model
        for model in models
    ]
    return limited if count_working(limited) <= left else list(models)
