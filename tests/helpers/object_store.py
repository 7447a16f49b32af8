"""An S3 server on this machine (moto's), and what tests of workspaces on it share."""

import contextlib
import http.server
import json
import logging
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import boto3
import s3fs
from moto.server import ThreadedMotoServer

BUCKET = "bucket"
KEYS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}


class ObjectStore(logging.Handler):
    """The server's address, as environment variables, and its log of requests."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address
        self.environment = {"AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1", **KEYS}
        self.requests: list[str] = []
        self.url = f"s3://{BUCKET}/run"  # an empty place; another for each test

    def emit(self, record: logging.LogRecord) -> None:
        self.requests.append(record.getMessage())

    def client(self, service: str = "s3") -> object:
        keys = {name.lower(): value for name, value in KEYS.items()}
        return boto3.client(service, endpoint_url=self.address, region_name="us-east-1", **keys)

    def read_only_user(self) -> dict[str, str]:
        """Environment variables of a user who may list and read, and nothing else."""
        iam = self.client("iam")
        iam.create_user(UserName="reader")
        statement = {"Effect": "Allow", "Action": ["s3:List*", "s3:Get*"], "Resource": "*"}
        iam.put_user_policy(
            UserName="reader",
            PolicyName="read",
            PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [statement]}),
        )
        key = iam.create_access_key(UserName="reader")["AccessKey"]
        return {
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        }

    @contextlib.contextmanager
    def checking_access(self) -> Iterator[None]:
        """Refuse, for the block, what a request's keys do not allow; else anybody may do all."""
        self._set_free_requests(b"0")
        try:
            yield
        finally:
            self._set_free_requests(b"Infinity")

    def _set_free_requests(self, count: bytes) -> None:
        address, plain = f"{self.address}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(address, count, plain)).close()


@contextlib.contextmanager
def serving() -> Iterator[ObjectStore]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    store = ObjectStore(f"http://{host}:{port}")
    log = logging.getLogger("werkzeug")
    level, propagate = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(store)
    try:
        store.client().create_bucket(Bucket=BUCKET)
        yield store
    finally:
        log.removeHandler(store)
        log.setLevel(level)
        log.propagate = propagate
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()


@contextlib.contextmanager
def faulty(status: int, *, code: str = "", region: str = "", hangs: bool = False) -> Iterator[Any]:
    """A store that answers every request alike, or never.

    Yields:
        Its environment variables, and a list of the requests that it got.
    """
    requests: list[str] = []
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            requests.append(self.command)
            if hangs:
                over.wait()
            body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            self.send_response(status)
            if region:
                self.send_header("x-amz-bucket-region", region)
            self.send_header("Content-Length", str(len(body) * (self.command != "HEAD")))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        s3fs.S3FileSystem.clear_instance_cache()
        try:
            yield {"AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1", **KEYS}, requests
        finally:
            over.set()
            server.shutdown()
            s3fs.S3FileSystem.clear_instance_cache()
