"""A hub on this machine: takes repositories and commits, and remembers them."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FakeHub:
    """What was uploaded, and how the hub answers.

    Attributes:
        endpoint: Its address.
        token: The token it wants; empty: none.
        created: Bodies of the requests for repositories.
        files: Path -> content of the last commit.
        cards: Cards that were sent to be looked at before.
    """

    endpoint: str = ""
    token: str = ""
    created: list[dict[str, object]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    cards: list[str] = field(default_factory=list)


@contextmanager
def fake_hub(token: str = "") -> Iterator[FakeHub]:
    """Serve a hub while the block runs."""
    hub = FakeHub(token=token)

    class Handler(BaseHTTPRequestHandler):
        """Answers what `upload_folder` asks."""

        def do_POST(self) -> None:
            """Take a request."""
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._answer(401, {"error": "Invalid username or password."})
            if self.path == "/api/repos/create":
                hub.created.append(json.loads(body))
                name = f"{json.loads(body).get('organization', 'me')}/{json.loads(body)['name']}"
                return self._answer(200, {"url": f"{hub.endpoint}/{name}", "id": name})
            if self.path == "/api/validate-yaml":
                hub.cards.append(json.loads(body)["content"])
                return self._answer(200, {"errors": [], "warnings": []})
            if "/preupload/" in self.path:
                files = [{**one, "uploadMode": "regular", "shouldIgnore": False} for one in json.loads(body)["files"]]
                return self._answer(200, {"files": files})
            if "/commit/" in self.path:
                operations = [json.loads(line) for line in body.splitlines()]
                values = [one["value"] for one in operations if one["key"] == "file"]
                hub.files = {value["path"]: base64.b64decode(value["content"]) for value in values}
                url = f"{hub.endpoint}{self.path.replace('/api/models', '')}"
                return self._answer(200, {"success": True, "commitOid": "0" * 40, "commitUrl": url, "hookOutput": ""})
            return self._answer(404, {"error": f"unknown: {self.path}"})

        def do_GET(self) -> None:
            """Know nothing."""
            self._answer(404, {"error": f"unknown: {self.path}"})

        def _answer(self, status: int, content: dict[str, object]) -> None:
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
