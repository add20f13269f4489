"""A witness below all frameworks: what the NVIDIA driver loads and compiles, checked against the monitors' events."""
