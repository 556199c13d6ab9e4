"""The page in a real browser, with the sticker pair."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Serve, end, person

from text2sam import TextPromptedSAM
from text2sam.annotate.job import open_run
from text2sam.annotate.sources import find_images
from text2sam.app.folder import FolderJob
from text2sam.app.workbench import Workbench
from text2sam.demo import SCENES
from text2sam.errors import InputError

PETS = SCENES / "pets.png"


@pytest.fixture(scope="module")
def site(serve: Serve) -> Iterator[str]:
    """The address of a server that Ctrl-C ends at once, though a browser waits for its answers."""
    address, process = serve()
    yield address
    assert end(process, 2) == 130


@pytest.fixture(scope="module")
def tab(browser: Any, site: str) -> Iterator[Any]:
    with person(browser) as page:
        page.goto(site)
        yield page


@pytest.fixture
def page(tab: Any) -> Any:
    """The tab of all tests, with no picture."""
    tab.set_viewport_size({"width": 1280, "height": 1000})  # the picture fills its place
    if tab.locator("#again").is_visible():
        tab.click("#again")
    tab.wait_for_selector("#upload input[type=file]", state="attached")
    return tab


def load(page: Any, picture: Path = PETS) -> None:
    page.set_input_files("#upload input[type=file]", picture)
    page.wait_for_selector("#texts textarea, #texts input")


def find(page: Any, texts: str) -> list[str]:
    """Asks, and gives the lines of the list of objects."""
    before = page.locator("#picture img").get_attribute("src")
    page.locator("#texts textarea, #texts input").first.fill(texts)
    page.keyboard.press("Enter")
    changed(page, before)
    return objects(page)


def objects(page: Any) -> list[str]:
    return [text.strip() for text in page.locator("#objects label").all_inner_texts()]


def changed(page: Any, before: str) -> None:
    """Waits until another picture is shown, and what came with it."""
    page.wait_for_function("(old) => {const i = document.querySelector('#picture img'); return i && i.src !== old}", arg=before)
    page.wait_for_timeout(200)


def click(page: Any, x: float, y: float) -> None:
    """Clicks on the picture at a share of its width and height, and waits for the answer."""
    image = page.locator("#picture img")
    before, box = image.get_attribute("src"), image.bounding_box()
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
    changed(page, before)


TRANSFER = """async ([kind, data]) => {
  const blob = await (await fetch("data:image/png;base64," + data)).blob();
  const files = new DataTransfer();
  files.items.add(new File([blob], "my cat.png", {type: "image/png"}));
  if (kind === "paste") return document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: files}));
  const place = document.querySelector("#upload button");
  for (const name of ["dragenter", "dragover", "drop"]) {
    place.dispatchEvent(new DragEvent(name, {dataTransfer: files, bubbles: true, cancelable: true}));
  }
}"""


def hand_over(page: Any, kind: str) -> None:
    """Pastes or drops a picture."""
    page.evaluate(TRANSFER, [kind, base64.b64encode(PETS.read_bytes()).decode()])
    page.wait_for_selector("#texts textarea, #texts input")


def test_from_a_dropped_picture_to_a_download(page: Any, tmp_path: Path) -> None:
    hand_over(page, "drop")
    page.wait_for_selector("#texts :is(textarea, input):focus")
    found = find(page, "cat, umbrella, sheep")
    assert [line.split(" · ")[0] for line in found] == ["cat", "umbrella", "sheep"]
    assert ["not here" in line for line in found] == [False, False, True]
    assert re.search(r"score 0\.\d\d · presence \d\.\d\d · area \d", found[0])
    page.click("#objects label >> nth=2")
    page.wait_for_selector("#masks", state="hidden")
    click(page, 0.35, 0.45)  # on the bicycle: the person knows better
    assert "area" in objects(page)[2]
    page.wait_for_selector("#masks button")
    assert page.locator("#masks button").count() == 3
    page.click("#undo")
    page.wait_for_function("() => document.querySelectorAll('#objects label')[2].innerText.includes('not here')")
    with page.expect_download() as download:
        page.click("#coco")
    assert download.value.suggested_filename == "my-cat-coco.zip"
    download.value.save_as(tmp_path / "cat.zip")
    with zipfile.ZipFile(tmp_path / "cat.zip") as archive:
        document = json.loads(archive.read("annotations.json"))
    names = {each["id"]: each["name"] for each in document["categories"]}
    assert [names[each["category_id"]] for each in document["annotations"]] == ["cat", "umbrella"]


def test_a_pasted_picture_layers_and_reasons(page: Any) -> None:
    streams: list[Any] = []
    page.on("request", lambda request: "/queue/data" in request.url and streams.append(request))
    hand_over(page, "paste")
    assert [line.split(" · ")[0] for line in find(page, "cat")] == ["cat"]
    before = page.locator("#picture img").get_attribute("src")
    page.get_by_label("Similarity map").check()
    changed(page, before)
    before = page.locator("#picture img").get_attribute("src")
    page.get_by_label("Similarity map").uncheck()
    changed(page, before)
    page.click("#why")
    page.wait_for_selector("#figure img")
    mask = page.locator("#masks button").nth(0)
    before = page.locator("#picture img").get_attribute("src")
    mask.click()
    changed(page, before)
    assert page.locator("#figure img").count() == 0, "the reasons were those of the mask before"
    page.get_by_label("new object").check()
    click(page, 0.35, 0.45)
    assert [line.split(" · ")[0] for line in objects(page)] == ["cat 1", "cat 2"]
    assert page.get_by_label("adds").is_checked(), "the next click belongs to the same object"
    assert len(streams) <= 1, "a stream that closes between two actions can lose the second one's answer"


FRAME = """() => {
  const image = document.querySelector("#picture img"), size = [image.naturalWidth, image.naturalHeight];
  const box = image.getBoundingClientRect(), most = getComputedStyle(image).objectFit === "scale-down" ? 1 : Infinity;
  const scale = Math.min(box.width / size[0], box.height / size[1], most);
  const corner = [box.x + (box.width - scale * size[0]) / 2, box.y + (box.height - scale * size[1]) / 2];
  return {size, corner, scale};
}"""


def test_a_click_lands_where_the_person_clicks(page: Any) -> None:
    load(page)
    find(page, "cat")
    places: list[Any] = []
    page.on("request", lambda request: "event_data" in (request.post_data or "") and places.append(request.post_data_json))
    for fullscreen in (False, True):
        if fullscreen:
            page.set_viewport_size({"width": 3840, "height": 2160})
            page.locator("#picture button[aria-label*=ullscreen]").click()
            page.wait_for_selector("#picture.fullscreen")
        frame, share = page.evaluate(FRAME), (0.15, 0.2)
        before = page.locator("#picture img").get_attribute("src")
        page.mouse.click(*(c + s * frame["scale"] * n for c, s, n in zip(frame["corner"], share, frame["size"], strict=True)))
        changed(page, before)
        got = [value / side for value, side in zip(places[-1]["event_data"]["index"], frame["size"], strict=True)]
        assert got == pytest.approx(share, abs=0.01)
    page.locator("#picture button[aria-label*=ullscreen]").click()


SLIDE = """(value) => {
  const slider = document.querySelector("#threshold input[type=range]");
  slider.value = value;
  slider.dispatchEvent(new Event("input", {bubbles: true}));
  slider.dispatchEvent(new Event("pointerup", {bubbles: true}));
}"""

EARLY = """() => {
  const image = document.querySelector("#picture img");
  const click = () => {
    if (image.naturalWidth && !image.complete) return setTimeout(click);  // the old picture's
    const box = image.getBoundingClientRect(), [x, y] = [box.x + 0.35 * box.width, box.y + 0.45 * box.height];
    image.dispatchEvent(new MouseEvent("click", {bubbles: true, clientX: x, clientY: y}));
  };
  const watch = new MutationObserver(() => {watch.disconnect(); click();});
  watch.observe(image, {attributeFilter: ["src"]});
}"""


def test_a_quick_hand_loses_nothing(page: Any) -> None:
    load(page)
    found = find(page, "cat, sheep")
    assert ["not here" in line for line in found] == [False, True]
    with page.expect_request("**/queue/join*"):
        page.evaluate(SLIDE, 0)
    page.evaluate(SLIDE, 1)  # while the page waits for the answer
    page.wait_for_function("() => [...document.querySelectorAll('#objects label')].every((l) => /not here/.test(l.innerText))")
    page.evaluate(SLIDE, 0.5)
    page.wait_for_function("() => !document.querySelector('#objects label').innerText.includes('not here')")
    page.evaluate(EARLY)
    page.click("#objects label >> nth=1")
    page.wait_for_function("() => document.querySelectorAll('#objects label')[1].innerText.includes('area')")
    click(page, 0.15, 0.2)
    assert "area" in objects(page)[1]
    page.keyboard.press("u")
    page.keyboard.press("u")
    page.wait_for_function("() => document.querySelectorAll('#objects label')[1].innerText.includes('not here')")


def test_what_goes_wrong_is_said_in_the_page(page: Any, tmp_path: Path) -> None:
    broken = tmp_path / "holiday.png"
    broken.write_bytes(b"no picture")
    page.set_input_files("#upload input[type=file]", broken)
    page.wait_for_selector("#message >> text=holiday.png")
    load(page)
    assert page.locator("#message").count() == 0
    page.click("#find")
    page.wait_for_selector("#message >> text=type what to find")
    page.locator("#picture img").click()
    page.wait_for_selector("#message >> text=before you click")
    find(page, "cat")
    assert page.locator("#message").count() == 0
    page.locator("#exclude textarea, #exclude input").first.fill("sheep")
    page.click("#find")
    page.wait_for_selector("#message >> text='sheep' is not in this picture")


def test_a_new_picture_leaves_nothing_of_the_old(page: Any) -> None:
    load(page)
    find(page, "cat")
    page.click("#again")
    page.wait_for_selector("#upload input[type=file]", state="attached")
    assert page.locator("#picture").count() == 0
    page.wait_for_timeout(500)  # an old upload would open again
    assert page.locator("#picture").count() == 0
    page.locator("#examples button").nth(1).click()
    page.wait_for_selector("#objects label")
    assert page.locator("#texts textarea, #texts input").first.input_value() == "penguin, rocket, pizza"
    assert len(objects(page)) == 3


def test_two_people_do_not_see_each_other_and_the_page_fits(page: Any, site: str, browser: Any) -> None:
    with person(browser) as other:
        other.goto(site)
        load(page)
        load(other, SCENES / "seaside.png")
        find(page, "cat, house")
        find(other, "cat, house")
        assert ["not here" in line for line in objects(page)] == [False, True]
        assert ["not here" in line for line in objects(other)] == [True, False]
        before = objects(page)
        other.click("#remove")
        other.wait_for_function(
            "() => ![...document.querySelectorAll('#objects label')].some((l) => l.innerText.includes('area'))"
        )
        assert objects(page) == before
    for width in (400, 1280, 1920):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_function("(most) => document.documentElement.scrollWidth <= most", arg=width)
        main = page.locator("main").bounding_box()
        assert 2 * main["x"] + main["width"] == pytest.approx(width, abs=20), "the page is in the middle"
        for name in ("#find", "#picture img", "#undo", "#objects", "#coco"):
            box = page.locator(name).bounding_box()
            assert box["x"] >= 0, name
            assert box["x"] + box["width"] <= width, name


# a folder


def shown(page: Any, name: str) -> None:
    page.wait_for_selector(f"#progress >> text={name}")
    page.wait_for_selector("#picture img")
    page.wait_for_timeout(200)


# a deprecation inside Gradio would end the queue of a server in this process, were it an error
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_folder_through_a_kill_and_a_reload(browser: Any, serve: Serve, tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name in ("desert", "pets", "seaside"):
        shutil.copy(SCENES / f"{name}.png", photos)
    address, process = serve(photos, "--labels", "cat,house", "--out", out)
    with contextlib.ExitStack() as stack:
        page = stack.enter_context(person(browser))
        page.goto(address)
        shown(page, "desert.png")
        page.click("#accept")
        shown(page, "pets.png")
        before = page.locator("#picture img").get_attribute("src")
        page.click("#objects label >> nth=1")
        changed(page, before)
        page.get_by_label("adds").check()
        click(page, 0.35, 0.45)  # a house, a person might say
        page.keyboard.press("a")
        shown(page, "seaside.png")
        end(process)
        from text2sam.app.page import close, folder_page
        from text2sam.app.page import serve as serve_page

        pair = TextPromptedSAM.from_pretrained("sticker")
        run = stack.enter_context(open_run(pair, photos, find_images(photos), "cat,house", out, batch_size=1))
        job = stack.enter_context(contextlib.closing(FolderJob(run, Workbench(run.model))))
        blocks = folder_page(job)
        stack.callback(close, blocks)
        host, port = address.strip("/").split("//")[1].split(":")
        again = serve_page(blocks, host=host, port=int(port))
        assert again == address
        page.reload()
        shown(page, "seaside.png")
        assert "2 accepted" in page.inner_text("#progress")
        page.click("#back")
        shown(page, "pets.png")
        page.wait_for_function(
            "() => [...document.querySelectorAll('#objects label')].every((l) => l.innerText.includes('area'))"
        )
        assert len(objects(page)) == 2
        page.click("#next")
        shown(page, "seaside.png")
        page.click("#reject")
        page.wait_for_selector("#progress >> text=1 rejected")
    document = json.loads((out / "annotations.json").read_text())
    names = {each["id"]: each["file_name"] for each in document["images"]}
    assert sorted(names.values()) == ["desert.png", "pets.png"]
    assert sorted(names[each["image_id"]] for each in document["annotations"]) == ["pets.png", "pets.png"]


def test_a_folder_needs_labels_and_a_place(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from text2sam.cli.commands import app

    for arguments in ([str(tmp_path)], ["--labels", "cat"], [str(tmp_path), "--labels", "cat"], ["--format", "coco"], ["-r"]):
        result = CliRunner().invoke(app, ["app", *arguments])
        assert result.exit_code == 2
        assert "--labels" in result.stderr


def test_the_images_and_formats_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from text2sam.annotate import job
    from text2sam.cli.commands import app

    shutil.copy(PETS, tmp_path / "a.png")
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
        shutil.copy(PETS, tmp_path / name / "b.png")
    given: list[Any] = []

    def opened(model: Any, root: Path, items: Any, labels: str, out: Path, **options: Any) -> Any:
        given.append((root, [item.path for item in items], labels, out, options))
        raise InputError("as far as this")

    monkeypatch.setattr(job, "open_run", opened)
    line = ["app", str(tmp_path), "--labels", "cat", "--out", str(tmp_path / "out")]
    for more, paths, formats in (
        ([], ["a.png"], ["coco"]),
        (["-r", "--format", "yolo,png"], ["a.png", "in/b.png"], ["yolo", "png"]),
    ):
        assert "as far as this" in CliRunner().invoke(app, [*line, *more]).stderr
        assert given.pop() == (tmp_path, paths, "cat", tmp_path / "out", {"format": formats, "batch_size": 1})
