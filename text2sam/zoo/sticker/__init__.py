"""The sticker pair: a CLIP and a SAM small enough to ship, and the world that trains and measures them."""
