"""A compiled function gives what the plain one gives, or the plain one runs; without a compiler."""

from collections.abc import Callable
from typing import Any

import pytest
import structlog
import torch
from torch import Tensor, nn

from worker.engine import compiled
from worker.engine.compiled import Compiled, measure_difference
from worlds.compilers import run_as_traced

WARNING = "not compiled: running uncompiled, slower"


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return how to change the compiler."""

    def use(backend: Any) -> None:
        monkeypatch.setattr(compiled, "compile_for_device", backend)

    use(run_as_traced)
    return use


class Layer(nn.Module):
    """A layer with a mode, as adapters are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(12.0).view(3, 4), requires_grad=False)
        self.mode: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., 4] to [..., 3]."""
        y = x @ self.weight.T
        return y if self.mode is None else y * len(self.mode)


def compute(layer: Layer, x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Compute two results of two sequences of any lengths."""
    return layer(torch.cat([x, y], dim=1)) + count, layer(y)


def give(x: int = 5, y: int = 3, rows: int = 1, count: int = 7) -> tuple[Tensor, Tensor, int]:
    """Return arguments of these sizes."""
    return torch.rand(rows, x, 4), torch.rand(rows, y, 4), count


def equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    """Return whether all results are equal to the last bit."""
    return all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_one_graph_serves_all_sizes_and_layers_and_each_mode_has_its_own() -> None:
    """Sizes that are equal at first may differ later."""
    run, layers = Compiled(compute), (Layer(), Layer())
    layers[1].weight.data += 1
    for sizes in ((4, 4, 1, 4), (5, 3, 1, 7), (30, 2, 1, 9), (2, 30, 1, 60)):
        for layer in layers:
            given = give(*sizes)
            assert equal(run(layer, *given), compute(layer, *given))
    assert run.graphs == 1
    for graphs, mode in ((2, "a"), (3, "bb"), (3, None), (3, "a")):
        for layer in layers:
            layer.mode = mode
            given = give()
            assert equal(run(layer, *given), compute(layer, *given))
        assert run.graphs == graphs
    for sizes in ((2, 2, 2, 2), (5, 3, 3, 7), (9, 8, 4, 7)):
        given = give(*sizes)
        assert equal(run(layers[0], *given), compute(layers[0], *given))
    assert run.graphs == 4  # one more for any batch of more than one
    assert run.is_active


def test_a_function_has_more_graphs_than_torch_allows_by_itself() -> None:
    run, layer = Compiled(compute), Layer()
    for count in range(1, 10):
        layer.mode = "a" * count
        given = give()
        assert equal(run(layer, *given), compute(layer, *given))
    assert (run.graphs, run.is_active) == (9, True)


def test_what_is_compiled_for_one_is_not_for_another() -> None:
    """As two models are: each has its own graphs, and failures."""
    first, second = Compiled(compute), Compiled(compute)
    first(Layer(), *give())
    second(Layer(), *give())
    assert (first.graphs, second.graphs) == (1, 1)


def test_the_first_result_of_each_graph_is_logged() -> None:
    run, layer = Compiled(compute), Layer()
    with structlog.testing.capture_logs() as lines:
        for mode in (None, None, "a", "a"):
            layer.mode = mode
            run(layer, *give())
    shown = [(line["event"], line["graphs"], line["difference"]) for line in lines]
    assert shown == [("compiled", 1, 0.0), ("compiled", 2, 0.0)]


def break_down(_graph: Any, _inputs: list[Any]) -> Any:
    raise ValueError("no C compiler\nwas found")


def break_later(graph: Any, _inputs: list[Any]) -> Any:
    def run(*given: Any) -> Any:
        graph.forward(*given)
        raise RuntimeError("a kernel that does not launch")

    return run


def change(place: int, by: Callable[[Tensor], Tensor]) -> Any:
    """Return a compiler that changes one of the results."""

    def backend(graph: Any, _inputs: list[Any]) -> Any:
        def run(*given: Any) -> Any:
            results = list(graph.forward(*given))
            results[place] = by(results[place])
            return tuple(results)

        return run

    return backend


FAILURES = {
    "at compiling": (break_down, "no C compiler"),
    "at running": (break_later, "a kernel that does not launch"),
    "differs": (change(0, lambda x: x * 1.025), "differ by"),
    "second differs": (change(1, lambda x: x * 1.025), "differ by"),
    "not finite": (change(0, lambda x: x * torch.nan), "differ by"),
    "second not finite": (change(1, lambda x: x * torch.nan), "differ by"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_logged_once_and_the_plain_function_runs_from_then_on(
    compiler: Callable[..., None], failure: str
) -> None:
    backend, reason = FAILURES[failure]
    compiler(backend)
    run, layer = Compiled(compute), Layer()
    with structlog.testing.capture_logs() as lines:
        for mode in (None, "a", None):
            layer.mode = mode
            given = give()
            assert equal(run(layer, *given), compute(layer, *given))
    assert [line["event"] for line in lines] == [WARNING]
    assert reason in lines[0]["reason"]
    assert "\n" not in lines[0]["reason"]
    assert not run.is_active


def test_what_a_compiler_cannot_trace_runs_as_it_is() -> None:
    """A graph in two pieces would wait for the device in between."""

    def read(layer: Layer, x: Tensor, y: Tensor, count: int) -> tuple[Tensor, ...]:
        return compute(layer, x, y, count) if float(x.sum()) > 0 else (x,)

    run, given = Compiled(read), give()
    assert equal(run(Layer(), *given), compute(Layer(), *given))
    assert not run.is_active


def test_a_result_that_differs_by_rounding_is_used(compiler: Callable[..., None]) -> None:
    compiler(change(0, lambda x: x * 1.015))
    run, given = Compiled(compute), give()
    found, expected = run(Layer(), *given), compute(Layer(), *given)
    assert torch.equal(found[0], expected[0] * 1.015)
    assert run.is_active


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), torch.AcceleratorError("CUDA error: lost")], ids=str
)
def test_what_the_device_raises_is_passed_on_and_the_next_result_is_compared(
    compiler: Callable[..., None], error: Exception
) -> None:
    """Memory that ran out says nothing about the code."""
    left = [error]

    def backend(graph: Any, _inputs: list[Any]) -> Any:
        def run(*given: Any) -> Any:
            if left:
                raise left.pop()
            return change(1, lambda x: x * 2)(graph, [])(*given)

        return run

    compiler(backend)
    run, given = Compiled(compute), give()
    with pytest.raises(type(error)):
        run(Layer(), *given)
    assert run.is_active
    assert equal(run(Layer(), *given), compute(Layer(), *given))
    assert not run.is_active


def test_a_graph_is_compared_with_the_first_result_that_is_finite(
    compiler: Callable[..., None],
) -> None:
    """Where the plain function's is not, there is nothing to compare."""
    compiler(change(1, lambda x: x * 2))
    run, (x, y, count) = Compiled(compute), give()
    assert run(Layer(), x * torch.nan, y, count)[0].isnan().any()
    assert run.is_active
    assert equal(run(Layer(), x, y, count), compute(Layer(), x, y, count))
    assert not run.is_active


def test_results_that_are_equal_agree_however_much_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled, "AGREEMENT", 0.0)
    run, given = Compiled(compute), give()
    assert equal(run(Layer(), *given), compute(Layer(), *given))
    assert run.is_active


@pytest.mark.parametrize("size", [1e-9, 1e-3, 1.0, 1e9])
def test_a_difference_is_relative_to_what_is_expected(size: float) -> None:
    expected = torch.tensor([3.0, 4.0]) * size
    found = torch.tensor([3.0, 4.5]) * size
    assert measure_difference(found, expected) == pytest.approx(0.1)
    assert measure_difference(expected, expected) == 0
    assert measure_difference(expected * torch.nan, expected) != 0


def test_nothing_differs_from_nothing_and_all_else_does() -> None:
    nothing = torch.zeros(2)
    assert measure_difference(nothing, nothing) == 0
    assert measure_difference(nothing + 1e-20, nothing) > 1


def test_a_number_that_is_no_whole_one_is_no_input_of_the_graph(
    compiler: Callable[..., None],
) -> None:
    """As a norm's epsilon never changes: as a variable it would be compiled twice."""
    inputs: list[int] = []

    def keep(graph: Any, given: list[Any]) -> Any:
        inputs.append(sum(not isinstance(each, torch.SymInt) for each in given))
        return graph.forward

    compiler(keep)
    run = Compiled(lambda x, factor: (x * factor,))
    for size in (5, 7, 9):
        x = torch.rand(1, size, 4)
        assert torch.equal(run(x, 0.3)[0], x * 0.3)
    assert inputs == [1]
