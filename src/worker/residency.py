"""Which models are in memory: all that fit, else the least recently used gives way."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from worker import log
from worker.errors import ModelNotServed
from worker.families import Model, Served


@dataclass(frozen=True, slots=True)
class Openable:
    """A model that can be opened at any time: what it serves, its device bytes, and how."""

    served: Served
    size: int
    open: Callable[[], Model]


class Residency:
    """The models of this worker, at most `budget` bytes of them resident (None: no limit)."""

    def __init__(
        self,
        models: Sequence[Openable],
        *,
        budget: int | None,
        facts: Mapping[str, object] | None = None,
    ) -> None:
        self._models = {model.served.id: model for model in models}
        self._budget = budget
        self._facts = dict(facts or {})
        self._resident: OrderedDict[str, Model] = OrderedDict()

    @property
    def served(self) -> tuple[Served, ...]:
        """Every model that callers may name, in the order of MODEL."""
        return tuple(model.served for model in self._models.values())

    def take(self, model_id: str) -> Model:
        """Return that model, opened first where it is not resident; for the generating thread."""
        if model_id in self._resident:
            self._resident.move_to_end(model_id)
            return self._resident[model_id]
        if model_id not in self._models:
            raise ModelNotServed(f"model: this worker serves {', '.join(self._models)}")
        wanted = self._models[model_id]
        while self._resident and not self._fits(wanted.size):
            evicted, model = self._resident.popitem(last=False)
            model.release()
            log.get().info("model evicted", model=evicted, room_for=model_id)
        opened = wanted.open()
        self._resident[model_id] = opened
        return opened

    def fill(self) -> None:
        """Open models in their order while they fit, so that the first job of each is warm."""
        for model_id, model in self._models.items():
            if self._resident and not self._fits(model.size):
                log.get().info("model left closed: no room beside the others", model=model_id)
                continue
            self.take(model_id)

    def health(self) -> Mapping[str, object]:
        """Return what is served and what is resident, with the facts of the start."""
        return {"resident": list(self._resident), **self._facts}

    def _fits(self, size: int) -> bool:
        used = sum(self._models[name].size for name in self._resident)
        return self._budget is None or used + size <= self._budget
