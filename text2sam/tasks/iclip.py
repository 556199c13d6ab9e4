"""ICLIP: similarity maps from a trained projection behind a frozen CLIP (arXiv 2209.07046).

The paper trains two projections on frozen features, one for recognition and one for interpretation, and takes the similarity
map from the second. Its formulas and layers are not public; in our reading the projections are square matrices behind CLIP's
own projection that start at the identity, so that ICLIP before training is CLIP and texts keep CLIP's features.
``text2sam.lab.iclip`` trains them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from text2sam.clip.generator import ClipSurgery, ImageFeatures
from text2sam.errors import InputError, WeightsError
from text2sam.files import write_bytes
from text2sam.fingerprint import fingerprint
from text2sam.image import ImageLike
from text2sam.targets import check_text
from text2sam.tasks._inputs import surgery_of
from text2sam.types import SimilarityMap

if TYPE_CHECKING:
    from text2sam.pipeline import TextPromptedSAM

TokenPath = Literal["raw", "architecture"]

_FORMAT = "text2sam-iclip-2"


class ICLIP(nn.Module):
    """Two projections behind a frozen CLIP.

    Args:
        model: a ClipSurgery, or a pair, whose generator is taken. Its CLIP is not a submodule: ``parameters()``,
            ``state_dict()`` and ``train()`` concern the projections alone.
        path: the patch tokens that the interpretation projection takes: ``"raw"``, those of the original path, as in the
            paper; or ``"architecture"``, those of architecture surgery.

    Attributes:
        surgery: the frozen CLIP.
        recognition, interpretation: (C, C) float32 parameters D of the projections ``x + D x``, 0 at first.

    Raises:
        InputError: an argument is none of the above.
    """

    def __init__(self, model: ClipSurgery | TextPromptedSAM, *, path: TokenPath = "raw") -> None:
        super().__init__()
        if path not in get_args(TokenPath):
            raise InputError(f"path must be one of {', '.join(get_args(TokenPath))}, not {path!r}")
        self.surgery, self.path = surgery_of(model), path
        channels = self.surgery.encode_texts([""]).shape[1]
        self.recognition = nn.Parameter(torch.zeros(channels, channels, device=self.surgery.device))
        self.interpretation = nn.Parameter(torch.zeros(channels, channels, device=self.surgery.device))

    def tokens(self, image: ImageLike | ImageFeatures) -> tuple[torch.Tensor, tuple[int, int]]:
        """(1 + gh*gw, C) float32 L2-normalised tokens of an image that the projections take, and (gh, gw).

        The class token comes first; it is that of the original path.
        """
        features = image if isinstance(image, ImageFeatures) else self.surgery.encode_image(image)
        patches = features.raw if self.path == "raw" else features.surgery
        return torch.cat([features.raw[:1], patches[1:]]), features.grid

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Projected tokens, not normalised.

        Args:
            tokens: (B, 1 + N, C) float32, class token first.

        Returns:
            The class tokens by the recognition projection, (B, C), and the patch tokens by the interpretation projection,
            (B, N, C).
        """
        cls, patches = tokens[:, 0], tokens[:, 1:]
        return cls + cls @ self.recognition.T, patches + patches @ self.interpretation.T

    def maps(self, image: ImageLike | ImageFeatures, texts: Sequence[str]) -> list[SimilarityMap]:
        """Similarity maps by the interpretation projection.

        Args:
            image: anything :func:`text2sam.image.read_image` accepts, or its features by ``surgery.encode_image``.
            texts: T texts.

        Returns:
            T maps of cosines, with method ``"iclip"``.

        Raises:
            PromptError: a text is empty or too long.
            ImageError: the image cannot be read.
        """
        checked = _texts(texts)
        tokens, grid = self.tokens(image)
        if not checked:
            return []
        with torch.inference_mode():
            patches = F.normalize(self(tokens[None])[1][0], dim=-1)  # (N, C)
            grids = (self.surgery.encode_texts(checked) @ patches.T).unflatten(1, grid).float().cpu().numpy()
        return [SimilarityMap(np.ascontiguousarray(g), text, "iclip") for g, text in zip(grids, checked, strict=True)]

    def scores(self, image: ImageLike | ImageFeatures, texts: Sequence[str]) -> NDArray[np.float32]:
        """(T,) float32 cosines in [-1, 1] of texts and the class token by the recognition projection.

        Raises:
            PromptError: there is no text, or one is empty or too long.
            ImageError: the image cannot be read.
        """
        checked = _texts(texts)
        tokens, _ = self.tokens(image)
        with torch.inference_mode():
            cls = F.normalize(self(tokens[None])[0][0], dim=-1)  # (C,)
            cosines = self.surgery.encode_texts(checked) @ cls
        return np.asarray(cosines.cpu().numpy(), np.float32)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the projections, and which CLIP they belong to, as safetensors.

        Raises:
            OutputError: the file cannot be written.
        """
        from safetensors.torch import save

        metadata = {"format": _FORMAT, "clip": fingerprint(self.surgery.model)[:16], "path": self.path}
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        return write_bytes(path, save(state, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: ClipSurgery | TextPromptedSAM) -> ICLIP:
        """Reads projections back.

        Args:
            path: a file of :meth:`save`.
            model: the CLIP they were trained on, in the same number format, of any image size.

        Raises:
            WeightsError: the file is missing or damaged, holds no ICLIP, or belongs to another CLIP.
        """
        import safetensors

        file, surgery = Path(path).expanduser(), surgery_of(model)
        if not file.is_file():
            raise WeightsError(f"ICLIP weights {str(file)!r} are not a file; give a file that ICLIP.save has written")
        try:
            with safetensors.safe_open(str(file), "pt") as opened:
                metadata = opened.metadata() or {}
                state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118, no mapping
        except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise WeightsError(f"ICLIP weights {str(file)!r} cannot be read ({error}); copy the file again") from error
        if metadata.get("format") != _FORMAT or metadata.get("path") not in get_args(TokenPath):
            raise WeightsError(f"{str(file)!r} does not hold ICLIP weights of the format {_FORMAT!r}: {metadata}")
        if metadata.get("clip") != fingerprint(surgery.model)[:16]:
            raise WeightsError(
                f"ICLIP weights {str(file)!r} were trained on another CLIP or in another number format (fingerprint "
                f"{metadata.get('clip')}, this one has {fingerprint(surgery.model)[:16]}); load them with that CLIP, or train "
                "them on this one"
            )
        iclip = cls(surgery, path="raw" if metadata["path"] == "raw" else "architecture")
        expected = {name: (value.shape, value.dtype) for name, value in iclip.state_dict().items()}
        given = {name: (value.shape, value.dtype) for name, value in state.items()}
        if given != expected or not all(bool(value.isfinite().all()) for value in state.values()):
            raise WeightsError(f"{str(file)!r} must hold finite tensors {expected}, not {given}")
        iclip.load_state_dict(state)
        return iclip


def _texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise InputError(f"texts must be a sequence of strings; for one text pass [{texts!r}]")
    return [check_text(text) for text in texts]
