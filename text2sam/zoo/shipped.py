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

    def record(self) -> dict[str, Any]:
        """What the record says: checksums, and how the files were made.

        Raises:
            WeightsError: it is missing or broken.
        """
        path = self.folder / "record.json"
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(record["sha256"], dict):
                raise TypeError("it has no SHA-256")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{path} cannot be read ({error!r}); reinstall text2sam") from error
        return record

    def sha256(self, filename: str) -> str:
        """A file's SHA-256 in the record.

        Raises:
            WeightsError: the record is missing or does not have the file.
        """
        checksums = self.record()["sha256"]
        if filename not in checksums:
            raise WeightsError(f"the record in {self.folder} has no SHA-256 of {filename}; reinstall text2sam")
        return str(checksums[filename])

    def file(self, filename: str) -> Path:
        """The path of a file, once its SHA-256 is seen to be the record's.

        Raises:
            WeightsError: it is not there, or :meth:`sha256` does not know it.
            ChecksumError: it is damaged.
        """
        from text2sam.zoo.download import file_sha256

        path = self.folder / filename
        if not path.exists():
            raise WeightsError(
                f"{path} is not there: this installation of text2sam lacks the {self.name} weights; reinstall it"
            )
        expected, actual = self.sha256(filename), file_sha256(path)
        if actual != expected:
            raise ChecksumError(f"{path} is damaged: its SHA-256 is {actual}, not {expected}; reinstall text2sam")
        return path

    def state_dict(self, filename: str) -> dict[str, torch.Tensor]:
        """The tensors of a file, in float32; errors are those of :meth:`file`."""
        from text2sam.zoo.state_dicts import load_state_dict

        tensors = load_state_dict(self.file(filename))
        return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
