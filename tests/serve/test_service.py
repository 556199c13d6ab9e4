"""The HTTP service: answers, bounds, and its own description."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers import FakePredictor, picture, png, tiny_surgery

pytest.importorskip("fastapi")

import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from text2sam import TextPromptedSAM
from text2sam.errors import InputError
from text2sam.rle import parse_counts, unroll
from text2sam.serve.queue import Limits
from text2sam.serve.service import create_app

LIMITS = Limits(megabytes=1, pixels=5000, texts=3, waiting=0)


def tiny_model() -> TextPromptedSAM:
    return TextPromptedSAM(FakePredictor(), tiny_surgery(), presence_threshold=0.0)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(create_app(tiny_model(), LIMITS, name="tiny")) as client:
        yield client


def ask(client: TestClient, image: bytes | None = None, **form: Any) -> Any:
    return client.post("/v1/segment", files={"image": png(picture()) if image is None else image}, data=form)


@pytest.mark.parametrize("limits", [{"megabytes": 0}, {"pixels": 1.5}, {"texts": 0}, {"waiting": -1}])
def test_limits_are_checked(limits: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Limits(**limits)


def test_health(client: TestClient) -> None:
    answer = client.get("/health").json()
    assert (answer["status"], answer["model"]) == ("ok", "tiny")
    assert client.get("/docs").status_code == 200
    assert client.get("/").url.path == "/docs"


@pytest.mark.parametrize(
    ("image", "form", "code", "message"),
    [
        (b"no image", {"texts": "cat"}, 400, "the file is not an image in any format"),
        (png(picture())[:200], {"texts": "cat"}, 400, "broken"),
        (png(np.zeros((100, 51, 3), np.uint8)), {"texts": "cat"}, 400, "too large"),
        (None, {"texts": ""}, 400, "names something to look for"),
        (None, {}, 422, "texts"),
        (None, {"texts": ["a", "b", "c", "d"]}, 422, "at most 3"),
        (None, {"texts": ["a+b", "c+d"]}, 400, "at most 3 texts at once, not 4"),
        (None, {"texts": "cat", "threshold": "2"}, 422, "threshold"),
        (None, {"texts": "cat", "treshold": ".9"}, 400, "no field 'treshold'; there are image, texts, against"),
        (b"x" * 1_100_000, {"texts": "cat"}, 413, ""),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_what_is_refused(client: TestClient, image: bytes | None, form: dict[str, Any], code: int, message: str) -> None:
    answer = ask(client, image, **form)
    assert answer.status_code == code
    assert message in answer.text


def test_a_body_without_a_length_is_cut_off(client: TestClient) -> None:
    taken = []

    def parts() -> Iterator[bytes]:
        for _ in range(200):
            taken.append(1)
            yield b"x" * 100_000

    answer = client.post("/v1/segment", content=parts(), headers={"content-type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 413


def test_answers_are_those_of_the_model(client: TestClient) -> None:
    form = {"texts": ["cat", "dog+bird"], "against": ["grass", "sky"]}
    answer = ask(client, **form).json()
    assert (answer["width"], answer["height"]) == (44, 30)
    results = tiny_model().segment_many(picture(), ["cat", "dog+bird"], against=["grass", "sky"])
    assert [each["text"] for each in answer["results"]] == [result.text for result in results]
    for each, result in zip(answer["results"], results, strict=True):
        size = tuple(each["mask"]["size"])
        np.testing.assert_array_equal(unroll(parse_counts(each["mask"]["counts"], size), size), result.mask)
        assert each["area"] == result.area > 0
        assert each["box"] == result.box.tolist()
        assert (each["present"], each["presence"]) == (result.present, pytest.approx(result.presence))
        assert len(each["objects"]) == len(result.instances)
        assert each["points"] == {name: result.to_json()["points"][name] for name in ("coords", "labels")}


def test_requests_wait_for_one_another_and_too_many_are_turned_away() -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(FakePredictor):
        def set_image(self, image: Any) -> None:
            entered.set()
            assert leave.wait(30)
            super().set_image(image)

    codes: list[int] = []
    model = TextPromptedSAM(Slow(), tiny_surgery(), presence_threshold=0.0)
    with TestClient(create_app(model, LIMITS)) as client:
        first = threading.Thread(target=lambda: codes.append(ask(client, texts="cat").status_code))
        first.start()
        assert entered.wait(30)
        turned_away = ask(client, texts="cat")
        assert turned_away.status_code == 503
        assert turned_away.headers["retry-after"]
        leave.set()
        first.join(30)
        assert codes == [200]
        assert ask(client, texts="cat").status_code == 200


schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(tiny_model(), Limits(megabytes=1, waiting=100)))


@schema.parametrize()
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_the_service_is_what_it_says_it_is(case: Any) -> None:
    # no schema says which bytes are an image, or which texts a target
    case.call_and_validate(excluded_checks=[positive_data_acceptance])


def test_nothing_in_a_request_names_a_file_or_an_address() -> None:
    text = json.dumps(schema.raw_schema)
    assert "path" not in {p["name"] for p in json.loads(text)["paths"]["/v1/segment"]["post"].get("parameters", [])}
    form = next(v for k, v in json.loads(text)["components"]["schemas"].items() if k.startswith("Body"))
    assert set(form["properties"]) == {"image", "texts", "against", "exclude", "threshold", "strategy", "max_objects"}


@pytest.mark.parametrize("command", ["serve", "label-studio", "app"])
def test_a_port_that_is_taken(command: str) -> None:
    import socket

    from typer.testing import CliRunner

    from text2sam.cli.commands import app

    if command == "app":
        pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, [command, "--preset", "sticker", "--device", "cpu", "--port", port])
    assert result.exit_code == 2
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr


@pytest.mark.parametrize("host", ["é" * 80, "a..b", "a\0", "nowhere.invalid"])
def test_a_host_that_is_no_name(host: str) -> None:
    from text2sam.cli.common import check_address

    with pytest.raises(InputError, match=r"cannot listen on .*; give another --host or --port"):
        check_address(host, 0)


@pytest.mark.parametrize("host", ["", " ", "[]"])
def test_no_host_is_not_every_address(host: str) -> None:
    from text2sam.cli.common import check_address

    with pytest.raises(InputError, match="--host must be an address"):
        check_address(host, 0)


@pytest.mark.parametrize("host", ["::1", "[::1]", "six"])
def test_hosts_of_ipv6(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    import uvicorn
    from typer.testing import CliRunner

    from text2sam.cli.commands import app

    look_up, started = socket.getaddrinfo, []
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, *more, **how: look_up(name.replace("six", "::1"), *more, **how))
    monkeypatch.setattr(TextPromptedSAM, "from_pretrained", lambda **_: tiny_model())
    monkeypatch.setattr(uvicorn, "run", lambda service, **how: started.append(how["host"]))
    try:
        taken = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with taken:
        port = str(taken.getsockname()[1])
        refused = CliRunner().invoke(app, ["serve", "--host", host, "--port", port])
    shown = "six" if host == "six" else "[::1]"
    assert f"cannot listen on {shown}:{port}" in refused.stderr
    result = CliRunner().invoke(app, ["serve", "--host", host, "--port", port])
    assert result.stderr == f"listening on http://{shown}:{port}\n"
    assert started == [host.strip("[]")]
