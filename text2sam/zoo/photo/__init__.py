"""The photo pair: an ImageNet classifier read as a CLIP of words, and MobileSAM; both ship with the package."""
