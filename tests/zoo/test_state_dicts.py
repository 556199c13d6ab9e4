"""Reading checkpoint files: every form and layout, and every kind of broken file."""

from __future__ import annotations

import pickle
import re
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from text2sam.errors import WeightsError
from text2sam.zoo.state_dicts import layout_of, load_checkpoint, load_state_dict, misfit

STATE = {"visual.proj": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([1.5], dtype=torch.float16)}


def check(path: Path, expected: dict[str, torch.Tensor] = STATE) -> None:
    loaded = load_state_dict(path)
    assert list(loaded) == list(expected) or set(loaded) == set(expected)
    for key, value in expected.items():
        assert loaded[key].dtype == value.dtype
        assert torch.equal(loaded[key], value)
        assert not loaded[key].requires_grad


def renamed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in STATE.items()}


@pytest.mark.parametrize(
    "saved",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model_state_dict": STATE, "epoch": 3},
        {"state_dict": {"model": STATE}},
        renamed("module."),
        {"model_state_dict": renamed("module._orig_mod.sam.")},
        {"visual._orig_mod.proj": STATE["visual.proj"], "bias": STATE["bias"]},
        {**STATE, "input_resolution": torch.tensor(224), "context_length": 77, "vocab_size": 49408},
        {key: torch.nn.Parameter(value) for key, value in STATE.items()},
    ],
)
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_torch_files(tmp_path: Path, saved: Any, new: bool) -> None:
    path = tmp_path / "weights.safetensors.not"
    torch.save(saved, path, _use_new_zipfile_serialization=new)
    check(path)
    assert load_checkpoint(path)[1] == ("input_resolution" in saved)


def test_a_prefix_that_not_all_keys_share_stays(tmp_path: Path) -> None:
    state = {"module.a": torch.ones(1), "b": torch.ones(2)}
    torch.save(state, tmp_path / "x.pt")
    check(tmp_path / "x.pt", state)


def test_wrappers_without_end(tmp_path: Path) -> None:
    state: dict[str, Any] = {}
    state["model"] = state
    (tmp_path / "x.pt").write_bytes(pickle.dumps(state))
    with pytest.raises(WeightsError, match=r"x\.pt"):
        load_state_dict(tmp_path / "x.pt")
    torch.save(state, tmp_path / "y.pt")
    with pytest.raises(WeightsError, match=r"y\.pt"):
        load_state_dict(tmp_path / "y.pt")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["vision_model.embeddings.class_embedding", "text_model.final_layer_norm.bias"], "Hugging Face"),
        (["vision_encoder.pos_embed", "mask_decoder.iou_token.weight"], "Hugging Face"),
        (["image_encoder.trunk.pos_embed", "sam_mask_decoder.iou_token.weight"], "SAM2ImagePredictor"),
        (["base_model.model.visual.proj.lora_A.weight"], "LoRA"),
        (["visual.proj", "token_embedding.weight"], "a CLIP"),
        (["image_encoder.pos_embed", "mask_decoder.iou_token.weight"], "a SAM"),
        (["visual.proj"], ""),
        ([], ""),
    ],
)
def test_layouts(keys: list[str], expected: str) -> None:
    description = layout_of(dict.fromkeys(keys))
    assert expected in description
    assert bool(description) == bool(expected)


def test_misfit() -> None:
    zero = torch.zeros(1)
    expected = {"a": zero, "b": zero, "bn.num_batches_tracked": zero} | {f"c{i}": zero for i in range(5)}
    assert misfit(expected, expected) == misfit({}, {}) == ""
    assert misfit(expected, {key: zero for key in expected if key != "bn.num_batches_tracked"}) == ""
    message = misfit(expected, {"a": torch.zeros(2, 3), "d": zero, "b": zero})
    assert message == "5 missing (c0, c1, c2, c3, ...), 1 unexpected (d), 1 of another shape (a is (2, 3), not (1,))"


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_safetensors_whatever_the_name(tmp_path: Path, name: str) -> None:
    from safetensors.torch import save_file

    save_file(STATE, tmp_path / name)
    check(tmp_path / name)


class Archive(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(4.0).half())
        self.register_buffer("input_resolution", torch.tensor(224))
        self.register_buffer("context_length", torch.tensor(77))
        self.register_buffer("vocab_size", torch.tensor(49408))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("jit") / "ViT.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.trace and save are deprecated; reading is what is tested
        torch.jit.trace(Archive(), torch.zeros(4).half()).save(str(path))  # type: ignore[no-untyped-call]
    return path


def test_torchscript_archives(archive: Path, tmp_path: Path) -> None:
    expected = {"weight": torch.arange(4.0).half()}
    check(archive, expected)
    shutil.copy(archive, tmp_path / "ViT.bin")
    check(tmp_path / "ViT.bin", expected)
    assert load_checkpoint(archive)[1]


def test_only_the_one_warning_is_silenced(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **options: Any) -> None:
        warnings.warn("something else is deprecated", FutureWarning, stacklevel=1)

    monkeypatch.setattr(torch.jit, "load", load)
    with pytest.warns(FutureWarning, match="something else"), pytest.raises(WeightsError):
        load_state_dict(archive)


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_pickled_code_does_not_run(tmp_path: Path, form: str) -> None:
    trace, path = tmp_path / "it-ran", tmp_path / "evil.pt"
    saved = {"state_dict": STATE, "extra": Malicious(trace)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(saved))
    else:
        torch.save(saved, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(WeightsError, match=re.escape(str(path))) as caught:
        load_state_dict(path)
    assert not trace.exists()
    assert "weights_only=False" not in str(caught.value)
    if form != "pickle":
        assert "can run code" in str(caught.value)
    pickle.loads(pickle.dumps(Malicious(trace)))
    assert trace.exists()  # it would have run


def broken_files(folder: Path, archive: Path) -> Iterator[Path]:
    from safetensors.torch import save_file

    torch.save(STATE, folder / "whole.pt")
    save_file(STATE, folder / "whole.safetensors")
    with zipfile.ZipFile(folder / "other.zip", "w") as other:
        other.writestr("folder/readme.txt", "hello")
    with zipfile.ZipFile(folder / "half.jit", "w") as other:
        other.writestr("half/constants.pkl", "hello")
    yield folder / "other.zip"
    yield folder / "half.jit"
    contents = {
        "empty.pt": b"",
        "html.pt": b"<html>log in first</html>",
        "text.safetensors": b"version https://git-lfs.github.com/spec/v1",
        "zeros.pt": bytes(1000),
        "png.pt": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "number.pt": pickle.dumps(3),
        "one.safetensors": b"\x01",
    }
    for source in (folder / "whole.pt", folder / "whole.safetensors", archive):
        whole = source.read_bytes()
        for keep in (10, len(whole) // 2, len(whole) - 1):
            contents[f"{source.name}.{keep}"] = whole[:keep]
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        yield folder / name
    for name, value in {
        "list.pt": [torch.ones(1)],
        "tensor.pt": torch.ones(1),
        "nothing.pt": {},
        "numbers.pt": {"a": 1, "b": torch.ones(1)},
        "keys.pt": {1: torch.ones(1)},
        "extras.pt": {"vocab_size": 3},
    }.items():
        torch.save(value, folder / name)
        yield folder / name
    yield folder / "absent.pt"
    yield folder


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    path, weight = tmp_path / "w.pt", torch.full((300, 300), 60000.0).to(dtype)  # a sum beyond float16
    torch.save({"weight": weight, "attn_mask": torch.full((2, 2), value)}, path)
    assert load_state_dict(path)["weight"].isfinite().all()
    torch.save({"bias": torch.full((4,), torch.finfo(dtype).min, dtype=dtype)}, path)  # nor is this sum a float32
    assert load_state_dict(path)["bias"].isfinite().all()
    weight[7, 7] = value
    torch.save({"weight": weight}, path)
    with pytest.raises(WeightsError, match=r"w\.pt' holds numbers that are not finite, in weight: it is damaged"):
        load_state_dict(path)


def test_every_broken_file_is_named(tmp_path: Path, archive: Path) -> None:
    for path in broken_files(tmp_path, archive):
        try:
            load_state_dict(path)
        except WeightsError as error:
            assert repr(str(path)) in str(error)  # noqa: PT017
            assert "accepted are" in str(error) or "cut short" in str(error)  # noqa: PT017
            assert "weights_only" not in str(error)  # noqa: PT017
        else:
            pytest.fail(f"{path.name} was loaded")
