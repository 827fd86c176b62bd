"""A published model that speaks, of random weights: two repositories, as the real one has."""

import json
import string
import warnings
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import AddedToken, Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from worker.families.orpheus.models import TokenIds
from worlds.snac_shape import PUBLISHED_SNAC

CHARACTERS: Final = sorted(string.printable)
FIRST: Final = len(CHARACTERS) + 12
IDS: Final = TokenIds(
    first=FIRST,
    codes=32,
    stop=FIRST - 8,
    before=(FIRST - 7, FIRST - 12),
    after=(FIRST - 11, FIRST - 6, FIRST - 5, FIRST - 9),
)
CODEC: Final[dict[str, Any]] = {
    **PUBLISHED_SNAC,
    "encoder_dim": 8,
    "decoder_dim": 64,
    "codebook_size": 32,
}
ABOUT: Final[dict[str, Any]] = {
    "sample_rate": 24_000,
    "voices": ["high", "low"],
    "tags": ["laugh"],
    "codebook": IDS.codes,
    "first_audio": IDS.first,
    "stop": IDS.stop,
    "prompt": {"before": list(IDS.before), "after": list(IDS.after)},
    "passage": 40,
    "spare": 40,
    "slowest": 0.25,
}


def make_snac(**changes: Any) -> Any:
    """Return the snac package's own model with random weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses torch.jit.script
        from snac import SNAC  # noqa: PLC0415 - where its warning is ignored

        torch.manual_seed(5)
        model = SNAC(**{**CODEC, **changes}).eval()
    for module in model.modules():
        if hasattr(module, "alpha"):
            module.alpha.data.uniform_(0.5, 2)
    return model


def make_language(*, is_tied: bool = True) -> Any:
    """Return a small Llama with random weights; they end speech after some frames."""
    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=IDS.end + 1,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=4096,
            tie_word_embeddings=is_tied,
            initializer_range=0.2,
        )
    ).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        model.lm_head.weight[IDS.stop] = torch.randn(64) * 0.36
    return model


def make_tokenizer() -> Any:
    """Return a tokenizer of single characters, with special tokens under the published names."""
    known = {character: number for number, character in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.BPE(vocab=known, merges=[], unk_token="?"))
    custom = [f"<custom_token_{number}>" for number in range(10)]
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False) for name in ("<begin>", "<end>", *custom)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def publish(folder: Path, *, is_tied: bool = True, about: dict[str, Any] | None = None) -> Path:
    """Write both repositories below a folder, and return that of the language model.

    `about` replaces entries of its worker.json.
    """
    language, codec = folder / "talker", folder / "snac"
    codec.mkdir(parents=True)
    model = make_language(is_tied=is_tied).to(torch.bfloat16)
    model.save_pretrained(language)
    make_tokenizer().save_pretrained(language)
    (language / "worker.json").write_text(json.dumps({**ABOUT, **(about or {})}))
    (codec / "config.json").write_text(json.dumps(CODEC))
    torch.save(make_snac().state_dict(), codec / "pytorch_model.bin")
    return language
