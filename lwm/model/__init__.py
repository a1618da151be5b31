"""Dense decoder of the Llama kind over one token space, and its key/value cache."""
