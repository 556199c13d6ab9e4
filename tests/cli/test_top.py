"""The top of the command line: names of files, output, errors, plug-ins, help."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import PIL.Image
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from standins import Model, failed, run

from text2sam import __version__, errors, tables
from text2sam.cli import common, output

HOSTILE = ["../../x", "a/b", "日本語", "x" * 300, "é" * 300, "..\\..\\x", "CON x", "a\nb", "C:x", "~x", "-x", "x*?|<>"]


# names of files


@pytest.mark.parametrize("text", [*HOSTILE, "", ".", "..", "/", "\ud800", "a\x00b", " . ", "\u202e", "℀", "…"])
def test_slug_is_a_safe_part_of_a_name(text: str) -> None:
    name = common.slug(text)
    assert name
    assert len(name.encode()) <= 80
    assert not set(name) & set('/\\.:*?"<>|~\x00\n ')
    assert name.isprintable()
    assert not name.startswith("-")
    assert name == common.slug(name)


@given(st.lists(st.text(max_size=120), max_size=12))
def test_stems_of_any_texts_are_safe_and_differ(texts: list[str]) -> None:
    stems = common.file_stems(Path("..."), texts)
    assert len({s.casefold() for s in stems}) == len(texts)
    for stem in stems:
        assert len(stem.encode()) < 200
        assert os.path.basename(stem) == stem
        assert "." not in stem


def test_stems_tell_texts_apart() -> None:
    texts = ["a/b", "a b", "A B", "cat", "cat", "straße", "STRASSE", "", "text"]
    stems = common.file_stems(Path("x/../my photo.tar.jpg"), texts)
    assert stems[:3] == ["my-photo-tar_a-b", "my-photo-tar_a-b-2", "my-photo-tar_A-B-3"]
    assert len({s.casefold() for s in stems}) == len(texts)


def test_hostile_texts_stay_in_the_folder(photo: Path, model: Model, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    model.generator.prepare = lambda *_, **__: None  # takes long texts
    result = run("segment", photo, "--out", out, "--", *HOSTILE)
    assert result.exit_code == 0, result.output
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path != photo]
    assert len(files) == 2 * len(HOSTILE)
    assert {file.parent for file in files} == {out}


# output


def test_tables_in_pipes_are_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    name = "[bold]" + "long name " * 50
    rows = [[name, "x"], ["日本", "\x1b[2J\nb"], ["", "last"]]
    width = len(name.rstrip())
    assert tables.aligned(["text", "bb"], rows).splitlines() == [
        f"{'text':{width}}  bb",
        f"{name.rstrip()}  x",
        f"日本{'':{width - 4}}  \\x1b[2J b",
        f"{'':{width}}  last",
    ]
    assert tables.aligned(None, [["a", "b"]]) == "a  b"


# errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Text2SamError("x"), 1),
        (errors.OutputError("x"), 1),
        (errors.MissingDependencyError("pkg", "this"), 1),
        (errors.InputError("x"), 2),
        (errors.PromptError("x"), 2),
        (errors.UnsupportedModelError("x"), 2),
        (errors.WeightsError("x"), 3),
        (errors.OfflineError("x\n  /a/path\nb"), 3),
        (errors.DownloadError("\x1b[31mred"), 3),
    ],
)
def test_every_error_is_one_line_and_a_code(photo: Path, model: Model, error: Exception, code: int) -> None:
    def fail() -> None:
        raise error

    model.before = fail
    message = failed(run("segment", photo, "cat", "--json", "--out", photo.parent / "out"), code)
    assert "\x1b" not in message
    assert not (photo.parent / "out").exists()


def test_bugs_and_interrupts(photo: Path, model: Model) -> None:
    def fail() -> None:
        raise error

    model.before, error = fail, ZeroDivisionError("a bug")  # type: BaseException
    result = run("segment", photo, "cat", "--out", photo.parent / "out")
    assert isinstance(result.exception, ZeroDivisionError)
    assert result.exit_code == 1
    error = KeyboardInterrupt()
    result = run("segment", photo, "cat", "--out", photo.parent / "out")
    assert (result.exit_code, result.stderr) == (130, "text2sam: interrupted\n")


def test_an_interrupt_while_commands_are_imported() -> None:
    code = """
import sys
from text2sam.cli import main

class Interrupt:
    def find_spec(self, name, *_):
        if name == "text2sam.cli.segment":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
main()
"""
    ended = process("-c", code)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_a_second_interrupt_while_a_folder_job_computes(tmp_path: Path) -> None:
    """Python's end aborts the process where a thread is within torch."""
    code = """
import os, signal, sys, threading, time, torch
from text2sam.annotate.worker import Worker
from text2sam.cli import main

def compute(*_):
    threading.Thread(target=interrupt).start()
    until = time.monotonic() + 60
    while time.monotonic() < until:
        torch.ones(500, 500) @ torch.ones(500, 500)

def interrupt():
    for _ in range(2):
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
Worker.run = compute
main()
"""
    folder = tmp_path / "photos"
    folder.mkdir()
    PIL.Image.new("RGB", (32, 32)).save(folder / "a.png")
    command = ["annotate", folder, "--labels", "cat", "--out", tmp_path / "out", "--preset", "sticker"]
    ended = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False, timeout=120)
    assert (ended.returncode, ended.stderr) == (130, "text2sam: interrupted\n")


@pytest.mark.parametrize(
    "line",
    [
        "segment",
        "nonsense",
        "segment x.png cat --nonsense",
        "segment x.png cat --method magic",
        "segment x.png cat --image-size big",
        "segment x.png cat --max-objects 0",
        "explain x.png cat dog",
        "explain x.png cat --width 10",
        "annotate x --labels cat --out o --engine cluster",
        "calibrate x.csv",
    ],
)
def test_usage_errors(line: str) -> None:
    result = run(*line.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: text2sam" in result.stderr
    assert "Value error" not in result.stderr
    assert "Traceback" not in result.output


def test_a_wrong_name_is_answered_with_the_right_ones() -> None:
    from text2sam.clip.attention import METHODS

    message = run("segment", "x.png", "cat", "--method", "magic").stderr
    helped = run("segment", "--help").stdout.replace("\n", " ")
    assert all(name in message and name in helped for name in METHODS)
    assert "text2sam evaluate semantic" in " ".join(run("segment", "x.png", "cat", "--method", "corrclip").stderr.split())


def test_other_packages_are_kept_quiet(photo: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own would keep logging.warning from printing

    def chatter() -> None:
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)
        logging.getLogger("open_clip").warning("no pretrained weights")
        logging.warning("QuickGELU mismatch")
        logging.getLogger("text2sam.zoo.download").warning("a file is corrupt")
        for _ in range(2):
            warnings.warn("a hint\nof two lines", errors.Text2SamWarning, stacklevel=1)

    model.before = chatter
    handlers, filters = logging.getLogger().handlers[:], warnings.filters[:]
    result = run("segment", photo, "cat", "--out", photo.parent / "out")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[:-1] == ["text2sam: a file is corrupt", "text2sam: warning: a hint of two lines"]
    assert logging.getLogger().handlers == handlers
    assert warnings.filters == filters
    assert not logging.getLogger("text2sam").handlers


def test_many_hints_are_counted(photo: Path, model: Model) -> None:
    def chatter() -> None:
        for number in range(50):
            warnings.warn(f"hint {number}", errors.Text2SamWarning, stacklevel=1)

    model.before = chatter
    arguments = ["segment", photo, "cat", "--out", photo.parent / "out"]
    lines = [line for line in run(*arguments).stderr.splitlines() if "warning" in line]
    assert lines[19:] == ["text2sam: warning: hint 19", "text2sam: warning: 30 further warnings; --json lists all"]
    assert len(json.loads(run(*arguments, "--json").stdout)["warnings"]) == 50


# plug-ins


class Entry:
    """What importlib.metadata knows of an entry point."""

    def __init__(self, name: str, register: Any) -> None:
        self.name, self.value, self.register = name, f"somewhere:{name}", register

    def load(self) -> Any:
        if isinstance(self.register, Exception):
            raise self.register
        return self.register


@pytest.fixture
def plug_ins(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Installs entry points; returns a list of what is loaded."""

    def install(**registers: Any) -> list[str]:
        loaded: list[str] = []

        def entry_points(*, group: str) -> list[Entry]:
            loaded.append(group)
            return [Entry(name, register) for name, register in registers.items()]

        monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
        return loaded

    return install


def greeting(app: typer.Typer) -> None:
    group = common.new_app(help="Things to measure.")
    app.add_typer(group, name="measure")

    @group.command("all")
    @app.command("greet")
    def greet(name: Annotated[str, typer.Argument()], as_json: common.Json = False) -> None:
        """Greets."""
        if name == "nobody":
            raise errors.InputError("greets somebody only")
        warnings.warn("hint", errors.Text2SamWarning, stacklevel=1)
        output.print_json({"hello": name}) if as_json else output.echo(f"hello {name}")


def test_plug_ins_add_commands(plug_ins: Callable[..., list[str]]) -> None:
    loaded = plug_ins(zebra=greeting)
    assert run("greet", "cat").stdout == run("measure", "all", "cat").stdout == "hello cat\n"
    assert '"warnings": [\n    "hint"\n  ]' in run("greet", "cat", "--json").stdout
    assert "somebody only" in failed(run("greet", "nobody"), 2)
    words = run("--help").stdout.split()
    assert words.index("segment") < words.index("models") < words.index("greet") < words.index("measure")
    assert set(loaded) == {"text2sam.commands"}
    loaded.clear()
    assert run("models", "list").exit_code == 0
    assert not loaded  # text2sam's own commands load no plug-in


def test_the_lab_is_a_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = importlib.metadata.EntryPoint("lab", "text2sam.lab.cli:register", common.COMMANDS)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda *, group: [lab])
    result = run("--help")
    assert result.stderr == ""
    assert {"evaluate", "bench"} <= set(result.stdout.split())
    assert "--preset" in run("evaluate", "semantic", "--help").stdout
    assert "nowhere" in failed(run("evaluate", "semantic", "nowhere"), 2)


def test_broken_plug_ins_are_reported_and_nothing_else(plug_ins: Callable[..., list[str]]) -> None:
    def hijack(app: typer.Typer) -> None:
        app.command("segment")(lambda: None)

    plug_ins(
        bad=ModuleNotFoundError("No module named 'sklearn'"), none=None, odd=lambda app: app.nothing, thief=hijack, ok=greeting
    )
    result = run("--help")
    assert result.exit_code == 0
    assert "greet" in result.stdout
    assert "Segment all objects" in result.stdout
    lines = result.stderr.splitlines()
    assert all(line.startswith("text2sam: warning: ") for line in lines)
    assert [next(name for name in ("bad", "none", "odd", "thief") if repr(name) in line) for line in lines] == [
        "bad", "none", "odd", "thief",
    ]  # fmt: skip
    assert "No module named 'sklearn'" in lines[0]
    assert run("nonsense").exit_code == 2


# real processes


def process(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=300, check=False, **options)


def test_help_uses_a_wide_terminal() -> None:
    command = [sys.executable, "-m", "text2sam", "segment", "--help"]
    environment = {**os.environ, "COLUMNS": "120"}
    lines = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.splitlines()
    assert 100 < max(map(len, lines)) <= 120
    assert any("hf-hub:NAME or local-dir:FOLDER" in line for line in lines)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from text2sam.cli.commands import app\n"
        "for line in ('--help', 'segment --help', 'annotate --help', 'calibrate --help', 'models list', '--version'):\n"
        "    try: app(line.split(), prog_name='text2sam')\n"
        "    except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'open_clip', 'httpx', 'skimage', 'timm', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = process("-c", code)
    assert done.returncode == 0, done.stderr
    assert all(meaning in done.stdout for meaning in common.EXIT_CODES.values())
    assert done.stdout.splitlines()[-1] == f"text2sam {__version__}"


def test_module_can_be_run_and_fails_in_one_line(tmp_path: Path) -> None:
    done = process("-m", "text2sam", "segment", "missing.png", "cat", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "missing.png" in done.stderr
    assert not list(tmp_path.iterdir())


# demo


def test_demo(tmp_path: Path, model: Model) -> None:

    drawn = ("demo", "--preset", "sticker", "--out", tmp_path / "d")
    result = run(*drawn, "--scene", "pets", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert model.built == [{"preset": "sticker", "device": "cpu"}]
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["picture", "text", "answer", "presence", "score", "IoU", "box", "mask"]
    assert [row.split()[1:3] for row in rows] == [[t, "found"] for t in ("cat", "banana", "umbrella")] + [["rocket", "not"]]
    assert "(not there)" in rows[3]
    document = json.loads(run(*drawn, "--scene", "pets,desert", "--json").stdout)
    assert [scene["scene"] for scene in document["scenes"]] == ["pets", "desert"]
    assert document["out"] == str(tmp_path / "d")
    failed(run("demo", "--out", tmp_path / "e", "--scene", "nowhere"), 2)
