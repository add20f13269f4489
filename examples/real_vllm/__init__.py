"""A real vLLM under the guard; see conftest.py."""
