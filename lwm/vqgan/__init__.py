"""VQGANs: networks that encode video frames as codes of a learned codebook, and decode them."""
