"""A chat-completions endpoint on loopback that misbehaves as it is told, and counts what it is asked."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKENS = (100, 7)  # what every answer is said to have cost: input, output


@dataclass(frozen=True)
class Say:
    """One response: `text` as a completion, or `body` as it stands; `cut` bytes of it are promised and not sent."""

    text: str | None = "Fine. Rating: [[1]]"
    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0
    hang: bool = False

    def payload(self) -> bytes:
        if self.body is not None:
            return self.body
        if self.status != 200:
            return json.dumps({"error": {"message": self.text}}).encode()
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": self.text}}
        usage = {"prompt_tokens": TOKENS[0], "completion_tokens": TOKENS[1], "total_tokens": sum(TOKENS)}
        made = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        return json.dumps(made).encode()


Script = Callable[[str, int], Say]
"""From the question and how often it was asked before."""


class Stub:
    """The endpoint.

    Attributes:
        asked: how often each question was asked.
        bodies: every request's body.
        keys: every key that was sent.
        most: the most requests that were open at once.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.most = self.open = 0
        self.lock = threading.Lock()
        self.done = threading.Event()
        self.together = threading.Semaphore(0)  # released for every request that has come in
        self.url = ""

    def begin(self, body: dict[str, Any], key: str) -> Say:
        question = body["messages"][0]["content"]
        with self.lock:
            self.open += 1
            self.most = max(self.most, self.open)
            before = self.asked[question]
            self.asked[question] += 1
            self.bodies.append(body)
            self.keys.add(key)
        self.together.release()
        return self.script(question, before)

    def end(self) -> None:
        with self.lock:
            self.open -= 1


@contextmanager
def serving(script: Script = lambda question, before: Say()) -> Iterator[Stub]:
    """The endpoint, while the block runs."""
    stub = Stub(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            say = stub.begin(body, self.headers.get("Authorization", ""))
            if say.hang:
                stub.done.wait(20)
            payload = say.payload()
            stub.end()
            try:
                self.send_response(say.status)
                for name, value in {"Content-Type": "application/json", **say.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(payload) + say.cut))
                self.end_headers()
                self.wfile.write(payload)
                self.close_connection = say.cut > 0
            except OSError:  # the client has gone
                self.close_connection = True

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.done.set()
        server.shutdown()
        server.server_close()
        thread.join()
