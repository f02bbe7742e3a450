"""A bucket for tests: a local server that speaks what TensorStore asks of Cloud Storage, and gs://.

It has a bucket's ways: objects are there whole or not at all, there are no folders, nothing is
renamed and nothing is appended to. Requests are counted, may be delayed, and may fail.
"""

import http.server
import io
import json
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import fsspec
from fsspec.spec import AbstractFileSystem

ADDRESS = "TENSORSTORE_GCS_HTTP_URL"


class Server(http.server.ThreadingHTTPServer):
    """The server, in a thread of this process.

    Attributes:
      objects: content by "bucket/name".
      requests: what was asked, as (method, "bucket/name").
      delay: seconds that every request takes.
      broken: methods that fail.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.generations: dict[str, int] = {}
        self.requests: list[tuple[str, str]] = []
        self.delay, self.broken, self.lock = 0.0, set(), threading.Lock()
        self.count = 1  # of an object that a test has put there
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self) -> dict[str, str]:
        """The variables with which TensorStore and `install` find it."""
        return {ADDRESS: self.url, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none"}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_):
        pass

    def _answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _begin(self) -> tuple[str, str, dict[str, str]]:
        """Reads what is asked: the bucket, the object's name, and the conditions."""
        path, _, query = self.path.partition("?")
        options = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        bucket, _, name = path.split("/b/", 1)[1].partition("/o")
        name = urllib.parse.unquote(name.removeprefix("/")) or options.get("name", "")
        with self.server.lock:
            self.server.requests.append((self.command, f"{bucket}/{name}"))
        time.sleep(self.server.delay)
        return bucket, f"{bucket}/{name}", options

    def _meets(self, key: str, options: dict[str, str]) -> bool:
        """Answers a request whose condition isn't met."""
        found = self.server.generations.get(key, 1) if key in self.server.objects else 0
        if self.command in self.server.broken:
            self._answer(403, b"no")
        elif int(options.get("ifGenerationMatch", found)) != found:
            self._answer(412)
        elif found and options.get("ifGenerationNotMatch") == str(found):
            self._answer(304)
        else:
            return True
        return False

    def do_GET(self):
        bucket, key, options = self._begin()
        if not self._meets(key, options):
            return
        if options.get("alt") != "media" and key == f"{bucket}/":
            return self._list(bucket, options)
        with self.server.lock:
            data = self.server.objects.get(key)
            generation = str(self.server.generations.get(key, 1))
        if data is None:
            return self._answer(404)
        if options.get("alt") != "media":
            return self._answer(200, json.dumps(self._told(key)).encode())
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            size = len(data)
            start, end = (int(first), int(last or size - 1)) if first else (size - int(last), size)
            part = data[start : end + 1]
            span = f"bytes {start}-{start + len(part) - 1}/{size}"
            return self._answer(206, part, x_goog_generation=generation, Content_Range=span)
        self._answer(200, data, x_goog_generation=generation)

    def _told(self, key: str) -> dict[str, str]:
        return {
            "name": key.partition("/")[2],
            "size": str(len(self.server.objects[key])),
            "generation": str(self.server.generations.get(key, 1)),
        }

    def _list(self, bucket: str, options: dict[str, str]) -> None:
        first = f"{bucket}/{options.get('startOffset', options.get('prefix', ''))}"
        prefix = f"{bucket}/{options.get('prefix', '')}"
        last = f"{bucket}/{options['endOffset']}" if "endOffset" in options else None
        with self.server.lock:
            items = [
                self._told(key)
                for key in sorted(self.server.objects)
                if key.startswith(prefix) and key >= first and (last is None or key < last)
            ]
        self._answer(200, json.dumps({"items": items}).encode())

    def do_POST(self):
        _, key, options = self._begin()
        data = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            if not self._meets(key, options):
                return
            self.server.count += 1
            self.server.objects[key], self.server.generations[key] = data, self.server.count
            told = json.dumps(self._told(key)).encode()
        self._answer(200, told)

    def do_DELETE(self):
        _, key, options = self._begin()
        with self.server.lock:
            if not self._meets(key, options):
                return
            found = self.server.objects.pop(key, None)
        self._answer(404 if found is None else 204)


class Bucket(AbstractFileSystem):
    """What fsspec takes for gs://, as gcsfs would be: objects of the server that runs."""

    protocol = ("gs", "gcs")
    cachable = False

    def __init__(self, finalize_on_close: bool = True, **options):
        super().__init__(**options)

    @classmethod
    def _strip_protocol(cls, path):
        path = os.fspath(path)
        return path.removeprefix("gs://").removeprefix("gcs://").strip("/")

    def _ask(self, method: str, path: str, data: bytes | None = None, **options: str) -> bytes:
        bucket, _, name = self._strip_protocol(path).partition("/")
        where = "upload/storage" if method == "POST" else "storage"
        url = f"{os.environ[ADDRESS]}/{where}/v1/b/{bucket}/o"
        if method == "POST":
            options["name"] = name
        elif name:
            url += f"/{urllib.parse.quote(name, safe='')}"
        request = urllib.request.Request(f"{url}?{urllib.parse.urlencode(options)}", data)
        request.method = method
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise FileNotFoundError(path) from None
            if error.code == 412:
                raise FileExistsError(path) from None
            raise RuntimeError(f"{path}: HTTP status {error.code}") from None

    def _open(self, path, mode="rb", **_):
        if mode == "rb":
            return io.BytesIO(self._ask("GET", path, alt="media"))
        if mode != "wb":
            raise NotImplementedError(f"a bucket has no mode {mode!r}")
        return _Written(lambda data: self._ask("POST", path, data))

    def pipe_file(self, path, value, mode="overwrite", **_):
        options = {"ifGenerationMatch": "0"} if mode == "create" else {}
        self._ask("POST", path, value, **options)

    def _found(self, prefix: str) -> dict[str, dict]:
        """What fsspec is told of each object whose name begins so."""
        bucket, _, name = prefix.partition("/")
        found = {}
        for item in json.loads(self._ask("GET", bucket, prefix=name))["items"]:
            key, size = f"{bucket}/{item['name']}", int(item["size"])
            told = {"name": key, "size": size, "type": "file", "generation": item["generation"]}
            found[key] = told
        return found

    def ls(self, path, detail=True, **_):
        path, found = self._strip_protocol(path), {}
        for key, told in self._found(f"{path}/").items():
            name, slash, _ = key[len(path) + 1 :].partition("/")
            full = f"{path}/{name}"
            found[full] = {"name": full, "size": 0, "type": "directory"} if slash else told
        if not found:
            found[path] = self.info(path)
        return list(found.values()) if detail else sorted(found)

    def info(self, path, **_):
        path = self._strip_protocol(path)
        found = self._found(path)
        if path in found:
            return found[path]
        if any(key.startswith(f"{path}/") for key in found):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def rm(self, path, recursive=False, **_):
        if isinstance(path, list):
            for each in path:
                self.rm(each, recursive)
            return
        path = self._strip_protocol(path)
        inside = f"{path}/"
        found = [
            key
            for key in self._found(path)
            if key == path or (recursive and key.startswith(inside))
        ]
        if not found:
            raise FileNotFoundError(path)
        for key in found:
            self._ask("DELETE", key)

    def mkdir(self, path, create_parents=True, **_):
        pass

    def makedirs(self, path, exist_ok=False):
        pass

    def mv(self, *_, **__):
        raise NotImplementedError("a bucket renames nothing")

    def created(self, path):
        raise NotImplementedError

    def modified(self, path):
        raise NotImplementedError


class _Written(io.BytesIO):
    """A file that becomes an object when it is closed."""

    def __init__(self, write):
        super().__init__()
        self._write = write

    def close(self):
        if not self.closed:
            self._write(self.getvalue())
        super().close()


def install() -> None:
    """Makes fsspec take gs:// for the server's bucket, in this process."""
    for name in Bucket.protocol:
        fsspec.register_implementation(name, Bucket, clobber=True)
