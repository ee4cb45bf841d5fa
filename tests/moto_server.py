"""A second server that speaks S3: moto, in this process, behind a socket. It does not compare checksums."""

from __future__ import annotations

import http.server
import threading
from types import TracebackType
from typing import Self


class MotoServer:
    """Listens on a loopback port; `url` is its address. Loads moto when it is made, which takes a second."""

    def __init__(self) -> None:
        from moto import mock_aws

        self._mock = mock_aws()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._mock.start()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._mock.stop()


def _handler() -> type[http.server.BaseHTTPRequestHandler]:
    from botocore.awsrequest import AWSPreparedRequest
    from moto.core.botocore_stubber import BotocoreStubber

    stubber = BotocoreStubber()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            # moto recognizes S3 by the address of AWS.
            url = f"https://s3.amazonaws.com{self.path}"
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            found = stubber.process_request(AWSPreparedRequest(self.command, url, headers, body, False))
            assert found is not None, url
            status, response_headers, content = found
            content = content.encode() if isinstance(content, str) else content or b""
            self.send_response_only(status)
            length = str(len(content))
            for name, value in response_headers.items():
                if name.lower() == "content-length":
                    length = str(value)
                elif name.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(name, str(value))
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_PUT = do_POST = do_HEAD = do_DELETE = do_GET  # noqa: N815 - the names of http.server

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
