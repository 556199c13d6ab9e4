"""All commands of this package: to import them is to register them with :data:`app`."""

from __future__ import annotations

from text2sam.cli import annotate, calibrate, demo, explain, models, page, segment, serve, warm  # noqa: F401, they register
from text2sam.cli.common import app as app
