"""Forms of operations that XLA compiles well for CPUs."""
