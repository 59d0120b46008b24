"""An OpenAI-compatible server on loopback that behaves, or misbehaves, as a test asks."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Stub(ThreadingHTTPServer):
    """Answers each chat request by `act(body, number)`.

    The action is a text, the reply; or (status, JSON or text); or ("slow", seconds, text), or
    ("cut",), which ends the connection in the middle of the reply.
    """

    daemon_threads = True

    def __init__(self, act, models=("eyes", "other"), key=""):
        super().__init__(("127.0.0.1", 0), Handler)
        self.act, self.models, self.key = act, models, key
        self.bodies, self.headers_seen, self.at_once, self.most = [], [], 0, 0
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def spec(self, model="eyes"):
        return f"openai:{self.url}#{model}"

    def handle_error(self, request, client_address):
        """Say nothing of clients that hung up."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        """Say nothing."""

    def send(self, status, value):
        data = value if isinstance(value, str) else json.dumps(value)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data.encode())))
        self.end_headers()
        self.wfile.write(data.encode())

    def refused(self):
        said = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not self.server.key or said == self.server.key:
            return False
        self.send(401, {"error": {"message": f"Incorrect API key provided: {said}."}})
        return True

    def do_GET(self):
        self.server.headers_seen.append({k.lower(): v for k, v in self.headers.items()})
        if self.refused():
            return
        if self.server.models is None:
            self.send(404, {"error": {"message": "no such page"}})
        else:
            listed = [{"id": name, "object": "model"} for name in self.server.models]
            self.send(200, {"object": "list", "data": listed})

    def do_POST(self):
        stub = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with stub.lock:
            stub.headers_seen.append({k.lower(): v for k, v in self.headers.items()})
            number = len(stub.bodies)
            stub.bodies.append(body)
            stub.at_once += 1
            stub.most = max(stub.most, stub.at_once)
        try:
            if not self.refused():
                self.act(stub.act(body, number))
        finally:
            with stub.lock:
                stub.at_once -= 1

    def act(self, action):
        if isinstance(action, tuple) and action[0] == "slow":
            time.sleep(action[1])
            action = action[2]
        if isinstance(action, str):
            message = {"role": "assistant", "content": action}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self.send(200, {"id": "1", "object": "chat.completion", "choices": [choice]})
        elif action == ("cut",):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"id": "1", "cho')
            self.wfile.flush()
            self.close_connection = True
        else:
            self.send(*action)


@contextmanager
def serving(act, **kwargs):
    """Run a stub while the block runs."""
    with Stub(act, **kwargs) as stub:
        thread = threading.Thread(target=stub.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield stub
        finally:
            stub.shutdown()
            thread.join()
