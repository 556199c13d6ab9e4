"""``python -m text2sam`` is the command ``text2sam``."""

from __future__ import annotations

from text2sam.cli import main

if __name__ == "__main__":
    main()
