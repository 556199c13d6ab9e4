"""Annotated images and the formats they are written in; nothing here knows of CLIP or SAM."""
