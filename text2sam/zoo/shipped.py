"""Weights that ship with the package: half-precision safetensors beside a record with their SHA-256."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from text2sam.errors import ChecksumError, WeightsError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Shipped:
    """A folder of weights in the package.

    Attributes:
        name: of the pair.
        folder: of ``record.json`` and the files it has the SHA-256 of.
        licences: SPDX identifier of each file's licence, by file name.
    """

    name: str
    folder: Path
    licences: Mapping[str, str]

    @property
    def record_path(self) -> Path:
        """The record: checksums, and how the files were made."""
        return self.folder / "record.json"

    def record(self) -> dict[str, Any]:
        """What the record says.

        Raises:
            WeightsError: it is missing or broken.
        """
        try:
            found = json.loads(self.record_path.read_text(encoding="utf-8"))
            if isinstance(found["sha256"], dict):
                return dict(found)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{self.record_path} cannot be read ({error}); reinstall text2sam") from error
        raise WeightsError(f"{self.record_path} has no SHA-256; reinstall text2sam")

    def sha256(self, filename: str) -> str:
        """A file's SHA-256 in the record.

        Raises:
            WeightsError: the record is missing or does not have the file.
        """
        checksums = self.record()["sha256"]
        if filename not in checksums:
            raise WeightsError(f"{self.record_path} has no SHA-256 of {filename}; reinstall text2sam")
        return str(checksums[filename])

    def file(self, filename: str) -> Path:
        """The path of a file, once its SHA-256 is seen to be the record's.

        Raises:
            WeightsError: it is not there.
            ChecksumError: it is damaged.
        """
        from text2sam.zoo.download import file_sha256

        path = self.folder / filename
        if not path.exists():
            raise WeightsError(
                f"{path} is not there: this installation of text2sam lacks the {self.name} weights; reinstall it"
            )
        expected = self.sha256(filename)
        actual = file_sha256(path)
        if actual != expected:
            raise ChecksumError(f"{path} is damaged: its SHA-256 is {actual}, not {expected}; reinstall text2sam")
        return path

    def state_dict(self, filename: str) -> dict[str, torch.Tensor]:
        """The tensors of a file, in float32; errors are those of :meth:`file`."""
        from text2sam.zoo.state_dicts import load_state_dict

        tensors = load_state_dict(self.file(filename))
        return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}

    def write(self, filename: str, content: bytes | Mapping[str, torch.Tensor], **more: Any) -> Path:
        """Writes a file and enters its SHA-256, and ``more``, in the record.

        Args:
            filename: of the file.
            content: bytes; or tensors, which are written in half precision.
            **more: further entries of the record.

        Raises:
            ValueError: a tensor is not finite in half precision.
        """
        from text2sam.files import write_bytes, write_json
        from text2sam.zoo.download import file_sha256

        if not isinstance(content, bytes):
            from safetensors.torch import save

            halved = {name: t.half() if t.is_floating_point() else t for name, t in content.items()}
            for name, tensor in halved.items():
                if not tensor.isfinite().all():
                    raise ValueError(f"{name} does not fit half precision")
            content = bytes(save({name: t.contiguous() for name, t in halved.items()}))
        path = self.folder / filename
        write_bytes(path, content)
        record = self.record() if self.record_path.exists() else {"sha256": {}}
        record["sha256"][filename] = file_sha256(path)
        write_json(self.record_path, record | more)
        return path
