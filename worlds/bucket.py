"""A real S3 server (moto) on loopback, with buckets that tests can inspect."""

import logging
from types import TracebackType
from typing import Any, Final, Self

import boto3
from botocore.config import Config
from moto.server import ThreadedMotoServer

HOST: Final = "127.0.0.1"
ACCESS: Final = "AKIAIOSFODNN7EXAMPLE"
SECRET: Final = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


class Store:
    """The server and a client for it; a context manager that creates the named buckets."""

    def __init__(self, *buckets: str) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._buckets = buckets
        self._server = ThreadedMotoServer(ip_address=HOST, port=0, verbose=False)

    def __enter__(self) -> Self:
        self._server.start()
        self.port: int = self._server.get_host_and_port()[1]
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=ACCESS,
            aws_secret_access_key=SECRET,
            config=Config(s3={"addressing_style": "path"}),
        )
        for bucket in self._buckets:
            self.client.create_bucket(Bucket=bucket)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.client.close()
        self._server.stop()

    @property
    def endpoint(self) -> str:
        """The server's address."""
        return f"http://{HOST}:{self.port}"

    def objects(self, bucket: str) -> dict[str, bytes]:
        """Return every object of a bucket by its key."""
        listed = self.client.list_objects_v2(Bucket=bucket).get("Contents", [])
        return {item["Key"]: self.read(bucket, item["Key"])["Body"].read() for item in listed}

    def empty(self) -> None:
        """Delete every object of every bucket."""
        for bucket in self._buckets:
            for key in self.objects(bucket):
                self.client.delete_object(Bucket=bucket, Key=key)

    def read(self, bucket: str, key: str) -> Any:
        """Return the server's answer about one object."""
        return self.client.get_object(Bucket=bucket, Key=key)
