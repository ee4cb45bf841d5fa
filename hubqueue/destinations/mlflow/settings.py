"""The settings of an MLflow tracking server."""

from __future__ import annotations

from dataclasses import dataclass

from hubqueue.config import forms
from hubqueue.config.setting import setting
from hubqueue.config.settings import DestinationSettings


@dataclass(frozen=True, slots=True)
class MlflowSettings(DestinationSettings):
    """An MLflow tracking server. `url` is its address, as in `MLFLOW_TRACKING_URI`."""

    type: str = "mlflow"
    url: str = setting(
        forms.web_address(),
        default="",
        absent="must be set",
        example="https://mlflow.example.org",
        required=True,
        help="the API root; no user, query or fragment",
    )
    experiment: str = setting(
        forms.text("name"),
        default="Default",
        help="the experiment of the runs. It is made if the server has none of this name",
    )
