"""The faults and warnings of one input, as they are raised."""

from types import SimpleNamespace
from typing import Any

import pytest

from worker.edge.verdict import Verdict
from worker.errors import Detail, InvalidInput, ModelNotServed, UnsupportedTask

FAULT, UNKNOWN = Detail("a", "is wrong"), Detail("x", "is not known")


def verdict(faults: tuple[Detail, ...] = (), unknown: tuple[Detail, ...] = ()) -> Verdict:
    given: Any = SimpleNamespace(
        faults=faults, unknown=unknown, words={"b": "bee"}, broken=frozenset({"a"})
    )
    return Verdict(given)


def raised(one: Verdict) -> InvalidInput:
    with pytest.raises(InvalidInput) as error:
        one.raise_faults()
    return error.value


def test_without_a_fault_nothing_is_raised() -> None:
    one = verdict(unknown=(UNKNOWN,))
    one.warn("b", "has no effect")
    one.add_unknown(strict=False)
    one.raise_faults()
    assert one.warnings == ["bee: has no effect", "x: is not known"]


def test_a_message_names_the_unknown_fields_after_the_faults() -> None:
    one = verdict((FAULT,), (UNKNOWN,))
    one.add_fault("b", "is too", index=0)
    one.add_fault("c", "is as well")
    one.add_unknown(strict=False)
    error = raised(one)
    more = (Detail("bee[0]", "is too"), Detail("c", "is as well"))
    assert error.details == (FAULT, *more)
    assert error.message == "a: is wrong; bee[0]: is too; c: is as well; x: is not known"
    assert error.warnings == ("x: is not known",)


def test_an_unknown_field_is_a_fault_where_input_is_strict() -> None:
    one = verdict(unknown=(UNKNOWN,))
    one.add_unknown(strict=True)
    error = raised(one)
    assert (error.details, error.message, error.warnings) == ((UNKNOWN,), "x: is not known", ())


@pytest.mark.parametrize("strict", [True, False])
def test_a_foreign_field_is_reported_once_and_others_stay(*, strict: bool) -> None:
    """A field whose name begins like it is another."""
    other = Detail("xx", "is not known")
    one = verdict((FAULT,), (UNKNOWN, other))
    one.add_unknown(strict=strict)
    one.add_foreign(Detail("x", "is for others"))
    error = raised(one)
    kept = (FAULT, other) if strict else (FAULT,)
    assert error.details == (*kept, Detail("x", "is for others"))
    assert error.message.count("x: is not known") == 1  # of xx alone
    assert error.warnings == (() if strict else ("xx: is not known",))


def test_faults_of_one_kind_are_raised_as_it_and_others_as_an_invalid_input() -> None:
    one = verdict()
    one.add_fault("model", "is not served", ModelNotServed)
    with pytest.raises(ModelNotServed):
        one.raise_faults()
    one.add_fault("task", "has no model", UnsupportedTask)  # and none is an invalid input itself
    assert len(raised(one).details) == 2


def test_a_field_is_broken_by_its_own_value() -> None:
    one = verdict()
    assert one.is_broken("b", "a")
    assert not one.is_broken("b")
