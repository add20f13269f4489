"""An OpenAI-compatible completions server with an engine process and expert-parallel ranks, built to be guarded."""
