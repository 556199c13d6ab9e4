"""MobileSAM's image encoder on timm's TinyViT.

MobileSAM (Zhang et al. 2023, arXiv 2306.14289) keeps SAM's prompt encoder and mask decoder and replaces its image encoder
with a distilled TinyViT-5M. The last downsampling has stride 1, so that a 1024 px image gives the 64 x 64 features that SAM's
decoder expects.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from text2sam.errors import InputError, WeightsError

_PREFIX = "image_encoder."
_CLASSIFIER = re.compile(r"(norm_head|head)\.")
_INDICES = ".attn.attention_bias_idxs"
_GATHERED_BIASES = ".attn.ab"


class MobileImageEncoder(nn.Module):
    """The image encoder of MobileSAM, for use as ``Sam.image_encoder``.

    Attributes:
        img_size: 1024, the only input size.
    """

    img_size = 1024

    def __init__(self) -> None:
        super().__init__()
        from segment_anything.modeling.common import LayerNorm2d
        from timm.models.tiny_vit import TinyVit

        body = TinyVit(
            num_classes=0,
            embed_dims=(64, 128, 160, 320),
            depths=(2, 2, 6, 2),
            num_heads=(2, 4, 5, 10),
            window_sizes=(7, 7, 14, 7),
            drop_path_rate=0.0,
        )
        body.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.patch_embed = body.patch_embed
        self.stages = body.stages
        self.neck = nn.Sequential(
            nn.Conv2d(320, 256, 1, bias=False),
            LayerNorm2d(256),
            nn.Conv2d(256, 256, 3, padding=1, bias=False),
            LayerNorm2d(256),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Encodes normalised, padded images.

        Args:
            pixels: (B, 3, 1024, 1024) float, the output of ``Sam.preprocess``.

        Returns:
            (B, 256, 64, 64) of the same dtype.

        Raises:
            InputError: ``pixels`` has another shape.
        """
        size = self.img_size
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, size, size):
            raise InputError(f"pixels must have the shape (B, 3, {size}, {size}), not {tuple(pixels.shape)}")
        x = self.patch_embed(pixels)  # (B, 64, 256, 256)
        x = self.stages(x)  # (B, 320, 64, 64)
        features: Tensor = self.neck(x)  # (B, 256, 64, 64)
        return features.contiguous()


def hasten(encoder: MobileImageEncoder, dtype: torch.dtype = torch.float32) -> MobileImageEncoder:
    """The encoder itself, faster on CPUs and changed as :func:`~text2sam.folding.fold_batch_norms` says.

    Beside the batch norms, layers take over the GELU after them. The attention's table of position biases gets a batch axis,
    without which PyTorch has no fast kernel for it, until the encoder is moved or cast again.

    Args:
        encoder: in evaluation mode, on the CPU in float32.
        dtype: the floating point type that the weights are converted to.
    """
    from timm.models import tiny_vit

    from text2sam.folding import fold_batch_norms, fuse

    fold_batch_norms(encoder)
    steps: dict[type[nn.Module], tuple[tuple[str, str], ...]] = {
        tiny_vit.PatchEmbed: (("conv1", "act"),),
        tiny_vit.MBConv: (("conv1", "act1"), ("conv2", "act2")),  # act3 comes after the shortcut
        tiny_vit.PatchMerging: (("conv1", "act1"), ("conv2", "act2")),
        tiny_vit.NormMlp: (("fc1", "act"),),
    }
    for module in encoder.modules():
        for layer, after in steps.get(type(module), ()):
            fuse(module, getattr(getattr(module, layer), "conv", getattr(module, layer)), after)
    encoder.to(dtype)
    for module in encoder.modules():
        if type(module) is tiny_vit.Attention:
            attention: Any = module
            biases = attention.attention_biases[:, attention.attention_bias_idxs][None]  # (1, heads, N, N)
            attention.attention_bias_cache[str(biases.device)] = biases
    return encoder


def rename_keys(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of MobileSAM with the key names of a ``Sam`` whose image encoder is a :class:`MobileImageEncoder`.

    Keys that do not begin with ``image_encoder.``, and keys already renamed, stay. Entries that are not learned or not used
    are dropped: the classifier, the attention's index buffers (once they are seen to equal :func:`window_offsets`), and the
    biases gathered with them.

    Args:
        state_dict: the content of ``mobile_sam.pt``; it is not changed.

    Returns:
        A new dict with the same tensors.

    Raises:
        WeightsError: two keys get the same new name, or an index buffer has another order.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        new = key
        if key.startswith(_PREFIX):
            inner = key.removeprefix(_PREFIX)
            if inner.endswith(_INDICES):
                _check_indices(key, value)
                continue
            if _CLASSIFIER.match(inner) or inner.endswith(_GATHERED_BIASES):
                continue
            new = _PREFIX + _rename(inner)
        if new in renamed:
            raise WeightsError(f"two keys of the state dict both mean {new!r}; one of them is {key!r}")
        renamed[new] = value
    return renamed


def _check_indices(key: str, indices: Tensor) -> None:
    window = math.isqrt(len(indices)) if indices.ndim == 2 else 0
    if window == 0 or not torch.equal(indices.cpu().long(), window_offsets(window)):
        raise WeightsError(f"{key} numbers the attention biases in another order than TinyViT does; the file cannot be used")


def _rename(key: str) -> str:
    key = re.sub(r"^patch_embed\.seq\.([02])\.", lambda m: f"patch_embed.conv{int(m[1]) // 2 + 1}.", key)
    # MobileSAM ends a stage with the downsampling with which timm begins the next stage.
    key = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.", key)
    key = re.sub(r"^layers\.", "stages.", key)
    return re.sub(r"\.c\.weight$", ".conv.weight", key)


def window_offsets(window: int) -> Tensor:
    """The number of the attention bias that each pair of positions in a window uses.

    Biases are numbered in the order in which their offset (\\|dy\\|, \\|dx\\|) first occurs among all pairs of positions, row
    by row (Graham et al. 2021, LeViT).

    Args:
        window: side of the window in positions.

    Returns:
        (window**2, window**2) int64 with values below ``window**2``.
    """
    # The pairs of the first position have all offsets, in row-major order: (0, 0), (0, 1), ...
    y, x = torch.arange(window**2) // window, torch.arange(window**2) % window
    return (y[:, None] - y).abs() * window + (x[:, None] - x).abs()
