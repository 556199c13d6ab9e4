"""Trains the sticker pair: ``python -m text2sam.sticker.train clip|sam --out FOLDER``.

Stop it at any time; started again with the same folder it goes on from the newest checkpoint there.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("clip", "sam"))
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the log")
    parser.add_argument("--device", default=None, help="cuda, mps or cpu; the best there is by default")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw scenes")
    arguments = parser.parse_args()
    from text2sam.devices import pick_device

    device = str(pick_device(arguments.device))
    if arguments.which == "clip":
        from text2sam.sticker.train_clip import train_clip

        print(train_clip(arguments.out, device=device, workers=arguments.workers))
    else:
        from text2sam.sticker.train_sam import train_sam

        print(train_sam(arguments.out, device=device, workers=arguments.workers))


if __name__ == "__main__":
    main()
