"""Requests as data, and the HTTP driver that sends them to an OpenAI-compatible server."""
