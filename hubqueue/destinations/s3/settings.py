"""The settings of a bucket."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from hubqueue.config import forms
from hubqueue.config.setting import setting, unset
from hubqueue.config.settings import DestinationSettings, RateLimits

AWS = "https://s3.amazonaws.com"
"""The address of buckets of AWS in all regions: the name of a bucket is unique there."""
LEAST_PART = 5 * 1024 * 1024
"""The smallest part that S3 accepts, in bytes."""
_MOST_PART = 5 * 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class S3Settings(DestinationSettings):
    """A bucket, of AWS or of a server that speaks S3.

    Its address, `url`, is that of what is below the prefix. Checkpoints are not spaced. Metrics are, since each request
    becomes an object.
    """

    type: str = "s3"
    url: str = unset("")
    web_url: str = unset("")
    upload_hosts: tuple[str, ...] = unset(())
    rate_limits: RateLimits = RateLimits(metrics=timedelta(seconds=10), ckpt=timedelta(0))
    bucket: str = setting(
        forms.text("name"), default="", example="my-bucket", required=True, help="the bucket. It must exist"
    )
    prefix: str = setting(
        forms.text("name"), default="hubqueue", help="the folder of the bucket in which all runs are stored"
    )
    endpoint_url: str = setting(
        forms.web_address(),
        default="",
        absent="that of AWS",
        example="https://HOST",
        help="the address of another server that speaks S3",
    )
    region: str = setting(
        forms.text("name"),
        default="",
        absent="that of the AWS configuration, else us-east-1",
        example="eu-central-1",
        help="the region of the bucket",
    )
    part_size: int = setting(
        forms.size(least=LEAST_PART),
        default=16 * 1024 * 1024,
        help="the size of one part of an upload; larger files are sent in parts. At most 5 GiB. It grows for a file of more than 10,000 parts",
    )
    parts_at_once: int = setting(forms.count("parts"), default=4, help="parallel parts of one upload")
    storage_class: str = setting(
        forms.text("word"),
        default="",
        absent="that of the bucket",
        example="STANDARD_IA",
        help="the storage class of checkpoints",
    )
    keep_last: int = setting(
        forms.count("checkpoints", least=0),
        default=0,
        help="how many checkpoints of a run are kept besides the best and the final ones; 0 keeps all",
    )
    keep_best: int = setting(
        forms.count("checkpoints", least=0),
        default=0,
        help="how many best checkpoints of a run are kept; 0 keeps all",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", self.prefix.strip("/"))
        object.__setattr__(self, "part_size", min(self.part_size, _MOST_PART))
        address = "/".join(each for each in (self.endpoint_url or AWS, self.bucket, self.prefix) if each)
        object.__setattr__(self, "url", address if self.bucket else AWS)

    def key(self, name: str) -> str:
        """The key in the bucket of an object below the prefix."""
        return f"{self.prefix}/{name}" if self.prefix else name
