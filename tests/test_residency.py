"""Models stay in memory while they fit; else the least recently used is evicted."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from PIL import Image

from worker.errors import ModelNotServed
from worker.media.picture import Picture
from worker.residency import Residency, limit_together
from worker.seam import Control, Made, Openable, Served
from worker.tasks.picture import PictureWish
from worlds.published import IMAGE


def served(name: str) -> Served:
    """Describe a model that makes pictures from text."""
    return replace(IMAGE, id=name)


@dataclass
class Shelf:
    """Counts what is opened and released."""

    events: list[str] = field(default_factory=list)

    def openable(
        self, name: str, size: int, working: int = 0, kept: int = 0, **shared: int
    ) -> Openable:
        """Describe a model of that many bytes of its own, its jobs', and the parts it shares.

        Its jobs leave `kept` of theirs behind.
        """

        def opened() -> Recorded:
            self.events.append(f"open {name}")
            return Recorded(served(name), self)

        given = replace(served(name), working=working, kept=kept)
        return Openable(given, {name: size, **shared}, opened)


@dataclass
class Recorded:
    """A model that notes on the shelf when it is released."""

    served: Served
    shelf: Shelf

    def make_key(self, wish: PictureWish) -> None:
        """Share no forward."""
        del wish

    def read_ahead(self, wish: PictureWish) -> PictureWish:
        """Return it as it is."""
        return wish

    def make(self, wishes: Sequence[PictureWish], controls: Sequence[Control]) -> list[Made]:
        """Draw grey pixels."""
        for wish, control in zip(wishes, controls, strict=True):
            control.report("denoise", 1, wish.steps)
        return [Made(Picture(Image.new("RGB", (1, 1))), timings_ms={}) for _ in wishes]

    def warm(self) -> None:
        """Have nothing to load."""

    def release(self) -> None:
        """Note it on the shelf."""
        self.shelf.events.append(f"release {self.served.id}")


def test_models_that_fit_are_opened_once_and_stay() -> None:
    """A second job of either model opens nothing."""
    shelf = Shelf()
    models = Residency([shelf.openable("a", 5), shelf.openable("b", 5)], budget=10)
    list(models.fill())
    for name in ("a", "b", "a", "b"):
        assert models.take(name).served.id == name
    assert shelf.events == ["open a", "open b"]


def test_the_least_recently_used_is_evicted() -> None:
    """Room for two: the third replaces the one not used since, freed before the next is opened."""
    shelf = Shelf()
    models = Residency([shelf.openable(n, 5) for n in "abc"], budget=10)
    for name in ("a", "b", "a", "c", "a"):
        models.take(name)
    assert shelf.events == ["open a", "open b", "release b", "open c"]
    facts: Any = models.report_health()["models"]
    assert [name for name, fact in facts.items() if fact["resident"]] == ["a", "c"]


def test_a_shared_part_counts_once() -> None:
    """Two models with one text encoder fit where two encoders would not."""
    shelf = Shelf()
    pair = [shelf.openable(name, 5, encoder=6) for name in "ab"]
    list(Residency(pair, budget=16).fill())
    assert shelf.events == ["open a", "open b"]


def test_the_largest_job_of_any_model_has_room_too() -> None:
    """Of one at a time: the jobs of both take what the larger one takes."""
    for budget, resident in ((17, ["a", "b"]), (16, ["a"])):
        shelf = Shelf()
        pair = [shelf.openable(name, 5, working=6 + (name == "b")) for name in "ab"]
        list(Residency(pair, budget=budget).fill())
        assert shelf.events == [f"open {name}" for name in resident]


def test_a_model_that_says_nothing_of_its_jobs_takes_its_weights_alone() -> None:
    for budget, resident in ((10, ["a", "b"]), (9, ["a"])):
        pair = [
            Openable(served(name), {name: 5}, lambda: Recorded(IMAGE, Shelf())) for name in "ab"
        ]
        models = Residency(pair, budget=budget)
        list(models.fill())
        assert [name for name in "ab" if models.find_open(name)] == resident


def test_what_a_model_keeps_between_jobs_is_no_room_for_those_of_others() -> None:
    """Of 5 and 5, the larger job needs 7, and what the other keeps of its own 6 is 2."""
    for budget, resident in ((19, ["a", "b"]), (18, ["a"])):
        shelf = Shelf()
        pair = [shelf.openable("a", 5, working=7), shelf.openable("b", 5, working=6, kept=2)]
        list(Residency(pair, budget=budget).fill())
        assert shelf.events == [f"open {name}" for name in resident]


def test_a_limit_leaves_what_others_keep() -> None:
    given: list[int] = []

    def limit(left: int) -> Openable:
        given.append(left)
        return Shelf().openable("a", 5, working=left, kept=3)

    first = replace(Shelf().openable("a", 5, working=9, kept=3), limit=limit)
    other = Shelf().openable("b", 5, working=4, kept=2)
    found = limit_together([first, other], 20)
    assert given == [8]
    assert [model.served.working for model in found] == [8, 4]


def test_models_accept_only_what_lets_all_of_them_stay() -> None:
    """Where that is possible; else each accepts what fits beside it alone."""
    shelf = Shelf()

    def limited(name: str, working: int, least: int) -> Openable:
        def limit(left: int) -> Openable:
            return limited(name, max(least, min(left, working)), least)

        return replace(shelf.openable(name, 5, working=working), limit=limit)

    models = [limited("a", 9, 1), limited("b", 9, 2), shelf.openable("c", 1, working=1)]
    for budget, expected in ((None, [9, 9, 1]), (15, [4, 4, 1]), (13, [2, 2, 1]), (12, [9, 9, 1])):
        found = limit_together(models, budget)
        assert [model.served.working for model in found] == expected


def test_filling_leaves_closed_what_does_not_fit() -> None:
    """At start nothing is opened only to be thrown out again, and the first is always opened."""
    shelf = Shelf()
    models = Residency([shelf.openable(n, s) for n, s in (("a", 9), ("b", 5), ("c", 1))], budget=10)
    list(models.fill())
    assert shelf.events == ["open a", "open c"]


def test_a_model_larger_than_the_budget_is_tried_alone() -> None:
    """The sizes are computed; only the device can say no."""
    shelf = Shelf()
    models = Residency([shelf.openable("a", 50)], budget=10)
    list(models.fill())
    assert shelf.events == ["open a"]


def test_a_model_that_is_not_served_is_named() -> None:
    """The caller learns what is."""
    models = Residency([Shelf().openable("a", 1)], budget=None)
    with pytest.raises(ModelNotServed, match="serves a"):
        models.take("z")


def test_models_are_reported_in_their_order_with_where_they_came_from() -> None:
    shelf = Shelf()
    pair = [replace(shelf.openable(n, 5), facts={"source": n * 2}) for n in "ba"]
    models = Residency(pair, budget=5)
    assert [model.id for model in models.served] == ["b", "a"]
    models.take("a")
    assert models.report_health() == {
        "models": {
            "b": {"resident": False, "source": "bb"},
            "a": {"resident": True, "source": "aa"},
        }
    }


def test_a_model_is_found_where_it_is_resident_and_stays_as_it_was() -> None:
    """Looking is no use of it, and opens nothing."""
    shelf = Shelf()
    models = Residency([shelf.openable(n, 5) for n in "abc"], budget=10)
    assert models.find_open("a") is None
    first = models.take("a")
    models.take("b")
    assert models.find_open("a") is first
    models.take("c")
    assert shelf.events == ["open a", "open b", "release a", "open c"]
    assert models.find_open("a") is None


def test_what_may_be_added_is_what_is_published_for_a_task() -> None:
    one = [Shelf().openable("a", 1)]
    models = Residency(one, budget=None, published={"edit": ["x", "y"]})
    assert (models.list_addable("edit"), models.list_addable("speech")) == (["x", "y"], ())
    assert Residency(one, budget=None).list_addable("edit") == ()


def test_without_a_budget_everything_fits() -> None:
    shelf = Shelf()
    models = Residency([shelf.openable(n, 10**15) for n in "abc"], budget=None)
    assert [model.served.id for model in models.fill()] == ["a", "b", "c"]
    assert shelf.events == ["open a", "open b", "open c"]


def test_as_many_give_way_as_must() -> None:
    shelf = Shelf()
    sizes = {"a": 3, "b": 3, "c": 4, "big": 8}
    models = Residency([shelf.openable(n, s) for n, s in sizes.items()], budget=10)
    for name in ("a", "b", "c", "big", "a"):
        models.take(name)
    assert shelf.events == [
        *("open a", "open b", "open c"),
        *("release a", "release b", "release c", "open big"),
        *("release big", "open a"),
    ]
