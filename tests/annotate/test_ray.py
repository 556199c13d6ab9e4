"""Ray: the same dataset as one process makes, whoever dies on the way; tables of images that lie elsewhere."""

from __future__ import annotations

import ast
import contextlib
import json
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
from helpers import picture, tiny_predictor, tiny_surgery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jobs import LABELS, dataset, draw, model, run

from text2sam import TextPromptedSAM
from text2sam.annotate import parquet
from text2sam.annotate import ray as module
from text2sam.annotate.parquet import annotate_table, read_table
from text2sam.annotate.ray import MOST_DEATHS, TRIES, Cluster, ray_engine
from text2sam.errors import InputError, MissingDependencyError, Text2SamError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.export.formats import export
from text2sam.options import Options

pytestmark = [
    # Ray Data copies its own settings, deprecated ones included
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """17 pictures and 3 broken files."""
    return draw(tmp_path_factory.mktemp("ray") / "images", 20, hostile=True)


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one process makes of them, an image at a time: report and dataset."""
    out = tmp_path_factory.mktemp("ray") / "one"
    return run(images, out, batch_size=1), dataset(out)


# without Ray


def test_nothing_of_ray_is_imported_with_the_module() -> None:
    for file_of in (module, parquet):
        tree = ast.parse(Path(file_of.__file__).read_text(encoding="utf-8"))
        names = [a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names]
        names += [str(n.module) for n in tree.body if isinstance(n, ast.ImportFrom)]
        assert not [name for name in names if name.split(".")[0] in ("ray", "pyarrow")]


def test_without_ray_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for call in (ray_engine, lambda: annotate_table(model, tmp_path, LABELS, tmp_path / "out")):
        with pytest.raises(MissingDependencyError, match=r'pip install "text2sam\[ray\]"'):
            call()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"workers": 1.5}, {"workers": True}, {"num_gpus": -1}, {"num_gpus": "all"}, {"num_cpus": 0}]
)
def test_arguments_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        ray_engine(**options)


def test_an_empty_plan_starts_nothing(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(images, tmp_path / "out")
    monkeypatch.setattr(module, "_session", None)
    assert run(images, tmp_path / "out", engine=ray_engine()).skipped == 17


# what workers do, with Ray's part played by a loop: calls at once, and whoever dies is made again and gets its task again


class Died(BaseException):
    """Stands for SIGKILL."""


class Loop:
    """In place of ``_results``: one worker, in this process."""

    def __init__(self) -> None:
        self.deaths = 0

    def __call__(self, cluster: Any, job: Any, tasks: list[str]) -> Iterator[tuple[int, list[Any]]]:
        import pyarrow as pa
        import ray

        packed, tally = ray.cloudpickle.dumps(job), module._tally(ray)
        hand = None
        for number, task in enumerate(tasks):
            answer = None
            while answer is None:
                try:
                    hand = hand or module.Hand(packed, tally, MOST_DEATHS)
                    answer = hand(pa.table({"number": [number], "task": [task]}))
                except Died:
                    hand = None
                    self.deaths += 1
                    assert self.deaths < 100, "it goes on for ever"
                except Exception:
                    raise Text2SamError(tally.fail.remote("")) from None
            yield number, json.loads(answer.column("records")[0].as_py())


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    import ray
    import torch

    def actor(**_: Any) -> Any:
        def make(kind: type) -> Any:
            held = kind()
            handle = {n: types.SimpleNamespace(remote=getattr(held, n)) for n in ("born", "begin", "end", "fail")}
            return types.SimpleNamespace(remote=lambda: types.SimpleNamespace(**handle))

        return make

    threads = torch.get_num_threads()
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: types.SimpleNamespace(get_actor_id=lambda: "actor"))
    monkeypatch.setattr(ray, "remote", actor)
    found = Loop()
    monkeypatch.setattr(module, "_results", found)
    yield found
    torch.set_num_threads(threads)


def dying(when: Callable[[list[Any]], bool]) -> Callable[[], TextPromptedSAM]:
    """Makes models that die when they are given certain images, which the driver's is not."""

    def make() -> TextPromptedSAM:
        built = TextPromptedSAM(tiny_predictor(), tiny_surgery())
        encode = built.encode

        def encoding(pictures: Any, **options: Any) -> Any:
            if when(pictures):
                raise Died
            return encode(pictures, **options)

        built.encode = encoding  # type: ignore[method-assign]
        return built

    return make


def test_the_dataset_is_that_of_one_process(images: Path, loop: Loop, tmp_path: Path) -> None:
    report = run(images, tmp_path / "one")
    for number, source in enumerate((dying(lambda _: False), model)):
        out = tmp_path / str(number)
        again = run(images, out, engine=ray_engine(), model=source, embeddings=tmp_path / "kept")
        assert dataset(out) == dataset(tmp_path / "one")
        assert (again.failed, again.done, again.empty) == (report.failed, report.done, report.empty)
    assert len(list((tmp_path / "kept").rglob("*.safetensors"))) == 17


def test_an_image_that_kills_every_worker_costs_its_own_record(tmp_path: Path, loop: Loop) -> None:
    folder = draw(tmp_path / "images", 9)
    PIL.Image.fromarray(picture(1, 33, 30)).save(folder / "004.png")
    killer = dying(lambda pictures: any(len(one) == 33 for one in pictures))
    report = run(folder, tmp_path / "out", model=killer, engine=ray_engine())
    [failure] = report.failed
    assert failure.path == "004.png"
    assert "every worker that took it on died" in failure.reason
    assert (report.done, loop.deaths) == (8, 2 * TRIES)


def test_workers_that_always_die_end_the_run(tmp_path: Path, loop: Loop) -> None:
    folder = draw(tmp_path / "images", 9)
    with pytest.raises(Text2SamError, match="nothing done in between, most often because memory"):
        run(folder, tmp_path / "out", model=dying(lambda _: True), engine=ray_engine())
    assert loop.deaths == MOST_DEATHS + 1
    assert run(folder, tmp_path / "out").done == 9  # none was recorded as the images' fault


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (lambda: TextPromptedSAM(tiny_predictor(1), tiny_surgery()), "another one than the run's"),
        (lambda: InputError("no weights"), "a worker cannot go on: no weights"),
        (lambda: ZeroDivisionError("oh"), "ZeroDivisionError: oh"),
        (lambda: None, "must make a TextPromptedSAM, not NoneType"),
    ],
)
def test_a_worker_that_cannot_begin_says_why(second: Callable[[], Any], said: str, tmp_path: Path, loop: Loop) -> None:
    there = tmp_path / "there"

    def make() -> Any:
        if not there.exists():
            there.touch()
            return model()
        made = second()
        if isinstance(made, Exception):
            raise made
        return made

    with pytest.raises(Text2SamError, match=said):
        run(draw(tmp_path / "images", 1), tmp_path / "out", model=make, engine=ray_engine())


def hand(**job: Any) -> Any:
    """A worker for tables in this process."""
    import ray

    given: dict[str, Any] = {"embeddings": None, "model": "", "threads": 1} | job
    packed = ray.cloudpickle.dumps(module.Job(model, LABELS, Options(strategy="paper"), **given))
    return parquet.TableHand(packed, module._tally(ray), MOST_DEATHS)


def test_rows_of_a_table(images: Path, loop: Loop, tmp_path: Path) -> None:
    import pyarrow as pa

    content = [(images / "000.png").read_bytes(), b"no picture", None, (images / "001.png").read_bytes()]
    names = ["s3://bucket/a.png", "./b.png", "/c.png", "../d.png"]
    rows = hand(columns=["name", "data"])(pa.table({"name": names, "data": content})).to_pylist()
    assert {row["path"]: row["status"] for row in rows} == {
        "bucket/a.png": "done",
        "b.png": "failed",
        "c.png": "failed",
        "../d.png": "failed",
    }
    reasons = {row["path"]: row["reason"] for row in rows}
    assert "no image" in reasons["c.png"]
    assert "'..'" in reasons["../d.png"]
    # paths and addresses, one of them twice, one that is finished, one that is gone
    paths = [f"{images}/000.png", f"file://{images}/000.png", f"{images}/001.png", f"file://{images}/gone.png"]
    finished = frozenset({f"{images}/001.png"[1:]})
    rows = hand(columns=["path"], finished=finished)(pa.table({"path": paths})).to_pylist()
    assert [row["status"] for row in rows] == ["done", "failed"]
    assert "cannot be fetched" in rows[1]["reason"]
    assert hand(columns=["path"], finished=finished)(pa.table({"path": paths[2:3]})).num_rows == 0


# tables from outside


def table_of(file: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    base = {"status": "done", "reason": "", "height": 4, "width": 5, "objects": [], "presence": [], "model": ""}
    pq.write_table(pa.Table.from_pylist([base | row for row in rows], parquet._schema()), file)
    return file


def thing(mask: Any, **changes: Any) -> dict[str, Any]:
    one = AnnotatedObject.from_mask("cat", mask)
    return {"label": "cat", "score": 0.5, "bbox": [9], "area": 9, "segmentation": one.rle} | changes


def test_tables_read_back_sorted(tmp_path: Path) -> None:
    mask = np.eye(4, 5) > 0
    table_of(tmp_path / "x.parquet", [{"path": "c", "objects": [thing(mask)]}, {"path": "a"}])
    table_of(tmp_path / "y.parquet", [{"path": "b"}, {"path": "0", "status": "failed", "height": None}])
    table_of(tmp_path / "z.parquet", [{"path": "c", "status": "failed"}, {"path": "b"}])
    found = [*read_table(tmp_path)]
    assert [one.path for one in found] == ["a", "b", "c"]
    assert found[2] == AnnotatedImage("c", 4, 5, (AnnotatedObject.from_mask("cat", mask, 0.5),))
    assert [one.path for one in read_table(tmp_path / "y.parquet")] == ["b"]


@pytest.mark.parametrize(
    "row",
    [
        {"path": "../a"},
        {"path": "/etc/passwd"},
        {"path": None},
        {"height": None},
        {"height": 0},
        {"objects": None},
        {"objects": [None]},
        {"objects": [thing(np.eye(5, 5) > 0)]},
        {"objects": [thing(np.eye(4, 5) > 0, score=float("nan"))]},
        {"objects": [thing(np.eye(4, 5) > 0, label="")]},
        {"objects": [thing(np.eye(4, 5) > 0, segmentation={"size": [4, 5], "counts": "zz"})]},
        {"objects": [thing(np.eye(4, 5) > 0, segmentation=None)]},
    ],
)
def test_tables_that_lie(row: dict[str, Any], tmp_path: Path) -> None:
    table = table_of(tmp_path / "t.parquet", [{"path": "a"} | row])
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


@pytest.mark.parametrize("where", ["nothing://here", "s3"])
def test_places_that_are_none(where: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        list(read_table(where if "://" in where else tmp_path / where))


def test_sources_that_are_none(tmp_path: Path) -> None:
    table = table_of(tmp_path / "t.parquet", [{"path": "a"}])
    (tmp_path / "no.parquet").touch()
    for source, options, said in (
        (table, {"paths": "name"}, "has no column 'name'; it has path"),
        (table, {"content": "data"}, "no column 'data'"),
        (tmp_path / "no.parquet", {}, "cannot be read|is no Parquet file"),
        (tmp_path / "gone.parquet", {}, "no table"),
        (tmp_path / "gone", {}, "no folder"),
        ("nothing://here", {}, "cannot be reached"),
    ):
        with pytest.raises(InputError, match=said):
            annotate_table(model, source, LABELS, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_no_type_of_anyone_is_made_from_a_table(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = []

    class Theirs(pa.ExtensionType):
        def __init__(self) -> None:
            super().__init__(pa.string(), "theirs")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage: Any, data: bytes) -> Any:
            made.append(data)
            return cls()

    pa.register_extension_type(Theirs())
    try:
        table = pa.table({"path": pa.ExtensionArray.from_storage(Theirs(), pa.array(["a"])), "status": ["done"]})
        pq.write_table(table, tmp_path / "t.parquet")
        made.clear()
        with pytest.raises(InputError, match="extension types"):
            list(read_table(tmp_path / "t.parquet"))
        assert made == []
        pq.ParquetFile(tmp_path / "t.parquet").close()
        assert made  # so it would have been
    finally:
        pa.unregister_extension_type("theirs")


# Ray itself


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Ray with room for two workers, started and stopped as ``ray_engine`` does. It takes five seconds of a core, and so does
    each worker, for what they import; hence as few as can be."""
    variable = "RAY_USAGE_STATS_ENABLED"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(variable, raising=False)
        patch.setattr(module, "_STORE", 100 << 20)
        with module._session(Cluster(workers=2, address="local")) as ray:
            assert os.environ[variable] == "0"
            yield ray
        assert not ray.is_initialized()
        assert variable not in os.environ


def worker_model(folder: Path, deadly: bool = False) -> Callable[[], TextPromptedSAM]:
    """Makes models in other processes. One of two kills itself in the middle, with a batch in hand."""
    here, driver = os.fspath(Path(__file__).parent), os.getpid()

    def make() -> TextPromptedSAM:
        sys.path[:0] = [here, os.path.dirname(here)]
        from jobs import model

        built = TextPromptedSAM(model().predictor, model().generator)
        if os.getpid() == driver:
            return built
        (folder / f"{os.getpid()}.pid").touch()
        encode, calls = built.encode, []

        def encoding(pictures: Any, **options: Any) -> Any:
            calls.append(len(pictures))
            while deadly and len(list(folder.glob("*.pid"))) < 2:  # both are to have begun
                time.sleep(0.05)
            if deadly and len(calls) == 2:
                with contextlib.suppress(FileExistsError):
                    (folder / "killed").touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
            return encode(pictures, **options)

        built.encode = encoding  # type: ignore[method-assign]
        return built

    return make


def test_two_workers_of_which_one_is_killed(cluster: Any, images: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "out", tmp_path / "workers"
    folder.mkdir()

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    report = run(images, tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        run(images, out, workers=1, progress=stop)  # what this process has done stays
    again = run(images, out, model=worker_model(folder, deadly=True), engine=ray_engine(workers=2))
    assert (folder / "killed").exists()
    assert len(list(folder.glob("*.pid"))) == 3  # two, and one in place of the other
    assert dataset(out) == dataset(tmp_path / "one")
    assert again.failed == report.failed
    assert 0 < again.skipped < 17
    assert cluster.is_initialized()


def same_images(table: Path, undisturbed: Any, out: Path) -> bool:
    export(read_table(table), out, format="coco", labels=LABELS.names)
    return bool(dataset(out) == undisturbed[1])


def test_a_folder_as_a_table_of_which_a_worker_is_killed(cluster: Any, images: Path, undisturbed: Any, tmp_path: Path) -> None:
    out, folder = tmp_path / "out", tmp_path / "workers"
    folder.mkdir()
    two = Cluster(workers=2)
    report = annotate_table(worker_model(folder, deadly=True), images, LABELS, out, strategy="paper", cluster=two)
    assert (folder / "killed").exists()
    assert same_images(out, undisturbed, tmp_path / "coco")
    one = undisturbed[0]
    assert (report.done, report.empty, dict(report.objects)) == (one.done, one.empty, dict(one.objects))
    assert [failure.path for failure in report.failed] == [failure.path for failure in one.failed]
    assert json.loads((out / "_report.json").read_bytes())["done"] == 17

    # another run has nothing to do; of a torn file and one that is gone the images are done again
    with pytest.raises(InputError, match="other settings: labels"):
        annotate_table(model, images, "cat", out, strategy="paper")
    parts = sorted(out.glob("*.parquet"))
    lost = [row.path for row in read_table(parts[0])]
    parts[0].write_bytes(parts[0].read_bytes()[:-20])
    (out / "mine.txt").touch()
    again = annotate_table(worker_model(folder), images, LABELS, out, strategy="paper", cluster=Cluster(workers=1))
    assert (again.done, again.skipped) == (len(lost), 17 - len(lost))
    assert same_images(out, undisturbed, tmp_path / "again")
    assert (out / "mine.txt").exists()


def test_images_in_a_table(cluster: Any, images: Path, undisturbed: Any, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = sorted(path.name for path in images.iterdir())
    data = pa.array([(images / name).read_bytes() for name in names], pa.binary())
    pq.write_table(pa.table({"name": names, "data": data, "more": [1] * len(names)}), tmp_path / "t.parquet", row_group_size=7)
    how: dict[str, Any] = {"paths": "name", "content": "data", "strategy": "paper", "cluster": Cluster(workers=1)}
    report = annotate_table(worker_model(tmp_path), tmp_path / "t.parquet", LABELS, tmp_path / "out", **how)
    assert (report.done, len(report.failed)) == (17, 3)
    assert same_images(tmp_path / "out", undisturbed, tmp_path / "coco")


def test_a_model_that_cannot_be_sent(cluster: Any, tmp_path: Path) -> None:
    lock = threading.Lock()
    with pytest.raises(InputError, match="cannot be sent to other processes"):
        run(draw(tmp_path / "images", 1), tmp_path / "out", model=lambda: (model(), lock)[0], engine=ray_engine(workers=1))
