"""The configuration of SNAC at 24 kHz as its maker publishes it, from which smaller ones differ."""

from typing import Any, Final

# hubertsiuzdak/snac_24khz, config.json
PUBLISHED_SNAC: Final[dict[str, Any]] = {
    "sampling_rate": 24_000,
    "encoder_dim": 48,
    "encoder_rates": [2, 4, 8, 8],
    "decoder_dim": 1024,
    "decoder_rates": [8, 8, 4, 2],
    "attn_window_size": None,
    "codebook_size": 4096,
    "codebook_dim": 8,
    "vq_strides": [4, 2, 1],
    "noise": True,
    "depthwise": True,
}
