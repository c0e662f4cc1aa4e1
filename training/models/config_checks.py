"""What the configurations of several models ask alike. Without torch: a mistake is said at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

__all__ = ["Size", "check_circle", "check_kernel"]

Size = Annotated[int, Field(ge=1)]  # units, filters, strides, ...


def check_kernel(kernel: int) -> None:
    """
    Raises:
        ValueError: it is even, and would shift and shrink what it should keep.
    """
    if kernel % 2 == 0:
        raise ValueError(f"kernel {kernel} is even: it has no middle")


def check_circle(kernel: int, dilations: Sequence[int], angles: int) -> None:
    """Of circular convolutions over `angles` samples, of which the first keeps every other.

    Raises:
        ValueError: the kernel is even, or a convolution reaches further than once around.
    """
    check_kernel(kernel)
    widest, places = max(dilations), angles // 2
    if widest * (kernel // 2) > places:
        raise ValueError(
            f"a kernel of {kernel} with dilation {widest} reaches more than once around the {places} places that "
            f"{angles} angles leave"
        )
