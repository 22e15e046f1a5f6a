"""What stands in a pipeline where the VAE would, if its denoiser works on pixels.

Diffusers loads a part of a foreign library only if its module is imported: `load_image_model` does, others `import
prefopt.models.pixels` before `DiffusionPipeline.from_pretrained`.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn


class GreyPixels(ModelMixin, ConfigMixin):
    """Latents [N, 1, H, W] = gain * grey + offset of pixels [N, 3, H, W] in [-1, 1], exactly and back; no deviation.

    It answers as `AutoencoderKL` does, so Stable Diffusion's own pipeline runs on it.
    """

    @register_to_config
    def __init__(
        self,
        gain: float = 1.5,
        offset: float = 0.6,
        latent_channels: int = 1,
        scaling_factor: float = 1.0,
        block_out_channels: tuple[int, ...] = (1,),  # one entry: latents are as large as images
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(3, 1, 1), nn.Conv2d(1, 3, 1)
        for conv, weight, bias in ((self.encoder, gain / 3, offset), (self.decoder, 1 / gain, -offset / gain)):
            nn.init.constant_(conv.weight, weight)
            nn.init.constant_(conv.bias, bias)  # type: ignore[arg-type]

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput:
        latents = self.encoder(x)
        posterior = torch.cat([latents, torch.zeros_like(latents)], 1)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(posterior, deterministic=True))

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        pixels = self.decoder(z)
        return DecoderOutput(sample=pixels) if return_dict else (pixels,)


class ColourPixels(GreyPixels):
    """The same with a channel for each colour: latents [N, 3, H, W] = gain * pixels + offset."""

    @register_to_config
    def __init__(
        self,
        gain: float = 1.0,
        offset: float = 0.0,
        latent_channels: int = 3,
        scaling_factor: float = 1.0,
        block_out_channels: tuple[int, ...] = (1,),
    ) -> None:
        super(GreyPixels, self).__init__()
        self.encoder, self.decoder = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        for conv, weight, bias in ((self.encoder, gain, offset), (self.decoder, 1 / gain, -offset / gain)):
            with torch.no_grad():
                conv.weight.copy_(weight * torch.eye(3)[:, :, None, None])
            nn.init.constant_(conv.bias, bias)  # type: ignore[arg-type]
