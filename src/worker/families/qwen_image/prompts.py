"""Prompts to embeddings: Qwen2.5-VL over a chat template, the user's text never a special token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from worker.families.qwen_image.working import MAX_TOKENS

# The templates that the published models were trained with (diffusers' pipelines have the same).
# Their first tokens, up to and including "user\n", are dropped from the embeddings.
DESCRIBE: Final = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial"
    " relationships of the objects and background:"
)
ALTER: Final = (
    "Describe the key features of the input image (color, shape, size, texture, objects,"
    " background), then explain how the user's text instruction should alter or modify the image."
    " Generate a new image that meets the user's requirements while maintaining consistency with"
    " the original input where appropriate."
)
TURN: Final = "user\n"
CPU: Final = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template: the system text, the tokens it costs, and what stands before a reference."""

    system: str
    dropped: int
    reference: str = ""


TEXT_TEMPLATE: Final = Template(DESCRIBE, dropped=34)
EDIT_TEMPLATE: Final = Template(ALTER, dropped=64)
EDIT_PLUS_TEMPLATE: Final = Template(ALTER, dropped=64, reference="Picture {}: ")


class PromptEncoder:
    """Tokenise and embed prompts on a device, with references where the template has them.

    The table of embeddings may stay on the CPU, which then has the tokens too.
    """

    def __init__(
        self,
        tokenizer: Any,
        processor: Any | None,
        text_encoder: Any,
        device: torch.device = CPU,
    ) -> None:
        self._tokenizer = tokenizer
        self._device = device
        self._processor = processor
        self._encoder = text_encoder
        self._image_pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")

    def _tokenise_plain(self, text: str) -> list[int]:
        """Tokenise text in which nothing is a special token."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids

    def is_cut(self, prompt: str, *, references: bool) -> bool:
        """Return whether a prompt is longer than the 1024 tokens that are used of it."""
        user, room = self._tokenise_user(prompt, "" if references and self._processor else TURN)
        return len(user) > room

    def count_tokens(self, prompt: str, template: Template, references: int) -> int:
        """Return the length of a prompt's embeddings, without the tokens of its references."""
        return len(self.tokenise(prompt, template, [0] * references)) - template.dropped

    def _tokenise_user(self, prompt: str, before: str) -> tuple[list[int], int]:
        """Return the tokens of a prompt with what stands before it, and how many of them fit.

        Both are tokenised in one piece: two line ends that meet may become one token.
        """
        return self._tokenise_plain(before + prompt), MAX_TOKENS + len(self._tokenise_plain(before))

    def tokenise(self, prompt: str, template: Template, image_tokens: Sequence[int]) -> list[int]:
        """Return the token ids of a complete prompt.

        `image_tokens` are the numbers of tokens of the references. The text between two special
        tokens is tokenised in one piece, so that a prompt without special tokens in it gives what
        the stock template gives.
        """
        special = self._tokenizer.convert_tokens_to_ids
        ids = [
            special("<|im_start|>"),
            *self._tokenise_plain("system\n" + template.system),
            special("<|im_end|>"),
            *self._tokenise_plain("\n"),
            special("<|im_start|>"),
        ]
        text = TURN
        for number, count in enumerate(image_tokens, 1):
            ids += self._tokenise_plain(text + template.reference.format(number))
            ids += [special("<|vision_start|>"), *[self._image_pad] * count]
            ids += [special("<|vision_end|>")]
            text = ""
        user, room = self._tokenise_user(prompt, text)
        ids += [*user[:room], special("<|im_end|>"), *self._tokenise_plain("\n")]
        return [*ids, special("<|im_start|>"), *self._tokenise_plain("assistant\n")]

    @torch.inference_mode()
    def encode(
        self, prompt: str, template: Template, references: Sequence[Image.Image] = ()
    ) -> Tensor:
        """Return the embeddings [1, tokens, dim] of one prompt with its references.

        `references` are RGB, already at the size at which the encoder sees them.
        """
        device = self._device
        vision: dict[str, Tensor] = {}
        counts: list[int] = []
        grids: Tensor | None = None
        if references and self._processor is not None:
            images = self._processor.image_processor(images=list(references), return_tensors="pt")
            merge = self._processor.image_processor.merge_size
            grids = images["image_grid_thw"]
            counts = [int(grid.prod()) // merge // merge for grid in grids]
            vision = self._place_vision(images["pixel_values"], grids, device)
        ids = torch.tensor([self.tokenise(prompt, template, counts)])
        if grids is not None:
            vision["position_ids"] = self._compute_positions(ids, grids).to(
                device, non_blocking=True
            )
        # `.model` is the encoder without lm_head, whose logits over every token nothing reads.
        # Without a mask attention is causal and picks its own kernel; one of ones would be added.
        table = self._encoder.get_input_embeddings()
        output = self._encoder.model(
            input_ids=ids.to(device, non_blocking=True),
            inputs_embeds=table(ids.to(table.weight.device, non_blocking=True)),
            use_cache=False,
            **vision,
        )
        embeds: Tensor = output.last_hidden_state[:, template.dropped :]
        return embeds.clone()

    def _compute_positions(self, ids: Tensor, grids: Tensor) -> Tensor:
        """Return the positions [3, batch, tokens] of a prompt with references, all on the CPU."""
        # diffusers 0.42.1 leaves the kinds out; transformers 5 then silently gives image tokens
        # the positions of text (diffusers #14194)
        kinds = (ids == self._image_pad).int()
        positions: Tensor = self._encoder.model.get_rope_index(
            ids, image_grid_thw=grids, mm_token_type_ids=kinds
        )[0]
        return positions

    def _place_vision(
        self, pixels: Tensor, grids: Tensor, device: torch.device
    ) -> dict[str, Tensor]:
        """Return what the vision tower takes: sizes on the CPU, where its loops read them.

        On the device each of its layers would wait for them. What it computes from them and uses
        on the device is computed here, by the same functions.
        """
        from transformers import vision_utils  # noqa: PLC0415 - takes seconds to import

        tower = self._encoder.model.visual
        windows, ends = vision_utils.get_vision_window_index(
            grids,
            spatial_merge_size=tower.spatial_merge_size,
            window_size=tower.window_size,
            patch_size=tower.patch_size,
        )
        positions = vision_utils.get_vision_position_ids(grids, tower.spatial_merge_size)
        return {
            "pixel_values": pixels.to(device, non_blocking=True),
            "image_grid_thw": grids,
            "image_position_ids": positions.to(device, non_blocking=True),
            "image_window_index": windows.to(device, non_blocking=True),
            "image_cu_window_seqlens": ends,
        }
