"""`python -m examples.server`: run the server until it is told to stop, or until it has lost its engine."""

from __future__ import annotations

import contextlib
import sys

import uvicorn

from examples.server import options
from examples.server.app import App
from examples.server.client import EngineClient


def main() -> int:
    """Return 0 after an orderly end, 1 if the engine was lost."""
    chosen = options.parse()

    def end_server() -> None:
        server.should_exit = True

    engine = EngineClient(chosen, when_lost=end_server)
    config = uvicorn.Config(
        App(engine), host=chosen.host, port=chosen.port, lifespan="on", access_log=False, timeout_graceful_shutdown=3
    )
    server = uvicorn.Server(config)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it after its orderly end
        server.run()
    if engine.lost is not None:
        print(f"server: {engine.lost}", file=sys.stderr)
    return 0 if engine.lost is None else 1


if __name__ == "__main__":
    sys.exit(main())
