"""Convolutional bodies, dense heads and decoders shared by the models."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = [
    "ConvBody",
    "DenseDecoder",
    "LayeredDecoder",
    "Residual",
    "ResidualConv",
    "TransposedDecoder",
    "dense",
    "exactly",
    "folded",
    "he_initialise",
    "strided_sides",
]


_Network = TypeVar("_Network", bound=nn.Module)


def exactly(images: Tensor) -> AbstractContextManager[object]:
    """Coordinates need all their digits: no reduced precision in here."""
    device = images.device.type
    # Without active autocast do nothing: the exporter turns the switch into a nested graph.
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def he_initialise(module: nn.Module) -> None:
    """Draw every convolution and dense weight from He's normal distribution, biases 0 (He et al. 2015, eq. 10).

    PyTorch's default is too narrow for ReLU nets: here it left the posterior of v collapsed at its prior.
    The fan-in of a transposed convolution counts its stride: each output sees kernel^2 / stride^2 taps.
    """
    for layer in module.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            taps = math.prod(layer.kernel_size) / math.prod(layer.stride)
            nn.init.normal_(layer.weight, std=math.sqrt(2 / (layer.in_channels * taps)))
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def strided_sides(side: int, strides: Sequence[int]) -> list[int]:
    """Side lengths after each convolution of `strides` with "same" padding, the input's side first."""
    sides = [side]
    for stride in strides:
        sides.append(math.ceil(sides[-1] / stride))
    return sides


def dense(*widths: int, final_relu: bool = True) -> nn.Sequential:
    """Dense layers [N,widths[0]] -> [N,widths[-1]] with ReLU between them (and after the last, unless told not to)."""
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        layers.append(nn.Linear(inputs, outputs))
        if final_relu or index < len(widths) - 2:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """Convolution, batch norm, ReLU; where stride and width allow it the input is added before the ReLU."""

    def __init__(self, convolution: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm: nn.BatchNorm2d | nn.Identity = nn.BatchNorm2d(convolution.out_channels)
        self.skip = set(convolution.stride) == {1} and convolution.in_channels == convolution.out_channels

    def fold(self) -> None:
        """Make it one convolution and ReLU, in place and for evaluation alone: batch norm scales the kernel, and an
        input that is added is a 1 at its centre (RepVGG, Ding et al. 2021, sec. 3.3).
        """
        assert isinstance(self.norm, nn.BatchNorm2d)
        self.convolution, self.norm = fuse_conv_bn_eval(self.convolution, self.norm), nn.Identity()
        if self.skip:
            weight, self.skip = self.convolution.weight, False
            with torch.no_grad():
                weight += nn.init.dirac_(torch.empty_like(weight))


def folded(network: _Network) -> _Network:
    """A copy for evaluation alone whose residual convolutions are one convolution each.

    ONNX Runtime joins no sum to a convolution without padding, and crops the input in another layout than it convolves.
    """
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, Residual):
            module.fold()
    return network


class ResidualConv(Residual):
    """A residual convolution over an image.

    Shape: [N,C,H,W] -> [N,C',ceil(H/stride),ceil(W/stride)]; without `padding` H and W are kernel - 1 less there
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, padding: bool = True) -> None:
        lost = 0 if padding else kernel // 2
        super().__init__(nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2 - lost, bias=False))
        self.lost = lost

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.convolution(x))
        if not self.skip:
            return F.relu(y)
        if self.lost:
            x = x[:, :, self.lost : -self.lost, self.lost : -self.lost]
        return F.relu(x + y)


class ConvBody(nn.Module):
    """Convolutions over an image, then one feature vector: the shared trunk of f_inv and q.

    `norm` switches from plain convolution + ReLU (the paper's) to `ResidualConv`. The last `unpadded` convolutions see
    nothing outside their map, which shrinks: as many weights, fewer multiplications. `pool` is how the last map
    becomes a vector: "flatten" keeps it whole; "depthwise" gives every channel its own weights over the positions,
    which keeps the place of a feature at a fraction of the parameters.

    Shape: [N,channels,side,side] -> [N,out_features]

    Raises:
        ValueError: the convolutions without padding leave nothing of the map.
    """

    def __init__(
        self,
        channels: int,
        side: int,
        filters: Sequence[int],
        strides: Sequence[int],
        kernel: int,
        norm: bool = False,
        pool: Literal["flatten", "depthwise"] = "flatten",
        unpadded: int = 0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, last = channels, side  # the map's channels and side so far
        for index, (outputs, stride) in enumerate(zip(filters, strides, strict=True)):
            padded = index < len(filters) - unpadded
            last = math.ceil((last if padded else last - kernel + 1) / stride)
            if last < 1:
                raise ValueError(f"{unpadded} convolutions of {kernel} without padding leave nothing of {side} pixels")
            if norm:
                layers.append(ResidualConv(inputs, outputs, kernel, stride, padded))
            else:
                layers += [nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2 * padded), nn.ReLU()]
            inputs = outputs
        if pool == "depthwise":
            layers += [nn.Conv2d(inputs, inputs, last, groups=inputs, bias=False), nn.BatchNorm2d(inputs)]
            last = 1
        self.layers = nn.Sequential(*layers)
        self.out_features = inputs * last * last

    def forward(self, images: Tensor) -> Tensor:
        # The kernels for this layout are 1.3 to 1.6 times as fast on the CPU.
        features = self.layers(images.contiguous(memory_format=torch.channels_last))
        return torch.flatten(features, 1)


class TransposedDecoder(nn.Module):
    """Dense layers on (r, v), then transposed convolutions up to the image (EquiVAE, App. B).

    r and v each pass a dense layer; the concatenation passes one more and becomes a map of 128 units. Stride 2 except
    for the last layer; each output side is the one that the mirrored encoder had (28 <- 14 <- 7 <- 4 <- 2).

    Shape: [N,r_dim], [N,v_dim] -> [N,channels,side,side], before the likelihood's link function
    """

    def __init__(
        self, r_dim: int, v_dim: int, channels: int, side: int, filters: Sequence[int], hidden: int, units: int
    ) -> None:
        super().__init__()
        sides = strided_sides(side, [2] * (len(filters)))[::-1]
        self.start = sides[0]
        if units % self.start**2:
            raise ValueError(f"the decoder's {units} units do not fill a map of {self.start} x {self.start}")
        self.from_r = dense(r_dim, hidden)
        self.from_v = dense(v_dim, hidden)
        self.join = dense(2 * hidden, units)
        layers: list[nn.Module] = []
        inputs = units // self.start**2
        for outputs, (before, after) in zip(filters, zip(sides, sides[1:], strict=False), strict=True):
            extra = after - (2 * before - 1)
            layers += [nn.ConvTranspose2d(inputs, outputs, 5, 2, padding=2, output_padding=extra), nn.ReLU()]
            inputs = outputs
        layers.append(nn.ConvTranspose2d(inputs, channels, 5, 1, padding=2))
        self.layers = nn.Sequential(*layers)

    def forward(self, r: Tensor, v: Tensor) -> Tensor:
        units = self.join(torch.cat([self.from_r(r), self.from_v(v)], 1))
        start = units.unflatten(1, (-1, self.start, self.start))
        return self.layers(start.contiguous(memory_format=torch.channels_last))


class DenseDecoder(nn.Module):
    """Dense layers on one code or several, such as (r, v), straight to the pixels: at 28 x 28 a twentieth of the
    transposed convolutions' time.

    Shape: codes [N,...], together `code_dim` wide -> [N,channels,side,side], before the likelihood's link function
    """

    def __init__(self, code_dim: int, channels: int, side: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.shape = (channels, side, side)
        self.layers = dense(code_dim, *widths, channels * side * side, final_relu=False)

    def forward(self, *codes: Tensor) -> Tensor:
        return self.layers(torch.cat(codes, 1)).unflatten(1, self.shape)


class LayeredDecoder(nn.Module):
    """Strokes of one colour over a ground: both colours come from v alone, the shape of the strokes from r and v.

    A dense decoder of colour pictures spends all it has on the ground and leaves r unused. Here only the opacity of the
    strokes sees r, and whatever it says of the class need not be said by v.

    Shape: [N,r_dim], [N,v_dim] -> [N,channels,side,side], before the likelihood's link function
    """

    def __init__(
        self, r_dim: int, v_dim: int, channels: int, side: int, widths: Sequence[int], ground_widths: Sequence[int]
    ) -> None:
        super().__init__()
        self.opacity = DenseDecoder(r_dim + v_dim, 1, side, widths)
        self.ground = DenseDecoder(v_dim, channels, side, ground_widths)
        self.stroke = DenseDecoder(v_dim, channels, 1, ground_widths)

    def forward(self, r: Tensor, v: Tensor) -> Tensor:
        ground = self.ground(v)
        return ground + torch.sigmoid(self.opacity(r, v)) * (self.stroke(v) - ground)
