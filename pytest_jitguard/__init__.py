"""Guards LLM serving against kernels that are compiled while a request waits.

PYTEST_DONT_REWRITE: monitored processes import this package before pytest does.
"""

__version__ = "0.1.0"
