"""What the tests of folder jobs share: a folder of pictures, a quick model, and the bytes of a dataset."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers import picture, tiny_predictor, tiny_surgery
from PIL import Image
from segment_anything import SamPredictor

from text2sam import TextPromptedSAM
from text2sam.annotate.job import annotate
from text2sam.annotate.journal import STATE
from text2sam.annotate.labels import LabelSet, LabelSpec
from text2sam.annotate.report import Report

LABELS = LabelSet((LabelSpec("cat", threshold=0.0), LabelSpec("dog", synonyms=("hound",), threshold=1.0)))
"""Something in every picture, and something in none."""


@functools.cache
def model() -> TextPromptedSAM:
    """A pair of a few thousand weights, the same each time."""
    return TextPromptedSAM(tiny_predictor(), tiny_surgery())


class DyingPredictor(SamPredictor):
    """:func:`tiny_predictor`, whose process is killed by its first image, unless ``mark`` is there or it is this process."""

    def __init__(self, mark: Path) -> None:
        super().__init__(tiny_predictor().model)
        self.mark, self.home = mark, os.getpid()

    def set_image(self, image: Any, image_format: str = "RGB") -> None:
        if os.getpid() != self.home:
            with contextlib.suppress(FileExistsError), self.mark.open("x"):
                os.kill(os.getpid(), signal.SIGKILL)
        super().set_image(image, image_format)


def draw(folder: Path, count: int = 20, *, hostile: bool = False) -> Path:
    """Writes pictures of different sizes to a new folder; with ``hostile`` every seventh file is no picture."""
    folder.mkdir(parents=True)
    for k in range(count):
        file = folder / f"{k:03}.png"
        if hostile and k % 7 == 3:
            file.write_bytes([b"", b"no picture", b"\x89PNG\r\n\x1a\n\0\0"][k % 3])
        else:
            Image.fromarray(picture(k, 20 + k % 5, 30)).save(file)
        os.utime(file, (k, k))
    return folder


def run(root: Path, out: Path, /, **options: Any) -> Report:
    """Annotates quickly."""
    given: dict[str, Any] = {"labels": LABELS, "strategy": "paper", "batch_size": 4, "workers": 1} | options
    return annotate(given.pop("model", model()), root, given.pop("labels"), out, **given)


def dataset(out: Path) -> dict[str, bytes]:
    """The bytes of all files of a dataset, without the run's state."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and STATE not in path.relative_to(out).parts]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def forked(work: Callable[[], object]) -> int:
    """Runs ``work`` in a copy of this process; what it exits with, negative for a signal. 70 stands for an exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads; ours all ended
        pid = os.fork()
    if pid == 0:
        signal.alarm(120)  # so that a fault ends the test instead of hanging
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr)
            os._exit(70)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(call: int, module: Any, name: str, work: Callable[[], object]) -> int:
    """:func:`forked`, killed by SIGKILL in the call number ``call`` of ``module.name``, counted from 0."""

    def patched() -> None:
        original, made = getattr(module, name), 0

        def counting(*arguments: Any, **options: Any) -> Any:
            nonlocal made
            if made == call:
                os.kill(os.getpid(), signal.SIGKILL)
            made += 1
            return original(*arguments, **options)

        setattr(module, name, counting)
        work()

    return forked(patched)
