"""Operators by what they are on a device: views, products, makers of constants, waits."""

from typing import Final

# No kernel runs.
VIEWS: Final = frozenset(
    {
        *("view", "_unsafe_view", "_reshape_alias", "permute", "movedim", "transpose", "t"),
        *("expand", "slice", "select", "narrow", "diagonal", "unfold", "as_strided", "detach"),
        *("unsqueeze", "squeeze", "split", "split_with_sizes", "chunk", "unbind", "alias"),
        *("view_as_complex", "view_as_real", "real", "imag", "_conj", "set_", "resize_"),
        *("empty", "empty_like", "empty_strided", "empty_permuted", "lift_fresh"),
        *("new_empty", "new_empty_strided"),
    }
)
PRODUCTS: Final = frozenset(
    {"mm", "addmm", "bmm", "baddbmm", "convolution", "_int_mm", "_scaled_mm"}
)
FACTORIES: Final = frozenset(
    {
        *("arange", "ones", "ones_like", "new_ones", "zeros", "zeros_like", "new_zeros"),
        *("full", "full_like", "new_full"),
    }
)
# The values say how large the result is: the host waits for it.
SIZED_BY_VALUES: Final = frozenset(
    {"nonzero", "repeat_interleave", "_unique2", "unique_consecutive", "masked_select"}
)
# Composite in Python, one kernel on a GPU.
FUSED: Final = frozenset({"upsample_nearest2d", "_upsample_nearest_exact2d"})
INDEXED: Final = frozenset({"index", "index_put", "index_put_", "_unsafe_index"})
