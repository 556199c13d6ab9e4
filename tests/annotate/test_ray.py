"""Ray: the same dataset as one process makes, whoever dies on the way; images that lie elsewhere, and Parquet."""

from __future__ import annotations

import ast
import contextlib
import logging
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from helpers import picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jobs import LABELS, dataset, draw, run

from text2sam import SimilarityMap, TextPromptedSAM
from text2sam.annotate import parquet
from text2sam.annotate import ray as module
from text2sam.annotate.parquet import annotate_table, read_table
from text2sam.annotate.ray import MOST_STARTS, TRIES, ray_engine
from text2sam.errors import InputError, MissingDependencyError, Text2SamError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.export.formats import export
from text2sam.options import Options

pytestmark = [
    # Ray Data copies its own settings, deprecated ones included
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Toy:
    """Both halves of a cheap model that finds what is brighter than the mean. ``before`` is called with each image."""

    def __init__(self, before: Callable[[Any], object] = lambda _: None) -> None:
        self.before = before

    def encode(self, images: Any) -> Any:
        for image in images:
            self.before(image)
        return [image[::8, ::8].mean(2) for image in images]

    def maps(self, features: Any, texts: Any, *, against: Any = None) -> Any:
        return [SimilarityMap(features.astype(np.float32), text) for text in texts]

    def set_image(self, image: Any) -> None:
        self.mask = image.mean(2) > image.mean()

    def predict(self, **_: Any) -> Any:
        return np.stack([self.mask] * 3), np.array([0.2, 0.5, 0.4], np.float32), np.zeros((3, 8, 8), np.float32)


def toy(before: Callable[[Any], object] = lambda _: None) -> TextPromptedSAM:
    return TextPromptedSAM(Toy(), Toy(before))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """9 pictures, of which ``004.png`` is 33 pixels high, and a broken file."""
    folder = draw(tmp_path_factory.mktemp("ray") / "images", 10, hostile=True)
    PIL.Image.fromarray(picture(1, 33, 30)).save(folder / "004.png")
    return folder


# without Ray


def test_nothing_of_ray_is_imported_with_the_module() -> None:
    for file_of in (module, parquet):
        tree = ast.parse(Path(file_of.__file__).read_text(encoding="utf-8"))
        names = [a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names]
        names += [str(n.module) for n in tree.body if isinstance(n, ast.ImportFrom)]
        assert not [name for name in names if name.split(".")[0] in ("ray", "pyarrow")]


def test_without_ray_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for call in (ray_engine, lambda: annotate_table(toy, tmp_path, LABELS, tmp_path / "out")):
        with pytest.raises(MissingDependencyError, match=r'pip install "text2sam\[ray\]"'):
            call()


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": 1.5}, {"num_gpus": -1}, {"num_gpus": "all"}])
def test_arguments_that_make_no_sense(options: dict[str, Any], images: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        run(images, tmp_path / "out", engine=ray_engine(**options))


# workers, with a loop in place of Ray: it calls them at once, and makes one that dies again, with the same task


class Died(BaseException):
    """Stands for SIGKILL."""


class Loop:
    """Stands for Ray: one worker in this process, with what the module uses of ``ray``, ``ray.data`` and data sets."""

    def __init__(self) -> None:
        import ray

        self.data, self.cloudpickle, self.deaths, self.get = self, ray.cloudpickle, 0, ray.get

    def remote(self, **_: Any) -> Any:
        def make(kind: type) -> Any:
            held = kind()
            methods = {name: types.SimpleNamespace(remote=getattr(held, name)) for name in ("begin", "end")}
            return types.SimpleNamespace(remote=lambda: types.SimpleNamespace(**methods))

        return make

    @contextlib.contextmanager
    def hands(self, job: Any, *_: Any) -> Iterator[Any]:
        self.packed = self.cloudpickle.dumps((job, os.getcwd(), {}, 10**6))
        yield self, self.work

    def from_items(self, rows: Any, **_: Any) -> Any:
        return rows

    def work(self, rows: Any, kind: Any, batch_size: int) -> Loop:
        self.rows, self.kind = rows, kind
        return self

    def hand(self, kind: Any = module.Hand) -> Any:
        return kind(self.packed, module._tally(self), MOST_STARTS)

    def iter_batches(self, **_: Any) -> Iterator[Any]:
        import pyarrow as pa

        tally, hand = module._tally(self), None
        for row in self.rows:
            answer = None
            while answer is None:
                try:
                    hand = hand or self.kind(self.packed, tally, MOST_STARTS)
                    answer = hand(pa.Table.from_pylist([row]))
                except Died:
                    hand = None
                    self.deaths += 1
                    assert self.deaths < 100, "it goes on for ever"
            yield answer


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    import ray

    threads, most, made = torch.get_num_threads(), PIL.Image.MAX_IMAGE_PIXELS, Loop()
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(module, "hands", made.hands)
    yield made
    torch.set_num_threads(threads)
    PIL.Image.MAX_IMAGE_PIXELS = most


def dying(when: Callable[[Any], bool]) -> Callable[[], TextPromptedSAM]:
    """Makes models whose process dies of certain images."""

    def before(image: Any) -> None:
        if when(image):
            raise Died

    return lambda: toy(before)


def test_the_dataset_and_the_embeddings_are_those_of_one_process(images: Path, loop: Loop, tmp_path: Path) -> None:
    report = run(images, tmp_path / "one")
    again = run(images, tmp_path / "ray", engine=ray_engine(), embeddings=tmp_path / "kept")
    assert dataset(tmp_path / "ray") == dataset(tmp_path / "one")
    assert (again.failed, again.done, again.empty) == (report.failed, report.done, report.empty)
    assert len(list((tmp_path / "kept").rglob("*.safetensors"))) == report.done + report.empty


def test_an_image_that_kills_every_worker_costs_its_own_record(images: Path, loop: Loop, tmp_path: Path) -> None:
    report = run(images, tmp_path / "out", model=dying(lambda image: len(image) == 33), engine=ray_engine())
    broken, failure = sorted(report.failed, key=lambda failure: failure.path)
    assert (broken.path, failure.path) == ("003.png", "004.png")
    assert "every worker that processed it died" in failure.reason
    assert (report.done, loop.deaths) == (8, 2 * TRIES)


def test_workers_that_always_die_end_the_run(loop: Loop, tmp_path: Path) -> None:
    images = draw(tmp_path / "images", 9)
    with pytest.raises(Text2SamError, match="nothing done in between, most often because memory"):
        run(images, tmp_path / "out", model=dying(lambda _: True), engine=ray_engine())
    assert loop.deaths == MOST_STARTS + 1
    assert run(images, tmp_path / "out", model=toy()).done == 9  # no image was blamed


@pytest.mark.parametrize(
    ("second", "message"),
    [(lambda: TextPromptedSAM(Toy(), Toy(), presence_threshold=0.7), "model is another"), (lambda: None, "not NoneType")],
)
def test_a_worker_whose_model_is_none_or_another(second: Any, message: str, images: Path, tmp_path: Path, loop: Loop) -> None:
    made = []

    def make() -> Any:
        made.append(toy() if not made else second())
        return made[-1]

    with pytest.raises(Text2SamError, match=message):
        run(images, tmp_path / "out", model=make, engine=ray_engine())


def test_rows_of_a_table(images: Path, loop: Loop) -> None:
    import pyarrow as pa

    one, two = ((images / name).read_bytes() for name in ("000.png", "001.png"))
    content = {"s3://bucket/a.png": one, "./b.png": b"no picture", "/c.png": None, "../d.png": two, "bucket/a.png": two}
    content |= {"bucket/done.png": one, "e.png": two}
    job = module.Job(toy, LABELS, Options(), finished=frozenset({"bucket/done.png"}), settings="these")
    with loop.hands(job):
        table = loop.hand(parquet._TableHand)(
            pa.table({"path": [*content], "bytes": pa.array([*content.values()], pa.binary())})
        )
    rows = {row["path"]: row for row in table.to_pylist()}
    expected = {"bucket/a.png": "done", "b.png": "failed", "c.png": "failed", "../d.png": "failed", "e.png": "done"}
    assert {path: row["status"] for path, row in rows.items()} == expected
    assert "'..'" in rows["../d.png"]["reason"]
    assert rows["bucket/a.png"]["height"] == rows["e.png"]["height"] == 21  # the later content of a name that comes twice
    thing = rows["e.png"]["objects"][0]
    found = AnnotatedObject(thing["label"], (21, 30), thing["segmentation"]["counts"], thing["score"])
    assert (thing["bbox"], thing["area"]) == (list(found.bbox), found.area)
    assert {entry["label"]: entry["value"] for entry in rows["e.png"]["presence"]} == {"cat": 1.0, "dog": 1.0}
    assert rows["e.png"]["settings"] == "these"


# tables from outside


def table_of(file: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    base = {"status": "done", "reason": "", "height": 4, "width": 5, "objects": [], "presence": [], "model": ""}
    pq.write_table(pa.Table.from_pylist([base | row for row in rows], parquet._schema()), file)
    return file


def thing(mask: Any, **changes: Any) -> dict[str, Any]:
    item = AnnotatedObject.from_mask("cat", mask)
    return {"label": "cat", "score": 0.5, "bbox": [9], "area": 9, "segmentation": item.rle} | changes


def test_tables_read_back_sorted_without_failures_and_torn_files(tmp_path: Path) -> None:
    mask = np.eye(4, 5) > 0
    table_of(tmp_path / "x.parquet", [{"path": "c", "objects": [thing(mask)]}, {"path": "a"}])
    whole = table_of(tmp_path / "y.parquet", [{"path": "b"}, {"path": "0", "status": "failed", "height": None}])
    table_of(tmp_path / "z.parquet", [{"path": "c", "status": "failed"}, {"path": "b"}])
    (tmp_path / "torn.parquet").write_bytes(whole.read_bytes()[:-20])
    found = [*read_table(tmp_path)]
    assert [image.path for image in found] == ["a", "b", "c"]
    assert found[2] == AnnotatedImage("c", 4, 5, (AnnotatedObject.from_mask("cat", mask, 0.5),))
    assert [image.path for image in read_table(whole)] == ["b"]
    for place in (tmp_path / "torn.parquet", tmp_path / "gone", "nothing://here"):
        with pytest.raises(InputError, match=r"no table|cannot be reached"):
            next(read_table(place))


@pytest.mark.parametrize(
    "row",
    [
        {"path": "../a"},
        {"path": None},
        {"height": None},
        {"objects": None},
        {"objects": [None]},
        {"objects": [thing(np.eye(5, 5) > 0)]},
        {"objects": [thing(np.eye(4, 5) > 0, score=float("nan"))]},
        {"objects": [thing(np.eye(4, 5) > 0, segmentation={"size": [4, 5], "counts": "zz"})]},
        {"objects": [thing(np.eye(4, 5) > 0, segmentation=None)]},
    ],
)
def test_tables_that_lie(row: dict[str, Any], tmp_path: Path) -> None:
    table = table_of(tmp_path / "t.parquet", [{"path": "a"} | row, {"path": "b"}])
    with pytest.raises(InputError):
        list(read_table(table))


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_but_our_errors_comes_out_of_a_broken_table(tmp_path: Path, data: Any) -> None:
    file = tmp_path / "t.parquet"
    whole = table_of(file, [{"path": "a", "objects": [thing(np.eye(4, 5) > 0)]}]).read_bytes()
    broken = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=3)):
        broken[place] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(broken[: data.draw(st.integers(0, len(whole)))]))
    with contextlib.suppress(Text2SamError):
        list(read_table(file))


def test_no_table_makes_python_unpickle(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray.data  # noqa: F401  registers types that hold pickles
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray

    class Bomb:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    paths = ArrowPythonObjectArray.from_objects([Bomb()])
    pq.write_table(pa.table({"path": paths, "status": ["done"]}), tmp_path / "t.parquet")
    with contextlib.suppress(InputError):
        list(read_table(tmp_path / "t.parquet"))
    assert not (tmp_path / "exploded").exists()
    pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert (tmp_path / "exploded").exists()  # so it would have


# Ray itself


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Ray with two workers, since each imports for five seconds."""
    import ray

    ray.init(
        num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers need not import what tests do
    yield ray
    ray.shutdown()


def killing(folder: Path, workers: int) -> Callable[[], TextPromptedSAM]:
    """Makes models in other processes. When all have begun, one kills itself over its second image."""
    driver = os.getpid()
    folder.mkdir()

    def make() -> TextPromptedSAM:
        begun = []

        def before(image: Any) -> None:
            if os.getpid() == driver:
                return
            begun.append((folder / f"{os.getpid()}.pid").touch())
            while len(list(folder.glob("*.pid"))) < workers:
                time.sleep(0.05)
            if len(begun) == 2:
                with contextlib.suppress(FileExistsError):
                    (folder / "killed").touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)

        return toy(before)

    return make


def test_two_workers_of_which_one_is_killed(cluster: Any, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    how: dict[str, Any] = {"batch_size": 2}
    report = run(images, tmp_path / "one", model=toy(), **how)
    with pytest.raises(KeyboardInterrupt):
        run(images, out, model=toy(), progress=stop, **how)  # what this process has done stays
    again = run(images, out, model=killing(tmp_path / "workers", 2), engine=ray_engine(workers=2), **how)
    assert (tmp_path / "workers/killed").exists()
    assert len(list((tmp_path / "workers").glob("*.pid"))) == 3  # two, and one in place of the other
    assert dataset(out) == dataset(tmp_path / "one")
    assert again.failed == report.failed
    assert 0 < again.skipped < report.images
    assert cluster.is_initialized()


def test_tables_of_which_a_worker_is_killed_and_a_file_is_lost(cluster: Any, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = run(images, tmp_path / "one", model=toy(), batch_size=1)

    def same() -> bool:
        export(read_table(out), tmp_path / "coco", format="coco", labels=LABELS.names)
        return dataset(tmp_path / "coco") == dataset(tmp_path / "one")

    count = annotate_table(killing(tmp_path / "workers", 1), images, LABELS, out, strategy="paper", workers=1)
    assert (tmp_path / "workers/killed").exists()
    assert count == {"done": report.done, "failed": len(report.failed)}
    assert same()

    # another run does the images of a file that was torn, and those that failed
    with pytest.raises(InputError, match="other settings: labels"):
        annotate_table(toy, images, "cat", out, strategy="paper")
    torn = max(out.glob("*.parquet"), key=lambda file: len([*read_table(file)]))
    lost = [image.path for image in read_table(torn)]
    torn.write_bytes(torn.read_bytes()[:-20])
    seen = tmp_path / "seen"
    seen.mkdir()
    names = [path for path in sorted(images.glob("*.png")) if path.name != "003.png"]
    rows = [{"path": os.fspath(path.relative_to(images)), "bytes": path.read_bytes()} for path in names]
    source = cluster.data.from_items(rows)
    again = annotate_table(
        lambda: toy(lambda image: (seen / f"{image.mean()}").touch()), source, LABELS, out, strategy="paper", workers=1
    )
    assert again == count
    assert len(list(seen.iterdir())) == len(lost) < report.done
    assert same()


def test_what_goes_wrong_in_a_worker_or_on_the_way(cluster: Any, images: Path, tmp_path: Path) -> None:
    lock = threading.Lock()
    with pytest.raises(InputError, match="cannot be sent to other processes"):
        run(images, tmp_path / "out", model=lambda: (toy(), lock)[0], engine=ray_engine(workers=1))
    driver = os.getpid()

    def make() -> TextPromptedSAM:
        if os.getpid() != driver:
            raise InputError("no weights")
        return toy()

    with pytest.raises(Text2SamError, match="a worker cannot go on: no weights"):
        run(images, tmp_path / "out", model=make, engine=ray_engine(workers=1))
