"""What the configurations of several models ask alike. Without torch: a mistake is said at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ModelSection", "Size", "check_circle", "check_kernel", "check_strides"]

Size = Annotated[int, Field(ge=1)]  # units, filters, strides, ...


class ModelSection(BaseModel):
    """What a configuration has under `model:`, or a part of it: no unknown keys, finite numbers, never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def check_kernel(kernel: int) -> None:
    """
    Raises:
        ValueError: it is even, and would shift and shrink what it should keep.
    """
    if kernel % 2 == 0:
        raise ValueError(f"kernel {kernel} is even: it has no middle")


def check_strides(filters: Sequence[int], strides: Sequence[int]) -> None:
    """
    Raises:
        ValueError: they are not one a convolution each.
    """
    if len(filters) != len(strides):
        raise ValueError(f"{len(filters)} filters but {len(strides)} strides")


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
