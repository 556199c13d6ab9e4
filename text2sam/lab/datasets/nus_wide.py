"""NUS-WIDE: Flickr images with 81 concepts, for recognition.

Chua et al., NUS-WIDE: A Real-World Web Image Database from National University of Singapore (CIVR 2009).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from text2sam.errors import InputError
from text2sam.export.annotated import check_relative
from text2sam.lab.datasets import layout as disk
from text2sam.lab.datasets import names
from text2sam.lab.datasets.layout import Root
from text2sam.lab.datasets.sample import Dataset


def open_nus_wide(root: Root, split: str = "test") -> Dataset:
    """NUS-WIDE.

    Layout: ``ImageList/TestImagelist.txt`` with lines such as ``actor\\0001_2124494179.jpg``;
    ``Groundtruth/TrainTestLabels/Labels_<concept>_Test.txt`` with 0 or 1 for each of them; images in ``Flickr/actor/``. The
    list files may also be in the root. Images without a concept are included, and images are not checked before they are read.

    Args:
        split: ``"test"`` (107,859 images) or ``"train"``.
    """
    part = disk.check_split(split, ("train", "test")).capitalize()
    home = "https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html"
    layout = disk.Layout(root, "NUS-WIDE", home)
    base = layout.base((".", "NUS-WIDE", "NUS_WIDE"), ("ImageList", "Groundtruth", "Flickr"))
    listed = layout.file(base, f"ImageList/{part}Imagelist.txt", f"{part}Imagelist.txt")
    labels = layout.folder(
        base, "Groundtruth/TrainTestLabels", "Groundtruth/TestTrainLabels", "TrainTestLabels", "TestTrainLabels"
    )
    pictures = layout.folder(base, "Flickr", "images")
    concepts = [labels / f"Labels_{name}_{part}.txt" for name in names.NUS_WIDE]
    if labels.is_dir():
        layout.need(f"label files in {labels}", (path.name for path in concepts if not path.is_file()), {})
    layout.check()
    files = [_relative(line, listed) for line in disk.read_lines(listed)]
    table = np.stack([_column(path, len(files), listed) for path in concepts], axis=1)  # (N, 81)

    def truth(place: int) -> dict[str, Any]:
        return {"read_labels": lambda: [names.NUS_WIDE[i] for i in np.flatnonzero(table[place])], "label_path": labels}

    photos = [(file.rpartition(".")[0] or file, pictures / file) for file in files]
    return layout.dataset("nus-wide", names.NUS_WIDE, photos, truth, tasks=("recognition",), split=split)


def _relative(line: str, listed: Path) -> str:
    try:
        return check_relative(line.replace("\\", "/"))
    except InputError as error:
        raise InputError(f"{listed}: {error}") from error


def _column(path: Path, count: int, listed: Path) -> NDArray[np.bool_]:
    """(N,) bool, whether each picture has the concept."""
    values = disk.read_text(path).split()
    if len(values) != count or not set(values) <= {"0", "1"}:
        raise InputError(
            f"{path} must hold 0 or 1 for each of the {count} pictures of {listed.name}; it has {len(values)} values"
            + (", not only 0 and 1" if not set(values) <= {"0", "1"} else "")
        )
    return np.fromiter((value == "1" for value in values), bool, count)
