"""The photo pair's models, with the weights that ship with the package.

``weights/`` holds

- ``clip.safetensors``: timm's ``tf_efficientnet_lite2`` (Apache-2.0), and vectors learned from COCO's annotations (CC BY 4.0);
- ``words.json``: the nouns of WordNet 3.0 (Princeton University, its own licence) above ImageNet's classes, and the words that
  were learned;
- ``sam.safetensors``: MobileSAM (Apache-2.0);
- ``objectness.safetensors``: what separates objects from the rest in MobileSAM's embedding, learned from COCO's annotations;
- ``record.json``: checksums, sources, and how presence was fitted. :mod:`text2sam.lab.photo` builds all of them anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from text2sam.clip.words import WordTable
from text2sam.devices import pick_device
from text2sam.zoo.shipped import Shipped

if TYPE_CHECKING:
    from text2sam.clip.classifier import WordClassifier
    from text2sam.sam.objectness import Objectness

SHIPPED = Shipped(
    "photo",
    Path(__file__).parent / "weights",
    {
        "clip.safetensors": "Apache-2.0 AND CC-BY-4.0",
        "words.json": "LicenseRef-WordNet-3.0",
        "sam.safetensors": "Apache-2.0",
        "objectness.safetensors": "CC-BY-4.0",
    },
)
"""The weights; the record has their sources."""

ARCHITECTURE = "tf_efficientnet_lite2"
"""timm's name of the classifier."""

MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
"""The normalisation of pixels that the classifier's weights were trained with."""


def build_encoder() -> Any:
    """An untrained classifier of the photo pair's shape, on the CPU in float32."""
    import timm

    return timm.create_model(ARCHITECTURE, pretrained=False)


def load_words() -> WordTable:
    """The words of the photo pair.

    Raises:
        WeightsError: the table is not in the package, or differs from the record.
    """
    table = json.loads(SHIPPED.file("words.json").read_text(encoding="utf-8"))
    return WordTable(table["synsets"], table["words"], table["learned"], table["narrower"])


def load_clip(**options: Any) -> WordClassifier:
    """The classifier with its shipped weights and words, in evaluation mode.

    Args:
        **options: further arguments of :class:`~text2sam.clip.classifier.WordClassifier`.

    Raises:
        WeightsError: the weights are not in the package, or differ from the record.
    """
    from text2sam.clip.classifier import WordClassifier

    state = SHIPPED.state_dict("clip.safetensors")
    vectors, offsets = state.pop("learned.vectors"), state.pop("learned.offsets")
    model = build_encoder()
    model.load_state_dict(state)
    model = model.eval().requires_grad_(False)
    if pick_device(options.get("device")).type == "cpu":
        from text2sam.folding import fold_batch_norms

        fold_batch_norms(model)
    terms = SHIPPED.record()["presence"]
    return WordClassifier(
        model,
        load_words(),
        learned=vectors,
        offsets=offsets,
        presence_offset=terms["offset"],
        presence_slope=terms["slope"],
        presence_crowd=terms["crowd"],
        mean=MEAN,
        std=STD,
        **options,
    )


def load_objectness() -> Objectness:
    """Objectness from the embedding of the pair's SAM.

    Raises:
        WeightsError: it is not in the package, or differs from the record.
    """
    from text2sam.sam.objectness import Objectness

    state = SHIPPED.state_dict("objectness.safetensors")
    return Objectness(state["weight"].numpy(), float(state["bias"]))
