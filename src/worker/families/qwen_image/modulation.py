"""What each block is modulated by: its own weights, or rows computed once for every timestep."""

import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch.nn import functional

from worker.engine.cache import TensorCache
from worker.engine.guests import Guests
from worker.engine.lora import Fixed
from worker.errors import Internal
from worker.families.qwen_image.working import KEPT_STEPS

STREAMS: Final = ("img_mod", "txt_mod")
# A tensor of a block's modulation layer: the block, the stream, "weight" or "bias".
MODULATION: Final = re.compile(
    rf"transformer_blocks\.(\d+)\.({'|'.join(STREAMS)})\.1\.(weight|bias)"
)
# The modules that make temb of the timestep: rows are computed from it, so they are fixed with it.
TIME_EMBEDDING: Final = "time_text_embed."


def round_timesteps(timesteps: torch.Tensor) -> torch.Tensor:
    """Return what the transformer sees of `timesteps` (float32, 0..1000): bf16(bf16(t) / 1000).

    Stock pipelines cast t to the latents' dtype before dividing and the transformer casts again.
    The division runs on the CPU and the result is there: CUDA multiplies by 1/1000 instead, which
    rounds some values to the neighbouring one.
    """
    return timesteps.detach().to("cpu", torch.float32).to(torch.bfloat16) / 1000


class Modulation(Protocol):
    """How the denoising loop chooses the step that the blocks compute."""

    @property
    def outside(self) -> Mapping[str, Guests]:
        """Return the layers whose results are in memory, and the LoRAs of jobs that reach them."""

    def load(self, timesteps: torch.Tensor) -> None:
        """Prepare a loop over `timesteps` (float32 [steps], 0..1000), or raise Internal."""

    def select(self, step: int) -> None:
        """Make the next forwards those of `timesteps[step]`."""


class WeightModulation:
    """Leave the modulation to the blocks' own weights: any dtype, any timestep."""

    def __init__(self) -> None:
        self.outside: Mapping[str, Guests] = {}

    def load(self, timesteps: torch.Tensor) -> None:
        """Do nothing: the weights serve every timestep."""

    def select(self, step: int) -> None:
        """Do nothing: the blocks compute their modulation from the timestep embedding."""


def read_nothing(_index: torch.Tensor) -> None:
    """Read nothing ahead: the rows are in memory."""


@dataclass(frozen=True, slots=True)
class RowPart:
    """Some blocks' modulation for every timestep, usually mapped from a file.

    `rows` bf16 [T, n, 6 * dim]; `slots` int64 [n] says whose: stream * blocks + block, the image
    stream being 0. `zero` bf16 [m, 6 * dim] and `zero_blocks` int64 [m] are the image rows of t = 0
    for a zero_cond_t transformer, else m is 0. All on the CPU. `ahead` gets the
    indices of the rows that will be read, so that the disk can be asked for all of them at once.
    """

    rows: torch.Tensor
    slots: torch.Tensor
    zero: torch.Tensor
    zero_blocks: torch.Tensor
    ahead: Callable[[torch.Tensor], None] = read_nothing


@dataclass(frozen=True, slots=True)
class RowTable:
    """The modulation of every block; `keys` bf16 [T] are what the transformer sees, ascending."""

    keys: torch.Tensor
    parts: tuple[RowPart, ...]

    @property
    def width(self) -> int:
        """Return the length of a row, 6 * dim."""
        return int(self.parts[0].rows.shape[2])

    def find(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the table's index (int64 [steps]) of each of `timesteps` (float32, 0..1000).

        Raises Internal naming every timestep without a row of exactly its value.
        """
        values = round_timesteps(timesteps)
        index = torch.searchsorted(self.keys.float(), values.float()).clamp_(max=len(self.keys) - 1)
        missing = self.keys[index] != values
        if bool(missing.any()):
            raise Internal(
                f"no modulation row for timesteps {timesteps.cpu()[missing].tolist()}: "
                "prepare the model again for this schedule"
            )
        return index

    def check(self, blocks: int, width: int, *, zero: bool) -> None:
        """Raise Internal unless every stream of every block has its rows exactly once."""
        slots = torch.cat([part.slots for part in self.parts]).sort().values
        zeros = torch.cat([part.zero_blocks for part in self.parts]).sort().values
        rows = [tuple(part.rows.shape[::2]) for part in self.parts]
        if (
            slots.tolist() != list(range(len(STREAMS) * blocks))
            or zeros.tolist() != (list(range(blocks)) if zero else [])
            or any(shape != (len(self.keys), width) for shape in rows)
        ):
            raise Internal("the modulation rows are not those of this transformer")

    def gather(self, index: torch.Tensor, blocks: int, device: torch.device) -> torch.Tensor:
        """Copy the rows at `index` [steps] to `device`: bf16 [steps, 2, blocks, 6 * dim]."""
        shape = (len(index), len(STREAMS) * blocks, self.width)
        rows = torch.empty(shape, dtype=self.keys.dtype, device=device)
        for part in self.parts:
            part.ahead(index)
        for part in self.parts:
            rows[:, part.slots.to(device)] = part.rows.index_select(0, index).to(device)
        return rows.view(len(index), len(STREAMS), blocks, self.width)


class _Rows(torch.nn.Module):
    """Stand in for a block's modulation layer and return the selected rows.

    `current` [pair, 6 * dim] is a view that the selection writes to in place; its address never
    changes, so a compiled block or a captured graph reads the rows of the step. It is not a
    buffer: moving the module would silently detach it from the selection.
    """

    def __init__(self, current: torch.Tensor) -> None:
        super().__init__()
        self.current = current

    def forward(self, temb: torch.Tensor) -> torch.Tensor:
        """Return the rows for `temb` [pair * B, dim]: t for each of B, then 0 if a pair."""
        pair, width = self.current.shape
        batch = temb.shape[0] // pair
        if batch == 1:
            return self.current
        return self.current.unsqueeze(1).expand(pair, batch, width).reshape(-1, width)


class RowModulation:
    """Replace `img_mod` and `txt_mod` of every block by rows looked up by the exact timestep.

    They depend on the timestep alone (transformer_qwenimage.py: temb = time_text_embed(timestep))
    and hold a third of the transformer's parameters. `transformer` may be on meta; the rows of one
    loop live on `device`. What LoRAs of jobs add to them is computed for the timesteps of a loop,
    from the transformer's time embedding.
    """

    def __init__(self, transformer: Any, table: RowTable, device: torch.device) -> None:
        blocks = transformer.transformer_blocks
        zero = bool(transformer.zero_cond_t)
        table.check(len(blocks), 6 * transformer.inner_dim, zero=zero)
        self._transformer = transformer
        self._table = table
        self._device = device
        self._loaded_key: tuple[Hashable, ...] = ()
        self._loaded: torch.Tensor | None = None
        step_bytes = 2 * len(blocks) * table.width
        self._kept = TensorCache(KEPT_STEPS * len(STREAMS) * step_bytes)
        self._kept_adapted = TensorCache(KEPT_STEPS * (len(STREAMS) + zero) * step_bytes)
        dtype, width = table.keys.dtype, table.width
        self._image = torch.empty(len(blocks), 1 + zero, width, dtype=dtype, device=device)
        self._text = torch.empty(len(blocks), 1, width, dtype=dtype, device=device)
        for part in table.parts:
            if len(part.zero):
                self._image[part.zero_blocks.to(device), 1] = part.zero.to(device)
        self._zero = self._image[:, 1:].clone()
        self._forget()
        for block, image, text in zip(blocks, self._image, self._text, strict=True):
            block.img_mod = _Rows(image)
            block.txt_mod = _Rows(text)
        self._guests = [[Guests(transformer.inner_dim, width) for _ in blocks] for _ in STREAMS]

    @property
    def outside(self) -> Mapping[str, Guests]:
        """Return the layers that the rows replace, and the LoRAs of jobs that reach them."""
        return {
            _name_layer(block, stream): guests
            for stream, row in zip(STREAMS, self._guests, strict=True)
            for block, guests in enumerate(row)
        }

    @property
    def fixed(self) -> Fixed:
        """Return what a LoRA in the modules cannot change: the rows were computed without it."""
        what = "the modulation, which this bundle holds as rows"
        return Fixed(frozenset(self.outside), (TIME_EMBEDDING,), what)

    def _forget(self) -> None:
        # A forward without a selection gives NaN, which is caught, never an earlier step's rows.
        self._image[:, 0].fill_(torch.nan)
        self._text.fill_(torch.nan)

    def load(self, timesteps: torch.Tensor) -> None:
        """Copy the rows of `timesteps` (float32 [steps], 0..1000) to the device.

        Raises Internal naming every timestep without a row of exactly its value. The rows of the
        last schedule stay loaded, and so do Lightning's: the same at every size, they are read once
        whatever comes between, and computed once for a job's LoRAs.
        """
        self._forget()
        self._image[:, 1:].copy_(self._zero)
        found = self._table.find(timesteps)
        used = tuple(guests.key for row in self._guests for guests in row)
        needed = tuple(found.tolist()), used
        if self._loaded is not None and needed == self._loaded_key:
            return
        self._loaded = None
        cache, compute = (
            (self._kept_adapted, lambda: self._adapt(found))
            if any(used)
            else (self._kept, lambda: self._gather(found))
        )
        self._loaded = cache.get(needed, compute)
        self._loaded_key = needed

    def _gather(self, found: torch.Tensor) -> torch.Tensor:
        return self._table.gather(found, len(self._image), self._device)

    @torch.inference_mode()
    def _adapt(self, found: torch.Tensor) -> torch.Tensor:
        """Return the rows at `found` with the LoRAs in use: [steps, 2 or 3, blocks, 6 * dim].

        The third are the image rows of t = 0. In the shapes and the order in which a LoRA next to
        the layers' weights would be added, so that they are equal to the last bit.
        """
        rows = self._gather(found)
        if self._zero.shape[1]:
            rows = torch.cat([rows, self._zero[:, 0].expand(len(rows), 1, -1, -1)], dim=1)
        activated = compute_activated(self._transformer, self._table.keys[found].to(self._device))
        for step, temb in enumerate(activated):
            for block, guests in enumerate(self._guests[0]):
                if guests.used:
                    rows[step, ::2, block] = guests.add_to(rows[step, ::2, block], temb)
            for block, guests in enumerate(self._guests[1]):
                if guests.used:
                    rows[step, 1:2, block] = guests.add_to(rows[step, 1:2, block], temb[:1])
        return rows

    def select(self, step: int) -> None:
        """Make the next forwards those of `timesteps[step]` of the last `load`."""
        if self._loaded is None:
            raise Internal("select before load: no modulation rows on the device")
        self._image[:, 0].copy_(self._loaded[step, 0])
        self._text[:, 0].copy_(self._loaded[step, 1])
        if self._loaded.shape[1] > len(STREAMS):
            self._image[:, 1].copy_(self._loaded[step, 2])


def _name_layer(block: int, stream: str) -> str:
    return f"transformer_blocks.{block}.{stream}.1"


def compute_activated(transformer: Any, keys: torch.Tensor) -> list[torch.Tensor]:
    """Return silu(temb) of every key (bf16 [T]), which modulation layers multiply: [1 or 2, dim].

    Each is computed alone, as a forward at batch 1 does, since GEMMs of other row counts round
    differently; with zero_cond_t it is the pair [t, 0].
    """
    like = torch.empty(0, dtype=keys.dtype)
    pairs = (torch.stack([key, key * 0]) if transformer.zero_cond_t else key[None] for key in keys)
    return [functional.silu(transformer.time_text_embed(pair, like)) for pair in pairs]
