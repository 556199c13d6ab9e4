"""Models behind HTTP: a service of one's own, and a backend for Label Studio. Both need ``pip install "text2sam[serve]"``."""
