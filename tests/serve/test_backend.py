"""The backend for Label Studio, over HTTP, with requests as Label Studio sends them."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from helpers import SYNSETS, WORDS, FakePredictor, picture, png, word_network

pytest.importorskip("fastapi")

import httpx
import uvicorn
from label_studio_sdk.converter.brush import decode_rle

from text2sam import TextPromptedSAM
from text2sam.clip.classifier import WordClassifier
from text2sam.clip.words import WordTable
from text2sam.errors import ImageError, InputError
from text2sam.serve.label_studio import Config, Pictures, create_backend, read_clicks
from text2sam.serve.queue import Limits
from text2sam.types import PointPrompts

CONFIG = """<View>
  <Image name="photo" value="$picture" zoom="true"/>
  <TextArea name="prompt" toName="photo"/>
  <BrushLabels name="brush" toName="photo"><Label value="Cat"/><Label value="Bird"/><Label value="Thing 7"/></BrushLabels>
  <KeyPointLabels name="click" toName="photo" smart="true"><Label value="Cat" smart="true"/></KeyPointLabels>
  <RectangleLabels name="frame" toName="photo" smart="true"><Label value="Bird" smart="true"/></RectangleLabels>
</View>"""


class Boxes(FakePredictor):
    """Answers a box with its inside."""

    def predict(self, point_coords: Any, point_labels: Any, box: Any = None, **options: Any) -> Any:
        if box is None:
            return super().predict(point_coords, point_labels, **options)
        x0, y0, x1, y1 = box.astype(int)
        masks = np.zeros((3, *self.images[-1].shape[:2]), bool)
        masks[:, y0:y1, x0:x1] = True
        return masks, np.array([0.2, 0.8, 0.5], np.float32), np.zeros((3, 4, 4), np.float32)


def model() -> TextPromptedSAM:
    """Finds every word that it knows."""
    words = WordTable(SYNSETS, WORDS)
    classifier = WordClassifier(word_network(), words, image_size=64, device="cpu", presence_offset=50.0)
    return TextPromptedSAM(Boxes(), classifier)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "shown"
    (folder / "day 1").mkdir(parents=True)
    (folder / "day 1" / "ö.png").write_bytes(png(picture()))
    (folder.parent / "secret.png").write_bytes(png(picture()))
    return folder


@pytest.fixture(scope="module")
def backend(folder: Path) -> Iterator[str]:
    """The address of a running backend."""
    server = uvicorn.Server(
        uvicorn.Config(create_backend(model(), Pictures(folder, None, None, Limits()), name="tiny"), port=0, log_level="error")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.05)
        assert thread.is_alive()
    host, port = server.servers[0].sockets[0].getsockname()
    yield f"http://{host}:{port}"
    server.should_exit = True
    thread.join(10)


LOCAL = "/data/local-files/?d=day%201/%C3%B6.png"


def predict(backend: str, address: str = LOCAL, drawn: list[dict[str, Any]] | None = None, config: str = CONFIG) -> Any:
    """A request as Label Studio sends it when a task is opened, or, with ``drawn``, at a stroke of a smart tool."""
    context = None if drawn is None else {"result": drawn}
    body = {
        "tasks": [{"id": 17, "data": {"picture": address}, "annotations": [], "predictions": []}],
        "project": "3.1700000000",
        "label_config": config,
        "params": {"login": None, "password": None, "context": context},
        "model_version": None,
    }
    return httpx.post(f"{backend}/predict", json=body, timeout=30)


def click(x: float, y: float, positive: int = 1, label: str = "Cat") -> dict[str, Any]:
    value = {"x": x, "y": y, "width": 0.5, "keypointlabels": [label]}
    more = {"original_width": 44, "original_height": 30, "image_rotation": 0, "id": "a", "origin": "manual"}
    return {**more, "type": "keypointlabels", "from_name": "click", "to_name": "photo", "value": value, "is_positive": positive}


def mask_of(region: dict[str, Any]) -> Any:
    assert (region["original_width"], region["original_height"]) == (44, 30)
    return decode_rle(region["value"]["rle"]).reshape(30, 44, 4)[..., 3] > 0


# the pieces


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "<View>",
        "<View/>",
        "\ud800",
        '<!DOCTYPE x [<!ENTITY a "b">]><View>&a;</View>',
        '<View><Image name="a" value="$a"/></View>',
        '<View><Image name="a" value="$a"/><BrushLabels name="b" toName="other"><Label value="c"/></BrushLabels></View>',
        '<View><Image name="a" value="$a"/><BrushLabels name="b" toName="a"/></View>',
        "x" * 1_000_001,
    ],
)
def test_configurations_that_cannot_be_used(xml: str) -> None:
    with pytest.raises(InputError, match="configuration"):
        Config.parse(xml)


def test_clicks() -> None:
    points, box, label = read_clicks([], (30, 44))
    assert (len(points), box, label) == (0, None, None)
    frame = {"type": "rectanglelabels", "value": {"x": 25, "y": 10, "width": 50, "height": 20, "rectanglelabels": ["Bird"]}}
    points, box, label = read_clicks([click(50, 50), click(100, 0, 0), frame, {"type": "brushlabels"}], (30, 44))
    np.testing.assert_allclose(points.coords, [[22, 15], [43, 0]])
    assert points.labels.tolist() == [1, 0]
    np.testing.assert_allclose(box, [11, 3, 33, 9])
    assert label == "Bird"
    for broken in ({"type": "keypointlabels"}, {"type": "rectangle", "value": {"x": 1, "y": 1}}, click("a", 1)):  # type: ignore[arg-type]
        with pytest.raises(InputError, match="percent"):
            read_clicks([broken], (30, 44))
    with pytest.raises(InputError, match="value of a region"):
        read_clicks([{"type": "keypoint", "value": "x"}], (30, 44))


class Served(BaseHTTPRequestHandler):
    """Label Studio's own files."""

    seen: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization")))
        code = {"/data/upload/1/a.png": 200, "/away": 302, "/big": 200}.get(self.path, 404)
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "/data/upload/1/a.png")
        self.end_headers()
        if code == 200:
            self.wfile.write(b"y" * 1_100_000 if self.path == "/big" else png(picture()))

    def log_message(self, *_: Any) -> None:
        pass


def test_where_pictures_come_from(folder: Path) -> None:
    server = HTTPServer(("127.0.0.1", 0), Served)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        limits = Limits(megabytes=1)
        pictures = Pictures(folder, url + "/", "secret", limits)
        assert pictures.read(LOCAL) == png(picture())
        (folder / "a%20b.png").write_bytes(b"as it is called")
        assert pictures.read("/data/local-files/?d=a%2520b.png") == b"as it is called"
        assert pictures.read("/data/upload/1/a.png") == png(picture())
        assert pictures.read(f"{url}/data/upload/1/a.png") == png(picture())
        assert pictures.read("data:image/png;base64," + base64.b64encode(b"abc").decode()) == b"abc"
        assert {token for _, token in Served.seen} == {"Token secret"}
        requests = len(Served.seen)
        refused = [
            "/data/local-files/?d=../secret.png",
            "/data/local-files/?d=%2Fetc%2Fpasswd",
            "/data/local-files/?d=missing.png",
            "data:image/png;base64,!!!",
            "//127.0.0.1:1/a.png",
            f"{url}0/a.png",
            f"{url}@127.0.0.1:1/a.png",
            "http://127.0.0.1:1/a.png",
            "http://[::1",
            f"{url}/\0",
            "/" + "a" * 100_000,
            "/\ud800",
        ]
        for address in refused:
            with pytest.raises(ImageError):
                pictures.read(address)
        assert len(Served.seen) == requests, "nobody was asked"
        for address in ("/missing.png", "/away", "/big", "file:///etc/passwd"):
            with pytest.raises(ImageError):
                pictures.read(address)
        for address in (LOCAL, "/data/upload/1/a.png", "s3://bucket/a.png"):
            with pytest.raises(ImageError, match="--images"):
                Pictures(None, None, None, limits).read(address)
        with pytest.raises(InputError, match="http"):
            Pictures(None, "localhost:8080", None, limits)
    finally:
        server.shutdown()
        server.server_close()


# the backend


def test_health_and_setup(backend: str) -> None:
    assert httpx.get(f"{backend}/health").json()["status"] == "UP"
    body = {"project": "3.17", "schema": CONFIG, "hostname": "http://localhost:8080", "access_token": "x", "extra_params": None}
    assert "tiny" in httpx.post(f"{backend}/setup", json=body).json()["model_version"]
    answer = httpx.post(f"{backend}/setup", json={**body, "schema": "<View/>"})
    assert (answer.status_code, "BrushLabels" in answer.json()["detail"]) == (400, True)
    assert httpx.post(f"{backend}/webhook", json={"action": "ANNOTATION_CREATED"}).status_code == 200


def test_a_task_that_is_opened_gets_the_objects_of_all_labels(backend: str) -> None:
    [prediction] = predict(backend).json()["results"]
    assert {region["value"]["brushlabels"][0] for region in prediction["result"]} == {"Cat", "Bird"}, "Thing 7 is no word"
    assert {(region["from_name"], region["to_name"], region["type"]) for region in prediction["result"]} == {
        ("brush", "photo", "brushlabels")
    }
    assert 0 < prediction["score"] <= 1
    expected = model().segment(picture(), "cat").instances
    mine = [mask_of(r) for r in prediction["result"] if r["value"]["brushlabels"] == ["Cat"]]
    assert len(mine) == len(expected)
    for mask, part in zip(mine, expected, strict=True):
        np.testing.assert_array_equal(mask, part.mask)


def test_words_in_the_text_field(backend: str) -> None:
    drawn = [{"type": "textarea", "from_name": "prompt", "to_name": "photo", "value": {"text": ["birds, mouse"]}}]
    [prediction] = predict(backend, drawn=drawn).json()["results"]
    labels = [region["value"]["brushlabels"][0] for region in prediction["result"]]
    assert labels
    assert set(labels) == {"Cat"}, "neither is spelt like a label, so the first one is given"
    drawn[0]["value"] = {"text": "bird"}
    [prediction] = predict(backend, drawn=drawn).json()["results"]
    assert {region["value"]["brushlabels"][0] for region in prediction["result"]} == {"Bird"}


@pytest.mark.parametrize("label", ["Cat", "Thing 7"])
def test_a_click_gives_one_object_under_it(backend: str, label: str) -> None:
    [prediction] = predict(backend, drawn=[click(75, 25, label=label)]).json()["results"]
    [region] = prediction["result"]
    assert region["value"]["brushlabels"] == [label]
    assert mask_of(region)[7, 33]


def test_negative_clicks_alone_take_away_from_an_object(backend: str) -> None:
    [prediction] = predict(backend, drawn=[click(75, 25, 0, label="Thing 7")]).json()["results"]
    assert prediction["result"] == [], "no word, so there is no object to take from"
    found = model().segment(picture(), "cat")
    y, x = np.argwhere(found.instances[0].mask)[0]
    on = 100 * x / 44, 100 * y / 30
    [prediction] = predict(backend, drawn=[click(*on, 0)]).json()["results"]
    expected = model().refine(picture(), found, PointPrompts([[x, y]], [0])).instances[0]  # type: ignore[arg-type]
    np.testing.assert_array_equal(mask_of(prediction["result"][0]), expected.mask)


def test_too_many_labels_or_tasks(backend: str) -> None:
    labels = "".join(f'<Label value="{k}"/>' for k in range(1001))
    answer = predict(
        backend,
        config=f'<View><Image name="i" value="$picture"/><BrushLabels name="b" toName="i">{labels}</BrushLabels></View>',
    )
    assert (answer.status_code, "1001 labels; at most 1000" in answer.json()["detail"]) == (400, True)
    body = {"tasks": [{"data": {"picture": LOCAL}}] * 1001, "label_config": CONFIG}
    assert httpx.post(f"{backend}/predict", json=body).status_code == 422


def test_a_box_and_nothing_usable(backend: str) -> None:
    frame = {"type": "rectanglelabels", "value": {"x": 25, "y": 10, "width": 50, "height": 60, "rectanglelabels": ["Bird"]}}
    for drawn in ([frame], [click(50, 50), frame]):
        [prediction] = predict(backend, drawn=drawn).json()["results"]
        [region] = prediction["result"]
        assert region["value"]["brushlabels"] == ["Bird"]
        assert region["score"] == pytest.approx(0.8)
        assert mask_of(region)[3:21, 11:33].all()
        assert mask_of(region).sum() == 18 * 22
    [prediction] = predict(backend, drawn=[{"type": "brushlabels", "value": {}}]).json()["results"]
    assert prediction["result"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"address": "/data/local-files/?d=../secret.png"}, "is not in the folder"),
        ({"address": "http://127.0.0.1:1/a.png"}, "--images"),
        ({"config": CONFIG.replace("$picture", "$other")}, "no 'other'"),
        ({"drawn": [{"type": "keypointlabels"}]}, "percent"),
        ({"drawn": [{"value": {"text": ["+".join(map(str, range(33)))]}}]}, "at most 32 texts"),
    ],
)
def test_what_is_refused(backend: str, arguments: dict[str, Any], message: str) -> None:
    answer = predict(backend, **arguments)
    assert answer.status_code == 400
    assert message in answer.json()["detail"]


@pytest.mark.parametrize("drawn", [5, "x", ["x"], [None], {"a": 1}])
def test_drawn_things_of_another_form(backend: str, drawn: Any) -> None:
    assert predict(backend, drawn=drawn).status_code == 422
