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
from text2sam.annotate import ray as module
from text2sam.annotate.journal import Record
from text2sam.annotate.ray import MOST_DEATHS, TRIES, annotate_table, ray_engine, read_table
from text2sam.errors import InputError, MissingDependencyError, OutputError, Text2SamError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.export.formats import export

pytestmark = [
    # Ray Data copies its own settings, deprecated ones included
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning:ray"),
]
TABLE: dict[str, Any] = {"strategy": "paper", "zoom": False, "batch_size": 4, "part_size": 6}


# without Ray


def test_nothing_of_ray_is_imported_with_the_module() -> None:
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    names = [a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names]
    names += [str(n.module) for n in tree.body if isinstance(n, ast.ImportFrom)]
    assert not [name for name in names if name.split(".")[0] in ("ray", "pyarrow")]


def test_without_ray_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    draw(tmp_path / "images", 1)
    for call in (ray_engine, lambda: annotate_table(model, tmp_path / "images", LABELS, tmp_path / "out")):
        with pytest.raises(MissingDependencyError, match=r'pip install "text2sam\[ray\]"'):
            call()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 0},
        {"workers": 1.5},
        {"workers": True},
        {"num_gpus": -1},
        {"num_gpus": "all"},
        {"num_cpus": 0},
        {"address": 3},
    ],
)
def test_arguments_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        ray_engine(**options)


def test_an_empty_plan_starts_nothing(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(images, tmp_path / "out")
    monkeypatch.setattr(module, "_session", None)
    report = run(images, tmp_path / "out", engine=ray_engine())
    assert report.skipped == 17


# what workers do, with Ray's part played by a loop: calls at once, and whoever dies is made again and gets its task again


class Died(BaseException):
    """Stands for SIGKILL."""


class Loop:
    """In place of ``_results``: one worker, in this process."""

    def __init__(self) -> None:
        self.deaths = 0
        self.tasks = 0

    def __call__(self, cluster: Any, job: Any, tasks: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        import pyarrow as pa
        import ray

        packed = module._packed(job)
        tally = module._tally(ray)
        hand = None
        for number, task in enumerate(tasks):
            self.tasks += 1
            told = None
            while told is None:
                with contextlib.suppress(Died):
                    hand = hand or module._Hand(packed, tally, MOST_DEATHS)
                    told = hand(pa.table({"number": [number], "task": [task]}))
                if told is None:
                    hand = None
                    self.deaths += 1
                    assert self.deaths < 100, "it goes on for ever"
            answer = json.loads(told.column("told")[0].as_py())
            module._raise(answer)
            yield number, answer


class Handle:
    """An actor's handle, whose methods are called at once."""

    def __init__(self, actor: Any) -> None:
        for name in ("born", "begin", "end"):
            setattr(self, name, types.SimpleNamespace(remote=getattr(actor, name)))


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    import ray
    import torch

    threads = torch.get_num_threads()
    context = types.SimpleNamespace(get_node_id=lambda: "node", get_actor_id=lambda: "actor")
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray, "remote", lambda **_: lambda kind: types.SimpleNamespace(remote=lambda: Handle(kind())))
    found = Loop()
    monkeypatch.setattr(module, "_results", found)
    yield found
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """17 pictures and 3 broken files."""
    return draw(tmp_path_factory.mktemp("ray") / "images", 20, hostile=True)


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one process makes of them: report and dataset."""
    out = tmp_path_factory.mktemp("ray") / "one"
    return run(images, out), dataset(out)


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


def test_the_dataset_is_that_of_one_process(images: Path, undisturbed: Any, loop: Loop, tmp_path: Path) -> None:
    for number, source in enumerate((model(), dying(lambda _: False))):
        out = tmp_path / str(number)
        report = run(images, out, engine=ray_engine(), model=source)
        assert dataset(out) == undisturbed[1]
        assert report.failed == undisturbed[0].failed
        assert (report.done, report.empty) == (undisturbed[0].done, undisturbed[0].empty)


def test_embeddings_are_kept_by_workers_too(images: Path, undisturbed: Any, loop: Loop, tmp_path: Path) -> None:
    run(images, tmp_path / "out", engine=ray_engine(), embeddings=tmp_path / "kept")
    assert len(list((tmp_path / "kept").rglob("*.safetensors"))) == 17
    assert dataset(tmp_path / "out") == undisturbed[1]


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
    ("second", "error", "said"),
    [
        (lambda: TextPromptedSAM(tiny_predictor(1), tiny_surgery()), InputError, "another one than the run's: sam was"),
        (lambda: InputError("no weights"), InputError, "a worker cannot begin: no weights"),
        (lambda: ZeroDivisionError("oh"), Text2SamError, "ZeroDivisionError: oh"),
        (lambda: MissingDependencyError("timm", "this"), Text2SamError, "pip install timm"),
        (lambda: None, InputError, "must make a TextPromptedSAM, not NoneType"),
    ],
)
def test_a_worker_that_cannot_begin_says_why(
    second: Callable[[], Any], error: type[Exception], said: str, tmp_path: Path, loop: Loop
) -> None:
    there = tmp_path / "there"

    def make() -> Any:
        if not there.exists():
            there.touch()
            return model()
        made = second()
        if isinstance(made, Exception):
            raise made
        return made

    with pytest.raises(error, match=said):
        run(draw(tmp_path / "images", 1), tmp_path / "out", model=make, engine=ray_engine())


def test_a_model_that_cannot_be_sent(tmp_path: Path, loop: Loop) -> None:
    lock = threading.Lock()
    with pytest.raises(InputError, match="function that makes models cannot be sent"):
        run(draw(tmp_path / "images", 1), tmp_path / "out", model=lambda: (model(), lock)[0], engine=ray_engine())


def test_a_folder_that_other_machines_do_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def results(*_: Any) -> Iterator[Any]:
        yield 0, {"records": [Record("000.png", reason="there is no file").to_json()], "unseen": True, "node": "far"}

    monkeypatch.setattr(module, "_results", results)
    with pytest.raises(InputError, match=r"'far' does not see the folder .*images"):
        run(draw(tmp_path / "images", 1), tmp_path / "out", engine=ray_engine())


# tables


def same_images(table: Path, undisturbed: Any, out: Path, **options: Any) -> bool:
    export(read_table(table, **options), out, format="coco", labels=LABELS.names)
    same: bool = dataset(out) == undisturbed[1]
    return same


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("part-*.parquet"))}


def paths_table(file: Path, rows: list[Any], **columns: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"path": pa.array(rows, pa.string()), **columns}), file, row_group_size=7)
    return file


def test_a_folder_as_a_table(images: Path, undisturbed: Any, loop: Loop, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", list[Any]()
    report = annotate_table(model, images, LABELS, out, progress=lambda *told: seen.append(told), **TABLE)
    assert same_images(out, undisturbed, tmp_path / "coco")
    one = undisturbed[0]
    assert [(f.path, f.reason) for f in report.failed] == [(f.path, f.reason) for f in one.failed]
    assert (report.done, report.empty, dict(report.objects)) == (one.done, one.empty, dict(one.objects))
    assert json.loads((out / "_report.json").read_bytes())["done"] == 17
    assert (seen[0], seen[-1]) == ((0, 20), (20, 20))
    before = parts(out)
    assert len(before) == loop.tasks >= 3

    import pyarrow.dataset as ds

    rows = ds.dataset(out, format="parquet").to_table().to_pylist()  # hidden files and those with _ are no part of it
    assert len(rows) == 20
    [image] = [one for one in read_table(out) if one.path == "000.png"]
    [row] = [one for one in rows if one["path"] == "000.png"]
    assert [row[name] for name in ("height", "width", "status", "reason")] == [20, 30, "done", ""]
    [thing] = row["objects"]
    assert thing["segmentation"] == image.objects[0].rle
    assert (tuple(thing["bbox"]), thing["area"]) == (image.objects[0].bbox, image.objects[0].area)
    assert [one["label"] for one in row["presence"]] == ["cat", "dog"]


def test_a_table_is_carried_on(images: Path, loop: Loop, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = draw(tmp_path / "images", 12)
    annotate_table(model, folder, LABELS, out, **TABLE)
    whole, tasks = parts(out), loop.tasks
    report = annotate_table(model, folder, LABELS, out, **TABLE)
    assert (report.skipped, report.done, loop.tasks) == (12, 0, tasks)
    torn, gone = sorted(whole)[:2]
    (out / torn).write_bytes(whole[torn][:-20])
    (out / gone).unlink()
    report = annotate_table(model, folder, LABELS, out, **TABLE)
    assert loop.tasks == tasks + 2
    assert parts(out) == whole
    assert report.skipped + report.done == 12

    for k in range(6, 12):
        (folder / f"{k:03}.png").unlink()
    (out / "mine.parquet.txt").touch()
    assert annotate_table(model, folder, LABELS, out, **TABLE).images == 6
    assert [one.path for one in read_table(out)] == [f"{k:03}.png" for k in range(6)]
    assert (out / "mine.parquet.txt").exists()
    with pytest.raises(InputError, match=r"other settings: labels"):
        annotate_table(model, folder, "cat", out, **TABLE)
    (out / sorted(parts(out))[0]).unlink()
    with pytest.raises(InputError, match="another one than the run's: sam was"):
        annotate_table(TextPromptedSAM(tiny_predictor(1), tiny_surgery()), folder, LABELS, out, **TABLE)
    (out / "_text2sam.json").write_bytes(b"[]")
    with pytest.raises(InputError, match="not understood"):
        annotate_table(model, folder, LABELS, out, **TABLE)
    (out / "_text2sam.json").unlink()
    with pytest.raises(InputError, match="settings are gone"):
        annotate_table(model, folder, LABELS, out, **TABLE)
    assert annotate_table(model, folder, "cat", out, overwrite=True, **TABLE).objects.keys() == {"cat"}


def test_paths_in_a_table(images: Path, undisturbed: Any, loop: Loop, tmp_path: Path) -> None:
    names = sorted(path.name for path in images.iterdir())
    shuffled = names[::-1]
    table = paths_table(tmp_path / "a.parquet", [*shuffled, "../secret.png", None, names[0]])
    report = annotate_table(model, table, LABELS, tmp_path / "a", root=images, **TABLE)
    assert same_images(tmp_path / "a", undisturbed, tmp_path / "coco-a")
    reasons = {one.path: one.reason for one in report.failed if one.path not in dict.fromkeys(names[3::7])}
    assert sorted(reasons) == ["../secret.png", names[0], "None"]
    assert "twice" in reasons[names[0]]
    assert report.images == 23

    folder = tmp_path / "tables"  # of two files, by addresses, without a root: the paths are the names
    folder.mkdir()
    address = [f"file://{images}/{name}" for name in names]
    paths_table(folder / "2.parquet", [*address[:9], f"file://{images}/gone.png"])
    paths_table(folder / "1.parquet", address[9:])
    report = annotate_table(model, folder, LABELS, tmp_path / "b", paths="path", **TABLE)
    found = [*read_table(tmp_path / "b")]
    assert [one.path for one in found] == [f"{images}/{name}"[1:] for name in names if name not in names[3::7]]
    assert report.done == 17
    [failure] = [one for one in report.failed if one.path.endswith("gone.png")]
    assert "there is no file" in failure.reason


def test_images_in_a_table(images: Path, undisturbed: Any, loop: Loop, tmp_path: Path) -> None:
    import pyarrow as pa

    names = sorted(path.name for path in images.iterdir())
    data = [*((images / name).read_bytes() for name in names), None]
    table = paths_table(tmp_path / "t.parquet", [*names, "none.png"], data=pa.array(data, pa.binary()))
    report = annotate_table(model, table, LABELS, tmp_path / "a", content="data", paths="path", **TABLE)
    assert (report.done, len(report.failed), loop.tasks) == (17, 4, 3)  # a task for each of the row groups
    assert "holds no image" in {one.path: one.reason for one in report.failed}["none.png"]
    assert same_images(tmp_path / "a", undisturbed, tmp_path / "coco")
    for options, said in (
        ({"content": "data"}, "content needs paths"),
        ({"content": "path", "paths": "path"}, "not image files as bytes"),
        ({"paths": "name"}, "no column 'name'; it has 'path', 'data'"),
    ):
        with pytest.raises(InputError, match=said):
            annotate_table(model, table, LABELS, tmp_path / "b", **options, **TABLE)


def test_object_stores(images: Path, undisturbed: Any, loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import fs

    # file:// goes the way of s3://; a file system of one's own has paths of its own
    report = annotate_table(model, f"file://{images}", LABELS, f"file://{tmp_path}/a", **TABLE)
    assert [one.path for one in report.failed] == [one.path for one in undisturbed[0].failed]
    assert same_images(tmp_path / "a", undisturbed, tmp_path / "coco-a")
    bucket = fs.SubTreeFileSystem(os.fspath(images.parent), fs.LocalFileSystem())
    mine = fs.SubTreeFileSystem(os.fspath(tmp_path), fs.LocalFileSystem())
    annotate_table(model, images.name, LABELS, "b", filesystem=bucket, out_filesystem=mine, **TABLE)
    assert same_images(Path("b"), undisturbed, tmp_path / "coco-b", filesystem=mine)

    monkeypatch.setattr(module, "_LARGEST_IMAGE", 100)
    report = annotate_table(model, f"file://{images}", LABELS, tmp_path / "c", **TABLE)
    assert sum("more than images have" in one.reason for one in report.failed) == 17


@pytest.mark.parametrize(
    "where", ["nothing://here", "s3://key:secret@here", "s3", "/no/such/folder", "file:///no/such/folder", "no.parquet"]
)
def test_sources_that_are_none(where: str, tmp_path: Path, loop: Loop) -> None:
    with pytest.raises(InputError):
        annotate_table(model, where, LABELS, tmp_path / "out", **TABLE)
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written(images: Path, tmp_path: Path, loop: Loop) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((OutputError, InputError)):
        annotate_table(model, images, LABELS, tmp_path / "file" / "out", **TABLE)


def test_parts_with_failures_are_done_again_when_asked(tmp_path: Path, loop: Loop) -> None:
    table = paths_table(tmp_path / "t.parquet", [f"{k:03}.png" for k in range(12)])
    folder = draw(tmp_path / "images", 11)
    options = TABLE | {"root": folder}
    assert len(annotate_table(model, table, LABELS, tmp_path / "out", **options).failed) == 1
    draw(tmp_path / "more", 12)
    (tmp_path / "more" / "011.png").rename(folder / "011.png")
    report = annotate_table(model, table, LABELS, tmp_path / "out", **options)
    assert (len(report.failed), report.skipped) == (1, 11)
    report = annotate_table(model, table, LABELS, tmp_path / "out", retry_failed=True, **options)
    assert len(report.failed) == 0
    assert 0 < report.done < 12


# tables from outside


def table_of(file: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    base = {"status": "done", "reason": "", "height": 4, "width": 5, "objects": [], "presence": []}
    pq.write_table(pa.Table.from_pylist([base | row for row in rows], module._schema(pa)), file)
    return file


def thing(mask: Any, **changes: Any) -> dict[str, Any]:
    one = AnnotatedObject.from_mask("cat", mask)
    return {"label": "cat", "score": 0.5, "bbox": [9], "area": 9, "segmentation": one.rle} | changes


def test_tables_read_back_sorted_whatever_they_are_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GROUPS_KEPT", 1)
    mask = np.eye(4, 5) > 0
    table_of(tmp_path / "x.parquet", [{"path": "c", "objects": [thing(mask)]}, {"path": "a"}])
    table_of(tmp_path / "y.parquet", [{"path": "b"}, {"path": "0", "status": "failed", "height": None}])
    (tmp_path / ".hidden.parquet").write_bytes(b"no")
    found = [*read_table(tmp_path)]
    assert [one.path for one in found] == ["a", "b", "c"]
    assert found[2] == AnnotatedImage("c", 4, 5, (AnnotatedObject.from_mask("cat", mask, 0.5),))
    assert [one.path for one in read_table(tmp_path / "y.parquet")] == ["b"]


@pytest.mark.parametrize(
    "rows",
    [
        [{"path": "../a"}],
        [{"path": "/etc/passwd"}],
        [{"path": None}],
        [{"path": "a"}, {"path": "a"}],
        [{"path": "a", "status": "fine"}],
        [{"path": "a", "height": None}],
        [{"path": "a", "height": 0}],
        [{"path": "a", "objects": None}],
        [{"path": "a", "objects": [None]}],
        [{"path": "a", "objects": [thing(np.eye(5, 5) > 0)]}],
        [{"path": "a", "objects": [thing(np.eye(4, 5) > 0, score=float("nan"))]}],
        [{"path": "a", "objects": [thing(np.eye(4, 5) > 0, label="")]}],
        [{"path": "a", "objects": [thing(np.eye(4, 5) > 0, segmentation={"size": [4, 5], "counts": "zz"})]}],
        [{"path": "a", "objects": [thing(np.eye(4, 5) > 0, segmentation=None)]}],
    ],
)
def test_tables_that_lie(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    table = table_of(tmp_path / "t.parquet", rows)
    with pytest.raises(InputError):
        list(read_table(table))


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


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_but_our_errors_comes_out_of_a_broken_table(tmp_path: Path, data: Any) -> None:
    file = tmp_path / "t.parquet"
    whole = table_of(file, [{"path": "a", "objects": [thing(np.eye(4, 5) > 0)]}]).read_bytes()
    broken = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=3)):
        broken[place] = data.draw(st.integers(0, 255))
    file.write_bytes(
        data.draw(st.one_of(st.binary(max_size=40), st.just(bytes(broken[: data.draw(st.integers(0, len(whole)))]))))
    )
    with contextlib.suppress(Text2SamError):
        list(read_table(file))
    with contextlib.suppress(Text2SamError):
        module._read_summary(module._place(os.fspath(tmp_path), None), file.name)


# Ray itself


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Ray with room for two workers, started and stopped as ``ray_engine`` does. It takes five seconds of a core, and so does
    each worker, for what they import; hence as few as can be."""
    variable = "RAY_USAGE_STATS_ENABLED"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(variable, raising=False)
        patch.setattr(module, "_STORE", 100 << 20)
        with module._session(module._Cluster(workers=2, address="local")) as ray:
            assert os.environ[variable] == "0"
            yield ray
        assert not ray.is_initialized()
        assert variable not in os.environ


def stop_at(count: int) -> Callable[[int, int], None]:
    """Interrupts the driver when so many images are done."""

    def progress(done: int, total: int) -> None:
        if done >= count:
            raise KeyboardInterrupt

    return progress


def worker_model(folder: Path, deadly: bool = False) -> Callable[[], TextPromptedSAM]:
    """Makes models in other processes. One of two kills itself in the middle, with a batch in hand."""
    here, driver = os.fspath(Path(__file__).parent), os.getpid()

    def make() -> TextPromptedSAM:
        sys.path[:0] = [here, os.path.dirname(here)]
        from jobs import model

        built = TextPromptedSAM(model().predictor, model().surgery)
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


def test_two_workers_of_which_one_is_killed(cluster: Any, images: Path, undisturbed: Any, tmp_path: Path) -> None:
    out, folder = tmp_path / "out", tmp_path / "workers"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        run(images, out, workers=1, progress=stop_at(1))  # what this process has done stays
    report = run(images, out, model=worker_model(folder, deadly=True), engine=ray_engine(workers=2))
    assert (folder / "killed").exists()
    assert len(list(folder.glob("*.pid"))) == 3  # two, and one in place of the other
    assert dataset(out) == undisturbed[1]
    assert report.failed == undisturbed[0].failed
    assert 0 < report.skipped < 17
    assert cluster.is_initialized()


def test_a_driver_that_is_interrupted(
    cluster: Any, images: Path, undisturbed: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        annotate_table(worker_model(tmp_path), images, LABELS, out, workers=1, progress=stop_at(1), **TABLE)
    before = parts(out)
    assert before
    request.getfixturevalue("loop")  # not Ray once more, it takes long
    report = annotate_table(model, images, LABELS, out, **TABLE)
    assert before.items() <= parts(out).items()
    assert same_images(out, undisturbed, tmp_path / "coco")
    assert report.failed == undisturbed[0].failed
    assert report.skipped > 0
