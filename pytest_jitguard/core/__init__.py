"""What the guard knows and decides: pure data and rules, no I/O, no pytest, no JIT library."""
