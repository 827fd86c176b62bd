"""The faults and warnings of one input, gathered until all is judged."""

from worker.edge.reading import Read
from worker.errors import Detail, InvalidInput, WorkerError


class Verdict:
    """The faults and warnings of one input, by the caller's own names for its fields."""

    def __init__(self, given: Read) -> None:
        self.given = given
        self.warnings: list[str] = []
        self._faults: list[tuple[type[WorkerError], Detail]] = [
            (InvalidInput, detail) for detail in given.faults
        ]
        self._strangers: tuple[Detail, ...] = ()

    def word(self, name: str) -> str:
        """Return the caller's name for a field."""
        return self.given.words.get(name, name)

    def fault(self, name: str, message: str, kind: type[WorkerError] = InvalidInput) -> None:
        """Add what is wrong with a field."""
        self._faults.append((kind, Detail(self.word(name), message)))

    def warn(self, name: str, message: str) -> None:
        """Add what the caller should know of a field."""
        self.warnings.append(f"{self.word(name)}: {message}")

    def meet_strangers(self, *, strict: bool) -> None:
        """Take the unknown fields as faults, or as warnings."""
        if strict:
            self._faults += [(InvalidInput, detail) for detail in self.given.unknown]
        else:
            self._strangers = self.given.unknown
            self.warnings += [f"{d.field}: {d.message}" for d in self._strangers]

    def is_broken(self, *names: str) -> bool:
        """Return whether the value of one of these fields is wrong by itself."""
        return not self.given.broken.isdisjoint(names)

    def judge(self) -> None:
        """Raise the faults: as their own kind when they are all of one, else as InvalidInput.

        The message names the unknown fields as well, which are often the reason.
        """
        if not self._faults:
            return
        kinds = {kind for kind, _ in self._faults}
        kind = kinds.pop() if len(kinds) == 1 else InvalidInput
        details = [detail for _, detail in self._faults]
        message = "; ".join(f"{d.field}: {d.message}" for d in (*details, *self._strangers))
        raise kind(message, details=details, warnings=self.warnings)
