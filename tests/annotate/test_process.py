"""Workers in processes of their own: the same dataset, whoever dies on the way, and nothing left running."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import types
import unittest.mock
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_surgery
from jobs import LABELS, DyingPredictor, dataset, draw, killed_at, model, run

from text2sam import TextPromptedSAM
from text2sam.annotate import engine
from text2sam.annotate.job import warm
from text2sam.annotate.journal import RunFolder
from text2sam.annotate.process import GIVEN_UP, Answer, CannotStart, Died, Process
from text2sam.annotate.sources import ImageItem, find_images
from text2sam.annotate.worker import Worker, load
from text2sam.errors import Text2SamError, Text2SamWarning
from text2sam.options import Options


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("process") / "images", 9, hostile=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, images: Path) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("process") / "out"
    assert run(images, out).done == 8
    return dataset(out)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(engine, "PATIENCE", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def idle_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves all work to the processes."""
    monkeypatch.setattr(engine._Run, "_work", lambda *_: None)


# real processes


@pytest.mark.usefixtures("idle_here")
def test_the_dataset_is_that_of_one_process(tmp_path: Path, images: Path, undisturbed: dict[str, bytes]) -> None:
    running = threading.active_count()
    report = run(images, tmp_path / "out", workers=2, embeddings=tmp_path / "kept")
    assert dataset(tmp_path / "out") == undisturbed
    assert [failure.path for failure in report.failed] == ["003.png"]
    assert threading.active_count() == running
    assert len(list((tmp_path / "kept").rglob("*.safetensors"))) == 8
    report = warm(model(), find_images(images).items, tmp_path / "kept", batch_size=4, workers=2)
    assert (report.made, report.found) == (0, 8)


@pytest.mark.usefixtures("idle_here")
def test_a_killed_worker_is_replaced(tmp_path: Path, images: Path, undisturbed: dict[str, bytes]) -> None:
    mortal = TextPromptedSAM(DyingPredictor(tmp_path / "dead"), tiny_surgery())
    with pytest.warns(Text2SamWarning, match=r"a worker died \(SIGKILL\) over \d images, from '.*', and is replaced"):
        report = run(images, tmp_path / "out", model=mortal, workers=2)
    assert (tmp_path / "dead").exists()
    assert dataset(tmp_path / "out") == undisturbed
    assert [failure.path for failure in report.failed] == ["003.png"]


@pytest.mark.usefixtures("idle_here")
def test_a_killed_job_takes_its_workers_along_and_goes_on(
    tmp_path: Path, images: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Noted(Process):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            (tmp_path / str(self._process.pid)).touch()

    monkeypatch.setattr(engine, "Process", Noted)
    assert killed_at(1, RunFolder, "append", lambda: run(images, tmp_path / "out", workers=2)) == -signal.SIGKILL
    workers = [int(file.name) for file in tmp_path.iterdir() if file.name.isdigit()]
    assert len(workers) == 2
    until = time.monotonic() + 60
    while any(map(runs, workers)):
        assert time.monotonic() < until
        time.sleep(0.1)
    monkeypatch.undo()
    report = run(images, tmp_path / "out")
    assert report.skipped > 0
    assert dataset(tmp_path / "out") == undisturbed


def runs(process: int) -> bool:
    """Whether a process runs; a zombie does not."""
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_what_another_process_cannot_import(
    tmp_path: Path, images: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class that cannot be pickled, like one of a notebook."""
    notebook = types.ModuleType("notebook_of_a_user")
    monkeypatch.setitem(sys.modules, notebook.__name__, notebook)
    own = type("Own", (TextPromptedSAM,), {"__module__": notebook.__name__})
    notebook.Own = own  # type: ignore[attr-defined]
    monkeypatch.setattr(engine._Run, "_batches", after_starting(engine._Run._batches))
    with pytest.warns(Text2SamWarning, match="a worker less: the model cannot be made in another process: ModuleNotFoundError"):
        run(images, tmp_path, model=own(model().predictor, model().generator), workers=2)
    assert dataset(tmp_path) == undisturbed


def after_starting(batches: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def wait(self: Any) -> Any:
        for thread in self._threads[:2]:
            thread.join()
        return batches(self)

    return wait


# dying workers


class Fake:
    """A process played by its thread, which dies as ``script`` says: given the images, once more for every call."""

    def __init__(self, script: Callable[[Sequence[ImageItem]], bool], cannot: Exception | None = None) -> None:
        self.script, self.cannot = script, cannot
        self.made = self.closed = 0
        self.asked: list[list[str]] = []

    def __call__(self, *_: Any) -> Any:
        self.made += 1
        if self.cannot is not None and self.made > 2:
            raise self.cannot
        process = unittest.mock.Mock(spec=Process)
        process.work, process.close = self.work, self.close
        return process

    def close(self) -> None:
        self.closed += 1

    def work(self, items: Sequence[ImageItem]) -> Answer:
        self.asked.append([item.path for item in items])
        if self.script(items):
            raise Died("SIGKILL")
        worker = Worker(TextPromptedSAM(model().predictor, model().generator), LABELS, Options(strategy="paper"))
        return Answer(worker.run([load(item) for item in items]))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, idle_here: None) -> Callable[..., Fake]:
    def make(script: Callable[[Sequence[ImageItem]], bool], cannot: Exception | None = None) -> Fake:
        made = Fake(script, cannot)
        monkeypatch.setattr(engine, "Process", made)
        return made

    return make


@pytest.mark.filterwarnings("ignore:a worker died")
def test_an_image_over_which_workers_die_is_reported(tmp_path: Path, images: Path, fake: Callable[..., Fake]) -> None:
    deadly = fake(lambda items: any(item.path == "005.png" for item in items))
    report = run(images, tmp_path, workers=2)
    assert [(failure.path, failure.reason) for failure in report.failed][1:] == [("005.png", GIVEN_UP)]
    assert report.done == 7
    over = [batch for batch in deadly.asked if "005.png" in batch]
    assert [len(batch) for batch in over] == [4, 4, 1]
    assert deadly.made == deadly.closed == 2 + 3


@pytest.mark.filterwarnings("ignore:a worker died")
def test_workers_that_always_die_end_the_run(
    tmp_path: Path, images: Path, fake: Callable[..., Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(lambda items: True)
    with pytest.raises(Text2SamError, match="13 workers died with nothing done in between"):
        run(images, tmp_path, workers=2)
    monkeypatch.undo()
    assert run(images, tmp_path).done == 8  # no image was blamed


@pytest.mark.filterwarnings("ignore:a worker died")
@pytest.mark.parametrize("error", [CannotStart("no"), OSError("no"), Died("no")])
def test_a_worker_that_cannot_be_replaced(tmp_path: Path, images: Path, fake: Callable[..., Fake], error: Exception) -> None:
    fake(lambda items: True, error)
    with pytest.raises(Text2SamError, match=r"a worker died \(SIGKILL\) and cannot be replaced: no"):
        run(images, tmp_path, workers=2)


def test_an_interrupt_ends_all(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Process] = []

    class Seen(Process):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    monkeypatch.setattr(engine, "Process", Seen)
    running = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run(images, tmp_path, workers=2, progress=interrupt)
    assert threading.active_count() == running
    assert [process._process.returncode for process in made] == [-signal.SIGKILL] * 2


@pytest.mark.parametrize("why", ["hook", "device"])
def test_one_worker_where_there_cannot_be_more(
    tmp_path: Path, images: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    own = TextPromptedSAM(model().predictor, tiny_surgery())
    if why == "hook":
        own.generator.model.register_forward_hook(lambda *_: None)
    else:
        monkeypatch.setattr(engine, "on_cpu", lambda _: False)
    monkeypatch.setattr(engine, "Process", None)
    with pytest.warns(Text2SamWarning, match="one worker does all the work: .*(cannot be sent|only models on a CPU)"):
        run(images, tmp_path / "a", model=own, workers=2)
    run(images, tmp_path / "b", model=own, workers=None)  # nobody asked for more
    assert dataset(tmp_path / "a") == dataset(tmp_path / "b") == undisturbed


def test_little_work_starts_no_process(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PATIENCE", 60)
    monkeypatch.setattr(engine, "Process", None)
    assert run(images, tmp_path, workers=2).done == 8


def test_a_worker_ends_with_its_job() -> None:
    process = Process(os.devnull, ())
    process._send(sys.path)
    process._process.stdin.close()  # type: ignore[union-attr]
    assert process._process.wait(120) == 0
    process.close()
