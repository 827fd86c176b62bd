"""The VAE on one frame against diffusers' on a video of one: CPU time, in one run.

    python -m bench.one_frame

Published configuration, random weights, bf16, one thread; the median of three. The results are
compared too: some processors add up in another order in two dimensions than in three.
"""

import statistics
import time
from collections.abc import Callable

import torch
from diffusers import AutoencoderKLQwenImage
from torch import Tensor

from worker.families.qwen_image.frame_vae import FrameVae
from worker.families.qwen_image.published import PublishedVae

SIDE = 256
RUNS = 3


def measure(run: Callable[[Tensor], Tensor], given: Tensor) -> float:
    """Return the median seconds of a run, after one that is not counted."""
    taken = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        run(given)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


@torch.inference_mode()
def main() -> None:
    """Print the seconds of both, their ratio and how far the results are apart."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    stock = AutoencoderKLQwenImage().eval()
    ours, theirs = FrameVae(stock), PublishedVae(stock)
    pixels = torch.rand(1, 3, SIDE, SIDE) * 2 - 1
    latents = torch.randn(1, 16, SIDE // 8, SIDE // 8)
    for name, given in (("encode", pixels), ("decode", latents)):
        mine, published = getattr(ours, name), getattr(theirs, name)
        apart = (mine(given) - published(given)).abs().max().item()
        before, after = measure(published, given), measure(mine, given)
        print(
            f"{name} {SIDE}x{SIDE}: {before:.2f} s -> {after:.2f} s, {before / after:.1f} times;"
            f" {f'at most {apart:.1g} apart' if apart else 'equal to the last bit'}"
        )


if __name__ == "__main__":
    main()
