"""Prompts to embeddings: hidden states of a language model over a chat template, padded."""

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from worker.families.flux2.modules import QUARTERS, find_language_model
from worker.families.flux2.working import TOKENS

CPU: Final = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat with one turn: what comes before and after the user's text.

    `before` and `after` may contain special tokens; `lead` is plain and tokenised in one piece with
    the user's text, in which nothing is a special token. `system` is the message of the system, ""
    without one.
    """

    before: str
    lead: str
    after: str
    system: str = ""

    def apply(self, tokenizer: Any, prompt: str) -> list[int]:
        """Return the tokens that a tokenizer's own chat template gives; raises what that raises."""
        system = {"role": "system", "content": [{"type": "text", "text": self.system}]}
        user = {"role": "user", "content": [{"type": "text", "text": prompt}]}
        given: Any = [system, user] if self.system else [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(
            given,
            tokenize=False,
            add_generation_prompt=not self.system,
            enable_thinking=False,
        )
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


# Qwen3's own template for one turn of a user, with thinking turned off.
KLEIN_TEMPLATE: Final = ChatTemplate(
    "<|im_start|>", "user\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
# The message that the publisher trained dev with (SYSTEM_MESSAGE of diffusers' Flux2Pipeline).
SYSTEM: Final = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on"
    " object relationships, object\nattribution and actions without speculation."
)
# Mistral's own template for a message of the system and one turn of a user.
DEV_TEMPLATE: Final = ChatTemplate(
    f"<s>[SYSTEM_PROMPT]{SYSTEM}[/SYSTEM_PROMPT][INST]", "", "[/INST]", SYSTEM
)


class TextEncoder:
    """Tokenise and embed prompts on a device.

    The table of embeddings may stay on the CPU, which then has the tokens too.
    """

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        template: ChatTemplate,
        device: torch.device = CPU,
    ) -> None:
        self._device = device
        self._tokenizer = tokenizer
        self._encoder = text_encoder
        self._template = template

    def _tokenise(self, text: str, *, plain: bool = False) -> list[int]:
        """Tokenise text, in which nothing is a special token when it is plain."""
        ids: list[int] = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=plain
        )["input_ids"]
        return ids

    def _tokenise_user(self, prompt: str) -> tuple[list[int], int]:
        """Return the tokens of a prompt with what leads to it, and how many of them fit."""
        around = [self._tokenise(self._template.before), self._tokenise(self._template.after)]
        user = self._tokenise(self._template.lead + prompt, plain=True)
        return user, TOKENS - sum(map(len, around))

    def count_used(self, prompt: str) -> int | None:
        """Return how many tokens of a prompt are used where it is too long, else None."""
        user, room = self._tokenise_user(prompt)
        return room - len(self._tokenise(self._template.lead)) if len(user) > room else None

    def tokenise(self, prompt: str) -> list[int]:
        """Return the token ids of a complete prompt, without padding, at most 512.

        The user's text is cut where it is too long, never what follows it: the stock pipelines cut
        that off.
        """
        user, room = self._tokenise_user(prompt)
        before, after = self._template.before, self._template.after
        return [*self._tokenise(before), *user[:room], *self._tokenise(after)]

    @torch.inference_mode()
    def encode(self, prompt: str) -> Tensor:
        """Return the embeddings [1, 512, dim] of one prompt.

        They are three hidden states of each token, next to each other.
        """
        ids = self.tokenise(prompt)
        missing = TOKENS - len(ids)
        padding, mask = [self._tokenizer.pad_token_id] * missing, [1] * len(ids)
        if self._tokenizer.padding_side == "left":
            ids, mask = [*padding, *ids], [*[0] * missing, *mask]
        else:
            ids, mask = [*ids, *padding], [*mask, *[0] * missing]
        model = find_language_model(self._encoder)
        table = model.embed_tokens
        placed = torch.tensor([ids]).to(table.weight.device, non_blocking=True)
        output = model(
            inputs_embeds=table(placed),
            attention_mask=torch.tensor([mask]).to(self._device, non_blocking=True),
            output_hidden_states=True,
            use_cache=False,
        )
        quarter = len(model.layers) // QUARTERS
        states = [output.hidden_states[quarter * n] for n in range(1, QUARTERS + 1)]
        stacked = torch.stack(states, dim=1)
        return stacked.permute(0, 2, 1, 3).flatten(2)
