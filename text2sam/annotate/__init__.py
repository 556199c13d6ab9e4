"""Folder jobs: a folder in, a dataset out, nothing lost."""
