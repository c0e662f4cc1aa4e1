"""The networks that an EquiVAE is put together from, as its configuration asks for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contract.manifest import InputSpec
from training.models.equivae_config import (
    ConvBodyConfig,
    DenseBodyConfig,
    DenseDecoderConfig,
    EquiVAEConfig,
    LayeredDecoderConfig,
)
from training.networks import ConvBody, DenseDecoder, LayeredDecoder, TransposedDecoder, dense

__all__ = ["Posterior", "body_of", "body_width", "decoder_of"]


class Posterior(nn.Module):
    """q(v|r,x): a body on x, a dense layer on r, and one hidden layer each for mu and the log variance (Eq. 3)."""

    def __init__(self, config: EquiVAEConfig, input: InputSpec) -> None:
        super().__init__()
        self.body = body_of(config.posterior, input)
        width = body_width(config.posterior)
        hidden = config.posterior_hidden
        self.from_r = dense(config.r_dim, hidden)
        self.mean = dense(width + hidden, hidden, config.v_dim, final_relu=False)
        self.log_variance = dense(width + hidden, hidden, config.v_dim, final_relu=False)

    def forward(self, r: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.given(self.body(images), r)

    def given(self, features: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """Of images whose body has been run: features [N,hidden], r [N,D]"""
        both = torch.cat([features, self.from_r(r)], 1)
        return self.mean(both), self.log_variance(both)


def body_of(config: ConvBodyConfig | DenseBodyConfig, input: InputSpec) -> nn.Sequential:
    """[N,C,H,W] -> [N,hidden]"""
    if isinstance(config, DenseBodyConfig):
        return nn.Sequential(nn.Flatten(), *dense(input.channels * input.height * input.width, *config.widths))
    convolutions = ConvBody(
        input.channels,
        input.height,
        config.filters,
        config.strides,
        config.kernel,
        norm=config.norm,
        pool=config.pool,
        unpadded=config.unpadded,
    )
    return nn.Sequential(convolutions, *dense(convolutions.out_features, config.hidden))


def body_width(config: ConvBodyConfig | DenseBodyConfig) -> int:
    """How many features the body of this configuration gives."""
    return config.widths[-1] if isinstance(config, DenseBodyConfig) else config.hidden


def decoder_of(config: EquiVAEConfig, input: InputSpec) -> nn.Module:
    """[N,r_dim], [N,v_dim] -> [N,C,H,W], before the likelihood's link function"""
    sizes = (config.r_dim, config.v_dim, input.channels, input.height)
    if isinstance(config.decoder, DenseDecoderConfig):
        return DenseDecoder(config.r_dim + config.v_dim, input.channels, input.height, config.decoder.widths)
    if isinstance(config.decoder, LayeredDecoderConfig):
        return LayeredDecoder(*sizes, config.decoder.widths, config.decoder.ground_widths)
    return TransposedDecoder(*sizes, config.decoder.filters, config.decoder.hidden, config.decoder.units)
