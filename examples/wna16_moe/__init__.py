"""A WNA16 (4-bit weights, 16-bit activations) mixture-of-experts layer whose small warmup batch misses a kernel."""
