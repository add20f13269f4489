"""A real server for the tests, which can misbehave in every way that a server does. Everything is a flag."""

from __future__ import annotations

import argparse
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

BEGAN = time.monotonic()


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--marker", default="")  # only to be found in /proc
    parser.add_argument("--late", type=float, default=0.0)  # 503 for so long
    parser.add_argument("--status", type=int, default=200)
    parser.add_argument("--hang", action="store_true")
    parser.add_argument("--stubborn", action="store_true")
    parser.add_argument("--children", type=int, default=0)
    parser.add_argument("--daemon", action="store_true")
    parser.add_argument("--spit", type=Path)  # a file to print
    parser.add_argument("--flood", type=int, default=0)  # MiB to print
    parser.add_argument("--mark", default="")  # what to print, after --mark-after seconds
    parser.add_argument("--mark-after", type=float, default=0.0)
    parser.add_argument("--metrics", type=Path)
    parser.add_argument("--die", action="store_true")
    parser.add_argument("--kill-after", type=float)
    parser.add_argument("--serve-when", type=Path)  # listen once this file is there
    parser.add_argument("--deaf", action="store_true")  # never listen
    parser.add_argument("--show-environment", default="")
    return parser.parse_args()


class Handler(http.server.BaseHTTPRequestHandler):
    told: argparse.Namespace

    def do_GET(self) -> None:
        if self.told.hang:
            time.sleep(600)
        late = time.monotonic() - BEGAN < self.told.late
        body = b"fine"
        if self.path == "/metrics" and self.told.metrics:
            body = self.told.metrics.read_bytes()
        elsewhere = self.path == "/elsewhere"
        self.send_response(503 if late else 200 if elsewhere else self.told.status)
        if self.told.status == 302 and not elsewhere:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def spawn_child(marker: str) -> None:
    subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)", marker])


def spawn_daemon() -> None:
    """Fork twice into a session of its own, deaf to the polite request."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        os._exit(0)
    os.wait()


def say_later(text: str, seconds: float) -> None:
    def say() -> None:
        time.sleep(seconds)
        print(text, flush=True)

    threading.Thread(target=say, daemon=True).start()


def misbehave(told: argparse.Namespace) -> None:
    if told.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(told.children):
        spawn_child(told.marker)
    if told.daemon:
        spawn_daemon()
    if told.spit:
        sys.stdout.buffer.write(told.spit.read_bytes())
    for number in range(told.flood * 1024):
        print(f"{number:07d} " + "x" * 1015)
    sys.stdout.flush()
    if told.show_environment:
        print(os.environ.get(told.show_environment), Path.cwd(), flush=True)
    if told.mark:
        say_later(told.mark, told.mark_after)
    if told.kill_after is not None:
        threading.Timer(told.kill_after, os.kill, (os.getpid(), signal.SIGKILL)).start()
    if told.die:
        raise RuntimeError("no such model: llama-0.5B")


def main() -> None:
    told = options()
    misbehave(told)
    while told.deaf or (told.serve_when and not told.serve_when.exists()):
        time.sleep(0.02)
    Handler.told = told
    http.server.ThreadingHTTPServer(("127.0.0.1", told.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
