"""The drawn sticker world, and the training of the pair that ships with the package."""
