"""Shapes of the blocks at every image side that the data sets have, and what initialisation and skips do."""

import pytest
import torch
from torch import nn

from training.models.polar import CircularConv
from training.networks import (
    ConvBody,
    DenseDecoder,
    LayeredDecoder,
    Residual,
    ResidualConv,
    TransposedDecoder,
    dense,
    folded,
    he_initialise,
    strided_sides,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("side", "expected"), [(28, [28, 28, 14, 7, 4, 2]), (32, [32, 32, 16, 8, 4, 2])])
def test_strided_sides_are_those_of_the_convolutions(side: int, expected: list[int]) -> None:
    strides = (1, 2, 2, 2, 2)
    assert strided_sides(side, strides) == expected
    x = torch.zeros(1, 1, side, side)
    for stride, length in zip(strides, expected[1:], strict=True):
        x = nn.Conv2d(1, 1, 5, stride, padding=2)(x)
        assert x.shape[-1] == length


@pytest.mark.parametrize("side", [8, 9, 28, 32])
@pytest.mark.parametrize("pool", ["flatten", "depthwise"])
@pytest.mark.parametrize("norm", [False, True])
def test_body_gives_out_features(side: int, pool: str, norm: bool) -> None:
    body = ConvBody(3, side, (4, 8, 8), (1, 2, 2), 3, norm=norm, pool=pool)  # type: ignore[arg-type]
    assert body(torch.rand(2, 3, side, side)).shape == (2, body.out_features)


@pytest.mark.parametrize("pool", ["flatten", "depthwise"])
@pytest.mark.parametrize("norm", [False, True])
def test_body_without_padding_gives_out_features(pool: str, norm: bool) -> None:
    body = ConvBody(3, 15, (4, 4, 8), (1, 2, 1), 3, norm=norm, pool=pool, unpadded=3)  # type: ignore[arg-type]
    assert body(torch.rand(2, 3, 15, 15)).shape == (2, body.out_features)
    assert body.out_features == (8 if pool == "depthwise" else 8 * 4 * 4)


@pytest.mark.parametrize("side", [27, 28, 31, 32])
def test_the_last_convolutions_of_a_body_are_those_without_padding(side: int) -> None:
    strides = (2, 1, 2, 1)
    x = torch.zeros(1, 1, side, side)
    for stride, padding in zip(strides, (1, 1, 0, 0), strict=True):
        x = nn.Conv2d(1, 1, 3, stride, padding=padding)(x)
    body = ConvBody(1, side, (1, 1, 1, 1), strides, 3, unpadded=2)
    assert body.out_features == x.numel() == body(torch.zeros(1, 1, side, side)).numel()


def test_body_without_padding_says_that_the_picture_is_too_small() -> None:
    with pytest.raises(ValueError, match="3 convolutions of 5 without padding leave nothing of 12 pixels"):
        ConvBody(1, 12, (4, 4, 4), (1, 1, 1), 5, unpadded=3)


def test_depthwise_pool_tells_places_apart() -> None:
    body = ConvBody(1, 8, (4,), (1,), 3, pool="depthwise").eval()
    left, right = torch.zeros(2, 1, 1, 8, 8)
    left[..., 4, 1] = right[..., 4, 6] = 1
    assert not torch.allclose(body(left), body(right), atol=1e-3)


def test_residual_adds_its_input_where_the_shape_is_kept() -> None:
    same, wider = ResidualConv(4, 4, 3, 1).eval(), ResidualConv(4, 8, 3, 1).eval()
    for block in (same, wider):
        nn.init.zeros_(block.convolution.weight)
    x = torch.rand(1, 4, 5, 5)
    torch.testing.assert_close(same(x), x)
    assert not wider(x).any()


def test_residual_without_padding_adds_the_middle_of_its_input() -> None:
    block = ResidualConv(4, 4, 5, 1, padding=False).eval()
    nn.init.zeros_(block.convolution.weight)
    x = torch.rand(1, 4, 9, 9)
    torch.testing.assert_close(block(x), x[:, :, 2:-2, 2:-2])


@pytest.mark.parametrize(
    "block",
    [
        ResidualConv(4, 4, 5, 1),
        ResidualConv(4, 4, 5, 1, padding=False),
        ResidualConv(4, 4, 3, 2),
        ResidualConv(4, 8, 3, 1),
        CircularConv(4, 4, 3, dilation=2),
        CircularConv(4, 8, 7, stride=2),
    ],
    ids=["padded", "unpadded", "strided", "wider", "circle", "strided circle"],
)
def test_folded_residual_is_one_convolution_with_the_same_output(block: Residual) -> None:
    norm = block.norm
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(values, 0.5, 2)
    network = nn.Sequential(block, nn.Flatten()).eval()
    x = torch.randn(3, 4, 1 if isinstance(block, CircularConv) else 12, 12)
    expected, one = network(x), folded(network)
    torch.testing.assert_close(one(x), expected)
    assert not any(isinstance(module, nn.BatchNorm2d) or getattr(module, "skip", False) for module in one.modules())
    assert block.norm is norm
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("side", [28, 32])
def test_transposed_decoder_mirrors_the_encoder(side: int) -> None:
    decoder = TransposedDecoder(16, 10, 3, side, (64, 32, 16, 8), hidden=64, units=128)
    assert decoder.start == 2
    assert decoder(torch.rand(2, 16), torch.rand(2, 10)).shape == (2, 3, side, side)


def test_transposed_decoder_refuses_units_that_do_not_fill_its_map() -> None:
    with pytest.raises(ValueError, match="130 units do not fill a map of 2 x 2"):
        TransposedDecoder(4, 4, 1, 28, (8, 8, 8, 8), hidden=8, units=130)


def test_dense_decoder_depends_on_both_codes() -> None:
    decoder = DenseDecoder(10, 1, 8, (32,))
    r, v = torch.rand(2, 4), torch.rand(2, 6)
    image = decoder(r, v)
    assert image.shape == (2, 1, 8, 8)
    assert not torch.allclose(decoder(r + 1, v), image)
    assert not torch.allclose(decoder(r, v + 1), image)


def test_layered_decoder_lays_one_colour_over_a_ground_that_knows_no_r() -> None:
    decoder = LayeredDecoder(4, 6, 3, 8, (32,), (16,))
    r, v = torch.rand(2, 4), torch.rand(2, 6)
    image, other = decoder(r, v), decoder(r + 1, v)
    assert image.shape == (2, 3, 8, 8)
    ground, stroke = decoder.ground(v), decoder.stroke(v)
    opacity = ((image - ground) / (stroke - ground)).detach()
    torch.testing.assert_close(opacity[:, 0], opacity[:, 1], atol=1e-3, rtol=1e-3)  # of all channels alike
    assert 0 < float(opacity.min()) and float(opacity.max()) < 1
    assert not torch.allclose(other, image)
    nn.init.constant_(decoder.opacity.layers[-1].bias, -1e4)
    torch.testing.assert_close(decoder(r, v), ground)
    torch.testing.assert_close(decoder(r + 1, v), ground)


def test_dense_ends_with_or_without_relu() -> None:
    assert isinstance(dense(3, 4, 5)[-1], nn.ReLU)
    assert isinstance(dense(3, 4, 5, final_relu=False)[-1], nn.Linear)


def test_he_keeps_the_scale_of_activations_through_depth() -> None:
    layers = [nn.Conv2d(1 if i == 0 else 32, 32, 5, padding=2) for i in range(6)]
    network = nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU())))
    x = torch.randn(4, 1, 24, 24)
    with torch.no_grad():
        narrow = float(network(x).pow(2).mean())
        he_initialise(network)
        kept = float(network(x).pow(2).mean())
    assert narrow < 0.01
    assert 0.1 < kept < 10
    assert all(not layer.bias.any() for layer in layers if layer.bias is not None)


def test_he_counts_the_taps_of_a_strided_transposed_convolution() -> None:
    layer = nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1)
    he_initialise(layer)
    assert float(layer.weight.detach().std()) == pytest.approx((2 / (64 * 4)) ** 0.5, rel=0.05)
