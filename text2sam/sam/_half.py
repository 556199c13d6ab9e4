"""Half precision for the image encoder of SAM, which holds nearly all weights and work."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HalfPrecisionEncoder(nn.Module):
    """An image encoder that computes in half precision and returns float32.

    Autocast is on inside the call only and keeps variances and softmax in float32: the squares in SAM's LayerNorm2d overflow
    float16. Matrices and kernels are stored in ``dtype``, which halves the memory; vectors (biases, normalisation) are few and
    stay float32.

    Args:
        encoder: a ``Sam.image_encoder``; its weights are converted in place.
        dtype: float16 or bfloat16.
        whole: convert vectors too and use no autocast. This is for bfloat16 on CPUs: its range is float32's, and the layers of
            :mod:`text2sam.folding` are fast when weights and inputs have the same type.
    """

    def __init__(self, encoder: nn.Module, dtype: torch.dtype, *, whole: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.dtype = dtype
        self.training = encoder.training
        self.whole = whole
        self.img_size = encoder.img_size
        for parameter in encoder.parameters():
            if parameter.ndim > 1 or whole:
                parameter.data = parameter.data.to(dtype)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) float32 -> (B, C, S/16, S/16) float32."""
        if self.whole:
            return self.encoder(pixels.to(self.dtype)).float()  # type: ignore[no-any-return]
        with torch.autocast(pixels.device.type, self.dtype):
            features: Tensor = self.encoder(pixels)
        return features.float()
