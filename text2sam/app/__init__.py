"""The web page: ``text2sam app``."""
