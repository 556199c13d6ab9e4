"""Which models there are: presets, checkpoints, and the pair that ships with the package."""
