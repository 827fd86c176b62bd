"""FLUX.2's schedule: how far the timesteps of a picture are shifted, by its size and steps."""

from typing import Final

# Of diffusers' `compute_empirical_mu`, which is the publisher's own.
MOST_TOKENS: Final = 4300
SLOPE_10, OFFSET_10 = 8.73809524e-05, 1.89833333
SLOPE_200, OFFSET_200 = 0.00016927, 0.45666666


def compute_mu(tokens: int, steps: int) -> float:
    """Return mu for a picture of `tokens` latent tokens in `steps`.

    It drops where a picture passes 4300 tokens, a little over 1024 x 1024: so the models were
    trained.
    """
    at_200 = SLOPE_200 * tokens + OFFSET_200
    if tokens > MOST_TOKENS:
        return float(at_200)
    at_10 = SLOPE_10 * tokens + OFFSET_10
    slope = (at_200 - at_10) / 190.0
    return float(slope * steps + (at_200 - 200.0 * slope))
