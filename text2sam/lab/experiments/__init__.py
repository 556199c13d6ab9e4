"""Experiments whose tables stand in the lab's README."""
