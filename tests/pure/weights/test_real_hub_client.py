"""The real Hugging Face client against a small hub on this machine: listing, fetching, going on after a break."""

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub", reason="the Hugging Face client is not installed")

REVISION = "1234567890abcdef1234567890abcdef12345678"
CONTENT = {"m-q4_0.gguf": os.urandom(12_000_000), "m-q8_0.gguf": b"another", "README.md": b"# read me"}
BREAK_AT_BYTES = 11_000_000  # the client writes pieces of ten


class LocalHub(http.server.ThreadingHTTPServer):
    """A hub with one repository, org/name, whose first delivery of a large file breaks off in the middle."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), LocalHubRequest)
        self.breaks_left = 1
        self.requests = []


class LocalHubRequest(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, *, with_body):
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        if match := re.fullmatch(rf"/org/name/resolve/{REVISION}/(.+)", self.path.partition("?")[0]):
            self.deliver(match[1], with_body=with_body)
        elif "/tree/" in self.path:
            self.send_json([self.described("path", name) | {"type": "file"} for name in CONTENT])
        elif self.path.startswith("/api/models/org/name"):
            siblings = [self.described("rfilename", name) for name in CONTENT]
            self.send_json({"id": "org/name", "sha": REVISION, "siblings": siblings})
        else:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def described(self, key, name):
        sha = hashlib.sha256(CONTENT[name]).hexdigest()
        lfs = {"sha256": sha, "oid": sha, "size": len(CONTENT[name]), "pointerSize": 130}
        return {key: name, "size": len(CONTENT[name]), "oid": "0" * 40, "blobId": "0" * 40, "lfs": lfs}

    def send_json(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def deliver(self, name, *, with_body):
        content = CONTENT[name]
        start = int(match[1]) if (match := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if not with_body:
            return
        if len(content) > BREAK_AT_BYTES and self.server.breaks_left:
            self.server.breaks_left -= 1
            self.wfile.write(content[start : start + BREAK_AT_BYTES])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(content[start:])


@pytest.fixture
def local_hub():
    server = LocalHub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def resolve(hub, folder, argument):
    """Resolve in another process, since the client reads its settings when it is imported."""
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from ridgeline.errors import UserError
from ridgeline.weights.pull import resolve_model
try:
    print(resolve_model({argument!r}, cache_folder=Path({str(folder / "ours")!r}), progress=False))
except UserError as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HOME": str(folder / "theirs"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"} | settings
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_quantisation_is_fetched_and_a_broken_delivery_goes_on_where_it_broke(tmp_path, local_hub):
    done = resolve(local_hub, tmp_path, "hf:org/name:Q4_0")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.read_bytes() == CONTENT["m-q4_0.gguf"]
    assert not (path.parent / "m-q8_0.gguf").exists()
    ranges = [asked for command, name, asked in local_hub.requests if command == "GET" and "m-q4_0" in name]
    assert len(ranges) == 2 and ranges[0] is None and re.fullmatch(r"bytes=1\d{7}-.*", ranges[1]), ranges

    local_hub.requests.clear()
    again = resolve(local_hub, tmp_path, "hf:org/name:Q4_0")
    assert again.stdout == done.stdout and local_hub.requests == []


def test_a_repository_that_is_not_there_is_said(tmp_path, local_hub):
    done = resolve(local_hub, tmp_path, "hf:org/other")
    assert done.returncode == 1
    assert "DownloadError: hf:org/other: " in done.stderr and "hint: " in done.stderr
    assert "Traceback" not in done.stderr
