"""Segment Anything's prompts on a CPU: the same masks in fewer and cheaper steps.

Weights are kept; modules get a subclass that computes the same. Outputs change in the last bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor
from segment_anything.modeling import MaskDecoder, PromptEncoder
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.transformer import Attention, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from text2sam.sam.batch import decode, logit_masks


class _Attention(Attention):  # type: ignore[misc]
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        projected = (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        heads = (self._separate_heads(x, self.num_heads) for x in projected)
        mixed = F.scaled_dot_product_attention(*heads)
        return self.out_proj(self._recombine_heads(mixed))  # type: ignore[no-any-return]


class _LayerNorm2d(LayerNorm2d):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        last = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return last.permute(0, 3, 1, 2)


class _Doubling(nn.ConvTranspose2d):
    """A transposed convolution of 2 x 2 with stride 2. Its outputs do not overlap, so it is one matrix product."""

    def forward(self, x: Tensor, output_size: Any = None) -> Tensor:
        b, _, h, w = x.shape
        matrix = self.weight.permute(2, 3, 1, 0).reshape(-1, self.in_channels)  # (2 * 2 * O, C)
        four = F.linear(x.permute(0, 2, 3, 1), matrix).view(b, h, w, 2, 2, self.out_channels)
        if self.bias is not None:
            four += self.bias
        return four.transpose(2, 3).reshape(b, 2 * h, 2 * w, self.out_channels).permute(0, 3, 1, 2)


class _Remembering(nn.Linear):
    """A projection that is made anew when its input is another: prompts without a mask all give the image's embedding."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or self.weight.is_inference() or len(x) > 1:  # many prompts at once would fill the memory
            return super().forward(x)
        key = [(each.data_ptr(), each._version) for each in self.parameters()], x.dtype, x.shape
        held = self.__dict__.get("_held")
        if held is not None and held[0] == key and torch.equal(held[1], x):
            return held[2]  # type: ignore[no-any-return]
        made = super().forward(x)
        if made.dtype == x.dtype:  # autocast's is no use to calls without it
            self.__dict__["_held"] = key, x, made
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_held"}


class _PromptEncoder(PromptEncoder):  # type: ignore[misc]
    def get_dense_pe(self) -> Tensor:
        """(1, C, h, w), computed once for all images, and again when the weights are replaced."""
        matrix = self.pe_layer.positional_encoding_gaussian_matrix
        held = self.__dict__.get("_dense_pe")
        if held is None or held[0] is not matrix:
            held = self.__dict__["_dense_pe"] = (matrix, super().get_dense_pe())
        table: Tensor = held[1]
        return table


class _MaskDecoder(MaskDecoder):  # type: ignore[misc]
    def predict_masks(
        self, image_embeddings: Tensor, image_pe: Tensor, sparse_prompt_embeddings: Tensor, dense_prompt_embeddings: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As ``MaskDecoder``'s, without a copy of the image for each prompt."""
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(sparse_prompt_embeddings), -1, -1), sparse_prompt_embeddings], dim=1)
        image = image_embeddings + dense_prompt_embeddings  # (B, C, h, w)
        tokens, places = self.transformer(image, image_pe.expand_as(image), tokens)
        large = self.output_upscaling(places.transpose(1, 2).view_as(image))  # (B, C / 8, 4h, 4w)
        weights = torch.stack([mlp(tokens[:, 1 + k]) for k, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1)
        masks = (weights @ large.flatten(2)).unflatten(2, large.shape[2:])
        return masks, self.iou_prediction_head(tokens[:, 0])


def hasten_decoder(sam: nn.Module) -> None:
    """Makes a ``Sam`` on the CPU answer prompts faster, in place.

    Only modules of segment-anything's own classes are changed; subclasses may compute something else.
    """
    faster: dict[type, type] = {
        Attention: _Attention,
        LayerNorm2d: _LayerNorm2d,
        MaskDecoder: _MaskDecoder,
        PromptEncoder: _PromptEncoder,
    }
    module: Any
    for module in sam.modules():
        if type(module) in faster:
            module.__class__ = faster[type(module)]
        elif type(module) is nn.ConvTranspose2d and _doubles(module):
            module.__class__ = _Doubling
        if type(module) is TwoWayTransformer:
            first = module.layers[0]
            to_image, from_image = first.cross_attn_token_to_image, first.cross_attn_image_to_token
            for projection in (to_image.k_proj, to_image.v_proj, from_image.q_proj):
                if type(projection) is nn.Linear:
                    projection.__class__ = _Remembering


def _doubles(layer: nn.ConvTranspose2d) -> bool:
    others = (*layer.padding, *layer.output_padding, *(d - 1 for d in layer.dilation), layer.groups - 1)
    return layer.kernel_size == layer.stride == (2, 2) and not any(others)


class CPUPredictor(SamPredictor):  # type: ignore[misc]
    """A ``SamPredictor`` that upsamples masks as :class:`~text2sam.masks.LogitMasks` do, which is faster, most of all for large
    images, and not before they are asked for where ``lazy`` is given."""

    def predict(self, *prompts: Any, lazy: bool = False, **options: Any) -> tuple[Any, NDArray[Any], NDArray[Any]]:
        """As ``SamPredictor``'s; with ``lazy``, on a CPU, masks are :class:`~text2sam.masks.LogitMasks`."""
        if not lazy or self.device.type != "cpu":
            return super().predict(*prompts, **options)  # type: ignore[no-any-return]
        _, scores, logits = super().predict(*prompts, **options, return_logits=None)
        return logit_masks(self, logits), scores, logits

    @torch.no_grad()
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool | None = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ``SamPredictor``'s: masks (B, M, H, W) bool, or logits; scores (B, M); logits (B, M, 256, 256). With
        ``return_logits=None`` no masks are made, and the last stand in their place."""
        prompts = (point_coords, point_labels, boxes, mask_input, multimask_output)
        if return_logits or not self.is_image_set or self.device.type != "cpu":
            return super().predict_torch(*prompts, return_logits)  # type: ignore[no-any-return]
        points = None if point_coords is None else (point_coords, point_labels)
        logits, scores = decode(self, points, boxes, mask_input, multimask_output)
        masks = logits if return_logits is None else torch.from_numpy(np.asarray(logit_masks(self, logits.numpy())))
        return masks, scores, logits
