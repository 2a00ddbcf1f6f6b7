"""The part of the Hub's HTTP API that uploading an adapter and loading it again needs, on localhost."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """Repositories in memory; every commit changes what `main` holds."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self.commits: list[list[str]] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            wanted = json.loads(body)
            name = (
                f"{wanted['organization']}/{wanted['name']}" if "organization" in wanted else wanted["name"]
            )
            self.server.repositories.setdefault(name, {})
            self.server.settings[name] = wanted
            self.answer({"url": f"{self.server.endpoint}/{name}"})
        elif path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        else:
            name = path.removeprefix("/api/models/").removesuffix("/commit/main")
            lines = [json.loads(line) for line in body.splitlines()]
            added = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            self.server.repositories[name].update(added)
            self.server.commits.append(sorted(added))
            sha = self.sha(name)
            self.answer({"commitOid": sha, "commitUrl": f"{self.server.endpoint}/{name}/commit/{sha}"})

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].split("/")
        if parts[1:3] == ["api", "models"]:
            name = "/".join(parts[3:5])
            files = self.server.repositories.get(name)
            if files is None:
                self.missing("RepoNotFound")
            elif "tree" in parts:
                self.answer(
                    [
                        {"type": "file", "path": path, "size": len(content), "oid": digest(content)}
                        for path, content in files.items()
                    ]
                )
            else:
                siblings = [{"rfilename": path} for path in files]
                self.answer({"id": name, "sha": self.sha(name), "siblings": siblings})
            return
        name, path = "/".join(parts[1:3]), "/".join(parts[5:])
        content = self.server.repositories.get(name, {}).get(path)
        if content is None:
            self.missing("EntryNotFound")
            return
        self.send(content, {"ETag": f'"{digest(content)}"', "X-Repo-Commit": self.sha(name)})

    do_HEAD = do_GET

    def sha(self, name: str) -> str:
        return digest(b"".join(self.server.repositories[name].values()))

    def answer(self, value: Any) -> None:
        self.send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def missing(self, code: str) -> None:
        self.send(b"", {"X-Error-Code": code}, status=404)

    def send(self, content: bytes, headers: dict[str, str], *, status: int = 200) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def digest(content: bytes) -> str:
    """Forty hex digits, as git has them."""
    return hashlib.sha1(content).hexdigest()
