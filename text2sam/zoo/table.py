"""The table of checkpoints: where each comes from, its checksum, size and licence."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from text2sam.errors import WeightsError

Kind = Literal["sam", "clip"]


@dataclass(frozen=True)
class Checkpoint:
    """One row of the table.

    Attributes:
        name: the name in text2sam.
        filename: the publisher's file name.
        kind: ``"sam"`` or ``"clip"``.
        model: SAM's registry key (``"vit_b"``; ``"vit_t"`` is MobileSAM), None for SAM 2, whose configuration is read off the
            weights; or open_clip's model name.
        licence: SPDX identifier of the weights' licence.
        description: one line for people.
        urls: addresses of the same bytes, in order of preference.
        sha256: 64 lower-case hexadecimal digits; None where the publisher gives none: then it is never downloaded, and is a
            file or folder that users get themselves.
        size: bytes; None where it is not known.
        pretrained: open_clip's tag for these weights, ``"openai"``; None for others.
        get: without a SHA-256, what users get themselves, and where.
    """

    name: str
    filename: str
    kind: Kind
    model: str | None
    licence: str
    description: str
    urls: tuple[str, ...] = ()
    sha256: str | None = None
    size: int | None = None
    pretrained: str | None = None
    get: str = ""


def _sam(model: str, filename: str, size: int, sha256: str) -> Checkpoint:
    return Checkpoint(
        name=f"sam-{model.replace('_', '-')}",
        filename=filename,
        urls=(f"https://dl.fbaipublicfiles.com/segment_anything/{filename}",),
        sha256=sha256,
        size=size,
        licence="Apache-2.0",
        kind="sam",
        model=model,
        description=f"Segment Anything, ViT-{model[-1].upper()} image encoder (Meta AI)",
    )


def _clip(model: str, sha256: str, stem: str | None = None) -> Checkpoint:
    filename = f"{stem or model}.pt"
    return Checkpoint(
        name=f"clip-{model.lower()}-openai",
        filename=filename,
        urls=(f"https://openaipublic.azureedge.net/clip/models/{sha256}/{filename}",),
        sha256=sha256,
        licence="MIT",
        kind="clip",
        model=model,
        description=f"CLIP {model} (OpenAI)",
        pretrained="openai",
    )


CHECKPOINTS: dict[str, Checkpoint] = {
    item.name: item
    for item in (
        Checkpoint(
            name="mobile-sam",
            filename="mobile_sam.pt",
            urls=(
                "https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/master/weights/mobile_sam.pt",
                "https://huggingface.co/dhkim2810/MobileSAM/resolve/main/mobile_sam.pt",
            ),
            sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            size=40_728_226,
            licence="Apache-2.0",
            kind="sam",
            model="vit_t",
            description="MobileSAM, TinyViT image encoder (Kyung Hee University)",
        ),
        _sam(
            "vit_b",
            "sam_vit_b_01ec64.pth",
            375_042_383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        _sam(
            "vit_l",
            "sam_vit_l_0b3195.pth",
            1_249_524_607,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        _sam(
            "vit_h",
            "sam_vit_h_4b8939.pth",
            2_564_550_879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
        Checkpoint(
            name="sam2.1-hiera-tiny",
            filename="sam2.1_hiera_tiny.pt",
            urls=(
                "https://huggingface.co/facebook/sam2.1-hiera-tiny/resolve/main/sam2.1_hiera_tiny.pt",
                "https://dl.fbaipublicfiles.com/segment_anything_2/092824/sam2.1_hiera_tiny.pt",
            ),
            sha256="7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
            size=156_008_466,
            licence="Apache-2.0",
            kind="sam",
            model=None,
            description="SAM 2.1, Hiera-T image encoder (Meta AI); needs the package sam2",
        ),
        _clip("ViT-B-32", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
        _clip("ViT-B-16", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
        _clip("ViT-L-14", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
        _clip("ViT-L-14-336", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", "ViT-L-14-336px"),
        _clip("RN50", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"),
        _clip("RN101", "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599"),
        _clip("RN50x4", "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd"),
        _clip("RN50x16", "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa"),
        _clip("RN50x64", "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c"),
        Checkpoint(
            name="siglip2-base-patch16-512",
            filename="siglip2-base-patch16-512",
            licence="Apache-2.0",
            kind="clip",
            model="ViT-B-16-SigLIP2-512",
            description="SigLIP 2 ViT-B/16 at 512 px (Google); needs the package transformers",
            get="the files of https://huggingface.co/google/siglip2-base-patch16-512 (config.json, model.safetensors, those of "
            "the tokenizer) in one folder",
        ),
    )
}
"""The table, by name. Hashes of OpenAI's CLIPs are the ones in their addresses, that of SAM 2.1 is the one on its page,
huggingface.co/facebook/sam2.1-hiera-tiny/blob/main/sam2.1_hiera_tiny.pt."""


def checkpoint(name: str) -> Checkpoint:
    """The row of a name.

    Raises:
        WeightsError: no checkpoint has that name; the message suggests close names.
    """
    item = CHECKPOINTS.get(name)
    if item is None:
        raise WeightsError(f"no checkpoint is called {name!r}; {known_names(name)}")
    return item


def known_names(spec: str, kind: Kind | None = None) -> str:
    """The names of a kind for an error message, those close to ``spec`` first."""
    fitting = [item for item in CHECKPOINTS.values() if kind in (None, item.kind)]
    aliases = {alias.lower(): item.name for item in fitting for alias in (item.name, item.filename, item.model or "")}
    wanted = re.split(r"[\\/]", spec.lower())[-1]
    close = list(dict.fromkeys(aliases[alias] for alias in difflib.get_close_matches(wanted, aliases, n=3, cutoff=0.6)))
    listed = "known are " + ", ".join(item.name for item in fitting)
    return f"did you mean {' or '.join(close)}? {listed}" if close else listed
