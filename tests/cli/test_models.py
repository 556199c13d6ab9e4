from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from standins import failed, run

from text2sam.cli import common
from text2sam.zoo import download, presets, table
from text2sam.zoo.shipped import Shipped
from text2sam.zoo.sticker import models as sticker


@pytest.fixture
def contents(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Two checkpoints of the preset "mobile" with small contents; the first of them is in the cache."""
    contents = {"mobile-sam": b"sam weights", "clip-vit-b-16-openai": b"clip weights"}
    for name, data in contents.items():
        item = dataclasses.replace(
            table.CHECKPOINTS[name], sha256=hashlib.sha256(data).hexdigest(), size=len(data), urls=("http://127.0.0.1:9/x",)
        )
        monkeypatch.setitem(table.CHECKPOINTS, name, item)
    put("mobile-sam", contents["mobile-sam"])
    return contents


def put(name: str, data: bytes) -> Path:
    path = download.cache_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_list(contents: dict[str, bytes]) -> None:
    document = json.loads(run("models", "list", "--json").stdout)
    files = {file["name"]: file for file in document["files"]}
    assert set(files) == {"photo-clip", "photo-sam", "sticker-clip", "sticker-sam", *table.CHECKPOINTS}
    assert (files["mobile-sam"]["cached"], files["mobile-sam"]["size"]) == (True, 11)
    assert files["mobile-sam"]["path"] == str(download.cache_path("mobile-sam"))
    assert files["clip-vit-b-16-openai"]["cached"] is False
    assert files["sticker-clip"]["shipped"] is True
    presets = {preset["name"]: preset["files"] for preset in document["presets"]}
    assert presets["mobile"] == ["clip-vit-b-16-openai", "mobile-sam"]
    assert presets["sticker"] == ["sticker-clip", "sticker-sam"]
    assert presets["photo"] == ["photo-clip", "photo-sam"]
    rows = {line.split()[0]: line.split() for line in run("models", "list").stdout.splitlines() if line}
    assert rows["mobile-sam"][4:6] == ["Apache-2.0", "yes"]
    assert rows["clip-vit-b-16-openai"][4:6] == ["MIT", "no"]
    assert (rows["mobile"][3], rows["sticker"][3]) == ("no", "yes")


def test_what_users_get_themselves(contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    own = "siglip2-base-patch16-512"
    line = next(line for line in run("models", "list").stdout.splitlines() if line.startswith(own))
    assert "Apache-2.0 your own file" in " ".join(line.split())
    listed = {file["name"]: file for file in json.loads(run("models", "list", "--json").stdout)["files"]}
    assert (listed[own]["path"], listed[own]["cached"]) == (None, False)
    for command in ("pull", "path"):
        message = failed(run("models", command, own), 3)
        assert "get the files of https://huggingface.co/google/siglip2-base-patch16-512" in message
        assert "--clip-checkpoint" in message
    pair = dataclasses.replace(presets.PRESETS["siglip2"], sam_checkpoint="mobile-sam")
    monkeypatch.setitem(presets.PRESETS, "siglip2", pair)
    pulled = run("models", "pull", "siglip2")  # the other file is there all the same
    assert pulled.exit_code == 3
    assert pulled.stdout.strip() == str(download.cache_path("mobile-sam"))
    verified = run("models", "verify", "siglip2")
    assert verified.exit_code == 0
    assert [row.split()[1] for row in verified.stdout.splitlines()[1:]] == ["own", "ok"]


def test_file_of_another_size_is_damaged(contents: dict[str, bytes]) -> None:
    put("mobile-sam", b"cut")
    row = next(line for line in run("models", "list").stdout.splitlines() if line.startswith("mobile-sam"))
    assert row.split()[5] == "damaged"
    assert "models pull mobile-sam" in failed(run("models", "path", "mobile-sam"), 3)


def test_path(contents: dict[str, bytes]) -> None:
    result = run("models", "path", "mobile-sam")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{download.cache_path('mobile-sam')}\n", "")
    failed(run("models", "path", "mobile"), 3)
    both = [Path(line) for line in run("models", "path", "sticker").stdout.splitlines()]
    assert [path.name for path in both] == ["clip.safetensors", "sam.safetensors"]
    assert all(path.is_file() for path in both)


def test_pull(contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXT2SAM_OFFLINE", "1")
    message = failed(run("models", "pull", "mobile"), 3)
    assert "TEXT2SAM_OFFLINE" in message
    assert str(download.cache_path("clip-vit-b-16-openai")) in message
    failed(run("models", "pull", "mobile-sam", "--force"), 3)
    paths = [put(name, data) for name, data in contents.items()]
    result = run("models", "pull", "mobile", "mobile-sam")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [str(path) for path in reversed(paths)]
    assert "ships with the package" in run("models", "pull", "sticker").stderr


def test_verify(contents: dict[str, bytes]) -> None:
    result = run("models", "verify")
    assert result.exit_code == 0, result.output
    rows = [line.split()[:2] for line in result.stdout.splitlines()]
    shipped = [[f"{pair}-{kind}", "ok"] for pair in ("photo", "sticker") for kind in ("clip", "sam")]
    assert rows == [["name", "status"], *shipped, ["mobile-sam", "ok"]]
    missing = run("models", "verify", "mobile")
    assert missing.exit_code == common.EXIT_CORRUPT
    assert missing.stdout.splitlines()[1].split()[:2] == ["clip-vit-b-16-openai", "missing"]
    for data in (b"sam weightS", b"cut"):
        put("mobile-sam", data)
        corrupt = run("models", "verify")
        assert (corrupt.exit_code, corrupt.stderr) == (common.EXIT_CORRUPT, "")
        assert corrupt.stdout.splitlines()[5].split()[:2] == ["mobile-sam", "corrupt"]


def test_verify_checks_the_shipped_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sticker, "SHIPPED", Shipped("sticker", tmp_path, sticker.SHIPPED.licences))
    assert run("models", "verify", "sticker-clip").exit_code == common.EXIT_CORRUPT
    (tmp_path / "clip.safetensors").write_bytes(b"right")
    record = {"sha256": {"clip.safetensors": hashlib.sha256(b"right").hexdigest()}}
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert run("models", "verify", "sticker-clip").exit_code == 0
    (tmp_path / "clip.safetensors").write_bytes(b"wrong")
    result = run("models", "verify", "sticker")
    assert result.exit_code == common.EXIT_CORRUPT
    assert [line.split()[1] for line in result.stdout.splitlines()[1:]] == ["corrupt", "missing"]
    failed(run("models", "path", "sticker-sam"), 3)


@pytest.mark.parametrize("command", ["pull", "verify", "path"])
def test_unknown_names(command: str) -> None:
    for name, meant in (("mobile-sma", "mobile-sam"), ("photo-clp", "photo-clip"), ("phto", "photo")):
        assert f"did you mean {meant}" in failed(run("models", command, name), 2)


# words


def test_words() -> None:
    result = run("models", "words", "crane")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].split(maxsplit=1) == ["crane", "device | wading bird"]
    document = json.loads(run("models", "words", "*dog", "--json").stdout)
    assert {"dog", "hot dog"} <= {entry["word"] for entry in document["words"]}
    assert document["known"] > 3000
    assert len(run("models", "words").stdout.splitlines()) == document["known"] + 1
    assert json.loads(run("models", "words", "qqq", "--json").stdout)["words"] == []


def test_towers() -> None:
    names = ("RN50", "convnext_tiny", "vit_relpos_medium_patch16_cls_224")
    done = run("models", "towers", *names)
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["name", "adapter"],
        ["RN50", "ResNet"],
        ["convnext_tiny", "TimmCNN"],
        ["vit_relpos_medium_patch16_cls_224", "refused"],
    ]
    assert "2 of 3 work" in done.stderr
    rows = json.loads(run("models", "towers", *names, "--json").stdout)["towers"]
    assert [row["name"] for row in rows] == list(names)
    assert rows[0]["methods"][:3] == ["surgery", "architecture", "features"]
    assert run("models", "towers", "RN50", "--markdown").stdout.splitlines()[2].startswith("| RN50 | ResNet | 32 x 32 |")
    assert "no model 'ViT-Z'" in failed(run("models", "towers", "ViT-Z"), 2)
