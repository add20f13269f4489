"""An OpenAI-like completions server on the fake JIT, with ranks in processes of their own.

A request says in `kernels` what each rank launches for it (a list per rank, or one list for all), in `seconds` how long
each compile takes, and in `after` how long the ranks wait before they launch.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def rank_main(rank: int, world: int, connection: Any) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
    import fakejit

    for work in iter(connection.recv, None):
        time.sleep(work["after"])
        for name in work["kernels"]:
            fakejit.launch(name, seconds=work["seconds"])
        connection.send("done")


class Ranks:
    def __init__(self, number: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._lock = threading.Lock()
        self._pipes = []
        for rank in range(number):
            ours, theirs = context.Pipe()
            context.Process(target=rank_main, args=(rank, number, theirs), daemon=True).start()
            self._pipes.append(ours)

    def run(self, kernels: list[Any], seconds: float = 0.0, after: float = 0.0) -> None:
        per_rank = kernels if kernels and isinstance(kernels[0], list) else [kernels] * len(self._pipes)
        with self._lock:
            for pipe, mine in zip(self._pipes, per_rank, strict=True):
                pipe.send({"kernels": mine, "seconds": seconds, "after": after})
            for pipe in self._pipes:
                pipe.recv()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ranks: Ranks

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.ranks.run(body.get("kernels", []), body.get("seconds", 0.0), body.get("after", 0.0))
        self._answer({"id": "1", "object": "text_completion", "choices": [{"index": 0, "text": "x"}], "usage": {}})

    def _answer(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--warm", default="")
    parser.add_argument("--warm-rank-0", default="")
    options = parser.parse_args()
    ranks = Ranks(options.ranks)
    ranks.run([name for name in options.warm.split(",") if name])
    if options.warm_rank_0:
        ranks.run([options.warm_rank_0.split(","), *([] for _ in range(options.ranks - 1))])
    Handler.ranks = ranks
    print("serving", flush=True)
    ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
