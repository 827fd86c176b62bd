"""What is tried again, how often, and after which waits."""

from collections.abc import Iterator

import pytest
import stamina.instrumentation
from stamina.instrumentation import RetryDetails

from worker import settings
from worker.errors import HubUnreachable, WeightsUnavailable
from worker.weights.retry import AttemptFailed, Missing, Patience, WrongBytes, classify_status

QUICK = Patience(attempts=5, first_wait_s=0.004, longest_wait_s=0.02)


@pytest.fixture
def waits() -> Iterator[list[float]]:
    """The waits before the attempts after the first, in seconds."""
    found: list[float] = []

    def note(details: RetryDetails) -> None:
        found.append(details.wait_for)

    before = stamina.instrumentation.get_on_retry_hooks()
    stamina.instrumentation.set_on_retry_hooks([note])
    yield found
    stamina.instrumentation.set_on_retry_hooks(before)


def fail(patience: Patience, error: Exception) -> int:
    """Fail every attempt; return how many there were."""
    calls = 0

    def action() -> None:
        nonlocal calls
        calls += 1
        raise error

    with pytest.raises(type(error) if not isinstance(error, AttemptFailed) else HubUnreachable):
        patience.retry(action, "org/name: x.json")
    return calls


def test_what_works_is_done_once(waits: list[float]) -> None:
    assert QUICK.retry(lambda: 7, "x") == 7
    assert waits == []


def test_waits_double_up_to_the_longest_each_with_a_jitter_of_the_first(waits: list[float]) -> None:
    """Workers that were cut off together do not come back together."""
    assert fail(QUICK, AttemptFailed("cut")) == 5
    for wait, least in zip(waits, (0.004, 0.008, 0.016, 0.02), strict=True):
        assert least - 1e-9 <= wait <= min(least + 0.004, 0.02) + 1e-9


def test_two_workers_do_not_wait_equally_long(waits: list[float]) -> None:
    for _ in range(8):
        fail(Patience(attempts=2, first_wait_s=0.004), AttemptFailed("cut"))
    assert len(set(waits)) > 1


@pytest.mark.parametrize(("asked", "waited"), [(0.003, 0.003), (0.0, 0.0), (900, 0.01)])
def test_the_hub_is_waited_for_as_long_as_it_asks_within_reason(
    waits: list[float], asked: float, waited: float
) -> None:
    patience = Patience(attempts=2, longest_asked_wait_s=0.01)
    assert fail(patience, AttemptFailed("busy", wait_s=asked)) == 2
    assert waits == [waited]


@pytest.mark.parametrize("attempts", [1, 2, 4])
def test_there_are_so_many_attempts(attempts: int) -> None:
    assert fail(Patience(attempts=attempts, first_wait_s=0.001), AttemptFailed("cut")) == attempts


def test_attempts_that_take_long_are_no_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of gigabytes may break off after an hour, and again."""
    hours = iter(range(0, 3600 * 1000, 3600))
    monkeypatch.setattr("tenacity.time.monotonic", lambda: float(next(hours)))
    assert fail(Patience(attempts=4, first_wait_s=0.001), AttemptFailed("cut")) == 4


@pytest.mark.parametrize("times", [1, 2, 3])
def test_wrong_bytes_are_asked_for_so_many_times(times: int) -> None:
    patience = Patience(attempts=5, first_wait_s=0.001, wrong_bytes=times)
    assert fail(patience, WrongBytes("others")) == times


@pytest.mark.parametrize("error", [WeightsUnavailable("no"), Missing("no"), OSError("disk")])
def test_what_no_attempt_mends_is_not_tried_again(error: Exception) -> None:
    assert fail(QUICK, error) == 1


def test_the_last_reason_is_told_with_what_to_do() -> None:
    with pytest.raises(HubUnreachable, match=r"^org/name: x\.json: cut short") as caught:
        Patience(attempts=1).retry(_cut, "org/name: x.json")
    assert "HF_ENDPOINT" in caught.value.message
    assert caught.value.retryable


def _cut() -> None:
    raise AttemptFailed("cut short")


def test_the_operators_patience_is_taken() -> None:
    read = settings.read({"DOWNLOAD_RETRIES": "3", "DOWNLOAD_STALL_S": "17"})
    patience = Patience.from_settings(read)
    assert (patience.attempts, patience.stall_s) == (4, 17)


def test_patience_that_nobody_sets_is_that_of_the_settings() -> None:
    assert Patience() == Patience.from_settings(settings.read({}))


def test_nothing_is_tried_again_at_once() -> None:
    """A hub that is busy gets time, and then more of it."""
    least = Patience()
    assert 0 < least.first_wait_s < least.longest_wait_s <= least.longest_asked_wait_s


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 599])
def test_a_status_that_passes_is_tried_again(status: int) -> None:
    found = classify_status(status, "3", "org/name")
    assert isinstance(found, AttemptFailed)
    assert found.wait_s == 3
    assert str(status) in found.reason


@pytest.mark.parametrize(
    "status", [400, 401, 403, 404, 405, 407, 409, 410, 418, 428, 430, 451, 499]
)
def test_a_status_that_stays_is_told_with_its_advice(status: int) -> None:
    found = classify_status(status, None, "org/name")
    assert isinstance(found, WeightsUnavailable)
    assert isinstance(found, Missing) == (status == 404)
    assert not isinstance(found, HubUnreachable)
    assert found.message.startswith("org/name: ")
    assert f"(status {status})" in found.message
    advice = {
        401: "the hub needs a token",
        403: "accept the model's licence",
        404: "there is no such repository",
        410: "was taken down",
        451: "may not be delivered here",
    }
    assert f": {advice.get(status, 'the hub refuses the request')}" in found.message.replace(
        "the hub refuses this account: ", ""
    ).replace("the repository ", "")


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (None, None),
        ("7", 7),
        (" 7 ", 7),
        ("0", 0),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2015 07:28:00", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_never_in_the_past(
    said: str | None, seconds: float | None
) -> None:
    found = classify_status(503, said, "x")
    assert isinstance(found, AttemptFailed)
    assert found.wait_s == seconds
