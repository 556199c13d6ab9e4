"""Trains the sticker pair: ``python -m text2sam.lab.sticker.train clip|sam --out FOLDER``.

A run that was stopped resumes from the checkpoint in the folder. Several processes can train the SAM together, each on a core
or a GPU: ``torchrun --nproc-per-node 2 -m text2sam.lab.sticker.train sam --out FOLDER``.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("clip", "sam"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and the log")
    parser.add_argument("--device", default=None, help="cuda, mps or cpu (default: the best available)")
    parser.add_argument("--workers", type=int, default=1, help="number of processes that draw scenes")
    parser.add_argument("--ship", action="store_true", help="write the trained weights and their record into the package")
    parser.add_argument("--share", type=float, default=1.0, help="share of every stage's steps to run")
    arguments = parser.parse_args()
    if not 0 < arguments.share <= 1:
        parser.error(f"--share must be above 0 and at most 1, not {arguments.share}")
    import torch

    from text2sam.devices import pick_device
    from text2sam.lab.sticker import train_clip, train_sam

    device = str(pick_device(arguments.device))
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun
    if processes > 1:
        if arguments.which == "clip":
            parser.error("the contrastive loss needs the whole batch: train clip in one process")
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    train: Any
    stages: tuple[Any, ...]
    if arguments.which == "clip":
        train, stages = train_clip.train_clip, train_clip.CLIP_STAGES
    else:
        train, stages = train_sam.train_sam, train_sam.SAM_STAGES
    checkpoint = train(
        arguments.out,
        stages=tuple(replace(stage, steps=max(1, round(arguments.share * stage.steps))) for stage in stages),
        device=device,
        workers=arguments.workers,
    )
    if processes > 1:
        torch.distributed.destroy_process_group()
    if rank:
        return
    print(checkpoint)
    if arguments.ship:
        print(ship_checkpoint(arguments.which, checkpoint))


def ship_checkpoint(which: str, checkpoint: Path) -> Path:
    """Writes the weights of a checkpoint, in half precision, and their training record into the package."""
    import torch

    from text2sam.lab.shipping import write_shipped
    from text2sam.zoo.sticker.models import SHIPPED, build_clip, build_sam

    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = build_clip() if which == "clip" else build_sam()
    model.load_state_dict(state["model"])
    log = (checkpoint.parent / f"{which}_log.jsonl").read_text().splitlines()
    training = SHIPPED.record().get("training", {})
    training[which] = {
        "command": f"python -m text2sam.lab.sticker.train {which}",
        "steps": state["step"],
        "stages": json.loads((checkpoint.parent / f"{which}_stages.json").read_text()),
        "last_log_line": json.loads(log[-1]),
        "torch": torch.__version__,
    }
    return write_shipped(SHIPPED, f"{which}.safetensors", model.state_dict(), training=training)


if __name__ == "__main__":
    main()
