"""SAM, HQ-SAM, SAM 2 and SAM 3's tracker of Hugging Face's transformers as mask predictors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from text2sam.errors import StateError, UnsupportedModelError, WeightsError, needed

_MODELS = ("SamModel", "SamHQModel", "Sam2Model", "Sam3TrackerModel")


class HFPredictor:
    """A :class:`~text2sam.sam.predictor.MaskPredictor` on a model of transformers.

    It keeps an image in the attributes in which ``SamPredictor`` does, so that many images can take turns.

    Args:
        model: ``SamModel``, ``SamHQModel``, ``Sam2Model`` or ``Sam3TrackerModel``; its device and number format stay.
        processor: the model's own, ``AutoProcessor.from_pretrained``, or its image processor alone: what resizes, normalises
            and pads images.

    Attributes:
        features: the encoded image, as the model's ``forward`` takes it; None without one.
        is_image_set: whether there is one.
        original_size: its (H, W) in pixels.
        input_size: (h, w) in pixels that it has inside the model's input, without padding.
        padded_size: (h, w) of the model's input.

    Raises:
        UnsupportedModelError: the model or the processor is another.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        if not callable(getattr(model, "get_image_embeddings", None)):
            raise UnsupportedModelError(f"HFPredictor takes {', '.join(_MODELS)}, not {type(model).__name__}")
        if not callable(processor):
            raise UnsupportedModelError(f"HFPredictor takes the model's processor, not {type(processor).__name__}")
        self.model = model.eval()
        self.processor = getattr(processor, "image_processor", processor)
        self.reset_image()

    @classmethod
    def from_folder(cls, folder: Path, device: torch.device) -> HFPredictor:
        """The model in a folder that ``save_pretrained`` wrote, of model and processor.

        Raises:
            MissingDependencyError: transformers is not installed.
            WeightsError: the folder does not hold such a model with its processor.
        """
        transformers = needed("transformers", "transformers", f"the SAM in {str(folder)!r}")
        try:
            config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
            known = {
                getattr(transformers, name).config_class.model_type: name for name in _MODELS if hasattr(transformers, name)
            }
            if config.model_type not in known:
                raise ValueError(f"its model_type is {config.model_type!r}, not one of {', '.join(known)}")
            model = getattr(transformers, known[config.model_type]).from_pretrained(str(folder), local_files_only=True)
            processor = transformers.AutoImageProcessor.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise WeightsError(f"{str(folder)!r} holds no SAM of transformers with its processor: {error}") from error
        return cls(model.requires_grad_(False).to(device), processor)

    @property
    def device(self) -> torch.device:
        """The model's device."""
        device: torch.device = self.model.device
        return device

    def reset_image(self) -> None:
        """Forgets the image."""
        self.features: dict[str, Any] | None = None
        self.is_image_set = False
        self.original_size = self.input_size = self.padded_size = (0, 0)

    @torch.no_grad()
    def set_image(self, image: NDArray[np.uint8]) -> None:
        """Encodes an image, (H, W, 3) uint8 RGB."""
        self.reset_image()
        made = self.processor(images=image, return_tensors="pt")
        pixels = made["pixel_values"].to(self.model.device, self.model.dtype)
        embeddings = self.model.get_image_embeddings(pixels)
        # HQ-SAM's decoder needs what its encoder made on the way
        parts = embeddings if isinstance(embeddings, tuple) else (embeddings,)
        self.features = dict(zip(("image_embeddings", "intermediate_embeddings"), parts, strict=False))
        self.original_size = (image.shape[0], image.shape[1])
        self.padded_size = (int(pixels.shape[2]), int(pixels.shape[3]))
        # SAM 2's images fill the input; transformers 4 gives their own size all the same
        inside = made.get("reshaped_input_sizes") if getattr(self.processor, "pad_size", None) else None
        self.input_size = self.padded_size if inside is None else (int(inside[0][0]), int(inside[0][1]))
        self.is_image_set = True

    @torch.no_grad()
    def predict(
        self,
        point_coords: NDArray[Any] | None = None,
        point_labels: NDArray[Any] | None = None,
        box: NDArray[Any] | None = None,
        mask_input: NDArray[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
        """Masks for prompts on the image; see :class:`~text2sam.sam.predictor.MaskPredictor`.

        Raises:
            StateError: no image is set.
        """
        if self.features is None:
            raise StateError("no image is set: call set_image before asking for masks")
        (height, width), (inner_height, inner_width) = self.original_size, self.input_size
        scale = np.array([inner_width / width, inner_height / height])
        prompts: dict[str, Any] = {}
        if point_coords is not None and point_labels is not None:
            prompts["input_points"] = self._tensor(np.asarray(point_coords) * scale)[None, None]  # (1, 1, N, 2)
            prompts["input_labels"] = torch.as_tensor(np.asarray(point_labels), device=self.device).long()[None, None]
        if box is not None:
            prompts["input_boxes"] = self._tensor(np.asarray(box).reshape(2, 2) * scale).reshape(1, 1, 4)
        if mask_input is not None:
            prompts["input_masks"] = self._tensor(np.asarray(mask_input))[None]  # (1, 1, h, w)
        made = self.model(**self.features, **prompts, multimask_output=multimask_output)
        low = made.pred_masks[:, 0].float()  # (1, M, h, w)
        masks = self._at_original_size(low)[0]
        answer = masks if return_logits else masks > 0
        return answer.cpu().numpy(), made.iou_scores[0, 0].float().cpu().numpy(), low[0].cpu().numpy()

    def _tensor(self, values: NDArray[Any]) -> torch.Tensor:
        return torch.as_tensor(values, dtype=self.model.dtype, device=self.device)

    def _at_original_size(self, low: torch.Tensor) -> torch.Tensor:
        """(1, M, H, W) logits from (1, M, h, w), without what the padding became."""
        if self.input_size != self.padded_size:
            low = F.interpolate(low, self.padded_size, mode="bilinear", align_corners=False)
            low = low[..., : self.input_size[0], : self.input_size[1]]
        return F.interpolate(low, self.original_size, mode="bilinear", align_corners=False)
