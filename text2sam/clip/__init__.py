"""CLIP Surgery on open_clip models: prompts, architecture surgery, feature surgery, similarity maps."""
