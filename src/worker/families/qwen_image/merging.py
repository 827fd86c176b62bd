"""Lightning's LoRAs without side products on a GPU: in the weights, or added as those unpack."""

from typing import Final

from worker import log
from worker.bundle.open import FusedAdapter
from worker.engine.combine import combine_nf4, count_merged_bytes, merge, try_nf4
from worker.engine.lora import Adapters
from worker.families.qwen_image.components import Components

# Modules of the image stream, thousands of tokens long. The text's few hundred are multiplied with
# packed weights, which one combined weight would unpack.
IMAGE_MODULES: Final = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "img_mlp.net.0.proj",
    "img_mlp.net.2",
)


def merge_adapters(parts: Components, spare: int) -> None:
    """Merge each adapter that fits into `spare` bytes; of 4-bit weights, combine every one.

    A merged adapter is a second copy of the bf16 weights that it reaches. The kernel that combines
    4-bit weights is tried first. What has no room or fails stays beside the weights, and the log
    says so.
    """
    adapters = parts.adapters
    if isinstance(adapters, FusedAdapter):
        return
    for name in adapters.attached:
        needed = count_merged_bytes(adapters, name)
        if needed > spare:
            log.get().info("adapter beside the weights: no room", adapter=name, bytes=needed)
        elif needed:
            merge(adapters, name)
            spare -= needed
            log.get().info("adapter merged", adapter=name, bytes=needed)
    _combine_packed(parts, adapters)


def _combine_packed(parts: Components, adapters: Adapters) -> None:
    packed = [
        (name, wrapped)
        for name in adapters.attached
        for module, wrapped in adapters.find_wrapped(name).items()
        if module.endswith(IMAGE_MODULES) and type(wrapped.base).__name__ == "Linear4bit"
    ]
    if not packed:
        return
    if reason := try_nf4(parts.device):
        log.get().warning("adapters beside the weights: the kernel fails", reason=reason)
        return
    for name, wrapped in packed:
        wrapped.combine(name, combine_nf4)
