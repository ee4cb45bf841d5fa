"""The settings of a repository on the Hugging Face Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta

from hubqueue.config.forms import Form, Given, Refused, flag
from hubqueue.config.setting import setting, unset
from hubqueue.config.settings import DestinationSettings, RateLimits

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPO_ID = re.compile(rf"{_PART}/{_PART}")


def _repo_id(given: Given) -> str:
    found = given.value
    is_valid = isinstance(found, str) and _REPO_ID.fullmatch(found)
    if not is_valid or re.search(r"--|\.\.|\.git$", str(found)):
        raise Refused("must be OWNER/NAME, as in the address of the repository")
    return str(found)


@dataclass(frozen=True, slots=True)
class HuggingfaceSettings(DestinationSettings):
    """A repository on the Hugging Face Hub.

    Each delivered batch is a commit. The Hub accepts 128 commits an hour in a repository; the usual pace of one run is 120.
    """

    type: str = "huggingface"
    url: str = "https://huggingface.co"
    web_url: str = unset("")
    upload_hosts: tuple[str, ...] = unset(())
    rate_limits: RateLimits = RateLimits(metrics=timedelta(minutes=1), ckpt=timedelta(minutes=1))
    repo_id: str = setting(
        Form(_repo_id, unit="OWNER/NAME", schema={"type": "string", "pattern": f"^{_REPO_ID.pattern}$"}),
        default="",
        example="my-name/my-trainings",
        required=True,
        help="the repository, of the type model. It is created if it does not exist",
    )
    private: bool = setting(
        flag(),
        default=True,
        help="`true` creates a private repository, `false` a public one. An existing one stays as it is",
    )
