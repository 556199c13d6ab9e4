"""Fixtures of the page's tests: a quick model, a browser, and servers that are processes of their own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
from helpers import tiny_predictor, tiny_surgery

from text2sam import TextPromptedSAM
from text2sam.annotate import journal
from text2sam.app.workbench import Workbench

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is of no use against a killed process."""
    monkeypatch.setattr(journal, "SYNCHRONOUS", "OFF")


@pytest.fixture
def bench() -> Workbench:
    """A workbench with a pair of a few thousand weights, to which everything is present."""
    return Workbench(TextPromptedSAM(tiny_predictor(), tiny_surgery(), presence_threshold=0.0))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium."""
    if find_spec("playwright") is None or find_spec("gradio") is None:
        pytest.skip('the page needs gradio, its tests playwright: pip install "text2sam[test]"')
    if CHROMIUM is None:
        pytest.skip("there is no chromium; on Debian: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


Serve = Callable[..., tuple[str, "subprocess.Popen[str]"]]


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Starts ``text2sam app`` with the sticker pair; gives its address and process."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: object) -> tuple[str, subprocess.Popen[str]]:
            home, log = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("log") / "log"
            command = [sys.executable, "-m", "text2sam", "app", *map(str, arguments), "--preset", "sticker"]
            environment = os.environ | {"TEXT2SAM_HOME": str(home), "PYTHONUNBUFFERED": "1"}
            with open(log, "w") as file:
                process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, text=True, env=environment)
            stack.callback(end, process)
            for _ in range(1200):
                address = re.search(r"http://\S+?/", log.read_text())
                if address:
                    return address[0], process
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
            pytest.fail(f"no page after a minute: {log.read_text()}")

        yield start


def end(process: subprocess.Popen[Any], by: int = signal.SIGKILL) -> int:
    """Ends a process with a signal; its exit code."""
    process.send_signal(by)
    return process.wait(30)


@contextlib.contextmanager
def person(browser: Any) -> Iterator[Any]:
    """A tab of a browser that remembers nothing."""
    context = browser.new_context(accept_downloads=True, reduced_motion="reduce", viewport={"width": 1280, "height": 1000})
    context.set_default_timeout(90_000)
    yield context.new_page()
    context.close()
