"""The faults and warnings of one input, collected until everything is checked."""

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
        self._unknown: tuple[Detail, ...] = ()

    def find_word(self, name: str) -> str:
        """Return the caller's name for a field."""
        return self.given.words.get(name, name)

    def add_fault(
        self,
        name: str,
        message: str,
        kind: type[WorkerError] = InvalidInput,
        *,
        index: int | None = None,
    ) -> None:
        """Add what is wrong with a field, or with the item at `index` of a list."""
        place = "" if index is None else f"[{index}]"
        self._faults.append((kind, Detail(self.find_word(name) + place, message)))

    def warn(self, name: str, message: str) -> None:
        """Add what the caller should know about a field."""
        self.warnings.append(f"{self.find_word(name)}: {message}")

    def add_unknown(self, *, strict: bool) -> None:
        """Add the unknown fields as faults, or as warnings."""
        if strict:
            self._faults += [(InvalidInput, detail) for detail in self.given.unknown]
        else:
            self._unknown = self.given.unknown
            self.warnings += [f"{d.field}: {d.message}" for d in self._unknown]

    def is_broken(self, *names: str) -> bool:
        """Return whether the value of one of these fields is wrong on its own."""
        return not self.given.broken.isdisjoint(names)

    def raise_faults(self) -> None:
        """Raise the faults: as their own kind when they are all of one kind, else as InvalidInput.

        The message also names the unknown fields, which are often the reason.
        """
        if not self._faults:
            return
        kinds = {kind for kind, _ in self._faults}
        kind = kinds.pop() if len(kinds) == 1 else InvalidInput
        details = [detail for _, detail in self._faults]
        message = "; ".join(f"{d.field}: {d.message}" for d in (*details, *self._unknown))
        raise kind(message, details=details, warnings=self.warnings)
