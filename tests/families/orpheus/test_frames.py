"""Our loop writes what transformers' `generate` writes with every other token masked."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from worker.engine import key_values
from worker.engine.token_choice import Choosing
from worker.families.orpheus.frames import Stage, Written
from worker.families.orpheus.language import Language
from worker.families.orpheus.models import SLOTS, TokenIds

IDS = TokenIds(first=40, codes=32, stop=33, before=(34, 35), after=(36, 37))
PROMPT = [34, 35, 5, 6, 7, 36, 37]
LIVELY = Choosing(0.9, 0.9, 1.1)
# Prompts of several lengths, each with a seed.
THREE = [(PROMPT, 1), ([34, 35, 9, 36, 37], 2), ([34, 35, *range(2, 30), 36, 37], 3)]


def make_stock(*, is_tied: bool, seed: int = 3) -> Any:
    """Return a small Llama of random weights, in transformers' own class."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=IDS.end + 1,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=4096,
        tie_word_embeddings=is_tied,
        initializer_range=0.4,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 64,
        },
    )
    return LlamaForCausalLM(config).eval()


def make_ours(stock: Any) -> tuple[Language, Tensor]:
    """Return our model with the weights of the stock one, and its embedding of text."""
    table = stock.model.embed_tokens.weight.detach()
    head = stock.lm_head.weight.detach()
    copied = LlamaForCausalLM(stock.config)
    copied.load_state_dict(stock.state_dict())
    ours = Language(copied.eval().model, IDS, is_tied=False)
    audio = slice(IDS.first, IDS.end)
    ours.codes = nn.Parameter(table[audio].clone())
    ours.head = nn.Parameter(head[audio].clone())
    ours.stop = nn.Parameter(head[IDS.stop : IDS.stop + 1].clone())
    return ours, table[: IDS.first].clone()


class Legal(LogitsProcessor):  # type: ignore[misc] # transformers ships no types
    """Leave only the tokens that a place of a frame may have."""

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores with all others at minus infinity."""
        slot = (ids.shape[1] - len(PROMPT)) % SLOTS
        first = IDS.first + slot * IDS.codes
        masked = torch.full_like(scores, -torch.inf)
        masked[:, first : first + IDS.codes] = scores[:, first : first + IDS.codes]
        if slot == 0:
            masked[:, IDS.stop] = scores[:, IDS.stop]
        return masked


def write(
    model: tuple[Language, Tensor],
    how: Choosing,
    *,
    seed: int = 1,
    most: int = 20,
    prompt: Sequence[int] = PROMPT,
) -> Written:
    (written,) = write_all(model, how, [(prompt, seed)], most=most)
    return written


def write_all(
    model: tuple[Language, Tensor],
    how: Choosing,
    begun: Sequence[tuple[Sequence[int], int]],
    *,
    most: int = 20,
) -> list[Written]:
    """Return what is written of prompts with seeds, all at once."""
    stage = Stage(*model, rows=len(begun), room=40 + SLOTS * most)
    stage.choose_by(how)
    written = [Written() for _ in begun]
    for row, (prompt, seed) in enumerate(begun):
        stage.begin(row, prompt, seed)
    while not all(one.is_over(most) for one in written):
        for row, frame in stage.step().items():
            written[row].add(frame, stage.stop)
            if written[row].is_over(most):
                stage.end(row)
    return written


def write_three_alone() -> list[list[list[int]]]:
    model = make_ours(make_stock(is_tied=True))
    return [write(model, LIVELY, prompt=prompt, seed=seed).codes for prompt, seed in THREE]


def flatten(frames: Sequence[Sequence[int]]) -> list[int]:
    return [
        IDS.first + slot * IDS.codes + code for frame in frames for slot, code in enumerate(frame)
    ]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("is_tied", [True, False])
def test_greedy_it_is_generate_with_a_mask(is_tied: bool, penalty: float) -> None:
    stock = make_stock(is_tied=is_tied)
    written = stock.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
        max_new_tokens=20 * SLOTS,
        do_sample=False,
        repetition_penalty=penalty,
        eos_token_id=IDS.stop,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([Legal()]),
    )[0, len(PROMPT) :].tolist()
    frames = write(make_ours(stock), Choosing(0, penalty=penalty))
    ours = flatten(frames.codes) + ([IDS.stop] if frames.is_ended else [])
    assert len(ours) > 3 * SLOTS
    assert ours == written[: len(ours)]
    assert frames.is_loop or len(ours) == len(written)


def test_the_same_seed_writes_the_same_and_another_another() -> None:
    model = make_ours(make_stock(is_tied=True))
    how = Choosing(0.8, 0.9, 1.1)
    first, again, other = (write(model, how, seed=seed).codes for seed in (1, 1, 2))
    assert first == again != other


def test_every_token_is_a_code_of_its_slot() -> None:
    frames = write(make_ours(make_stock(is_tied=True)), Choosing(1.5, penalty=1.1))
    assert all(0 <= code < IDS.codes for frame in frames.codes for code in frame)
    assert all(len(frame) == SLOTS for frame in frames.codes)


def test_a_limit_ends_a_model_that_never_stops() -> None:
    model = make_ours(make_stock(is_tied=True))
    with torch.no_grad():
        model[0].stop.zero_()
    frames = write(model, Choosing(1.5), most=5)
    assert (len(frames.codes), frames.is_ended) == (5, False)


def test_a_stop_ends_without_a_frame_of_its_own() -> None:
    frames = Written()
    frames.add([3, 1, 1, 1, 1, 1, 1], stop=32)
    frames.add([32, 9, 9, 9, 9, 9, 9], stop=32)
    assert frames.codes == [[3, 1, 1, 1, 1, 1, 1]]
    assert frames.is_ended


def test_equal_first_codes_are_a_loop_when_there_are_twelve_in_a_row() -> None:
    frames = Written()
    for number in range(1, 13):
        frames.add([5, number, 0, 0, 0, 0, 0], stop=32)
        assert frames.is_loop == (number == 12)
    frames.add([6, 0, 0, 0, 0, 0, 0], stop=32)
    assert not frames.is_loop


def test_equal_rows_are_kept_once() -> None:
    tied, _ = make_ours(make_stock(is_tied=True))
    assert tied.tie()
    assert tied.is_tied
    other, _ = make_ours(make_stock(is_tied=False))
    assert not other.tie()
    assert other.head is not None


@pytest.mark.parametrize("step", [key_values.READ_STEP, SLOTS])
def test_rows_of_one_stage_are_what_each_is_alone(
    monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Whatever the length of its prompt, when the others end, and how much is read at once."""
    alone_at_once = write_three_alone()
    monkeypatch.setattr(key_values, "READ_STEP", step)
    model = make_ours(make_stock(is_tied=True))
    assert write_three_alone() == alone_at_once
    assert [one.codes for one in write_all(model, LIVELY, THREE)] == alone_at_once
    assert len({len(codes) for codes in alone_at_once}) > 1


def test_a_row_that_is_begun_again_forgets_what_was_there() -> None:
    model = make_ours(make_stock(is_tied=True))
    stage = Stage(*model, rows=1, room=200)
    stage.choose_by(Choosing(0.8, 0.9, 1.3))
    first = []
    for _ in range(2):
        stage.begin(0, PROMPT, 5)
        first.append([stage.step()[0] for _ in range(6)])
    assert first[0] == first[1]
    stage.end(0)
    assert stage.step() == {}


def test_a_row_that_has_ended_needs_no_more_room() -> None:
    """However many have: the others go on to the end of theirs."""
    model = make_ours(make_stock(is_tied=True))
    stage = Stage(*model, rows=3, room=300)
    for row in range(2):
        stage.begin(row, [5] * 250, 1)
    stage.begin(2, PROMPT, 1)
    stage.step()
    for row in range(2):
        stage.end(row)
    frames = [stage.step()[2] for _ in range(40)]
    assert all(code < IDS.codes for frame in frames for code in frame[1:])


def test_all_that_a_step_reads_and_writes_is_on_the_device_of_the_model() -> None:
    language, text = make_ours(make_stock(is_tied=False))
    stage = Stage(language.to("meta"), text, rows=2, room=200)
    for row in range(2):
        stage.begin(row, PROMPT, 1)
    stage._write(50)
    held = [one for value in vars(stage).values() for one in (value, *as_list(value))]
    tensors = [one for one in held if isinstance(one, Tensor) and one is not text]
    assert len(tensors) == 5 + SLOTS
    assert {one.device.type for one in tensors} == {"meta"}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def test_a_row_has_room_for_so_many_tokens_and_no_more() -> None:
    stage = Stage(*make_ours(make_stock(is_tied=True)), rows=1, room=200)
    assert stage.has_room(200)
    assert not stage.has_room(201)
