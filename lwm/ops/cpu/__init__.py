"""Forms of products, convolutions and caches that XLA compiles to fast code on CPU."""
