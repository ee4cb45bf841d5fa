"""The create-model request of the HUB's training session."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import pytest

from hubqueue.destinations.hub.registration import create_model_payload


def test_the_payload_has_the_shape_that_the_hub_knows() -> None:
    args = {"data": "coco8.yaml", "batch": 16, "epochs": 3, "device": None, "cache": False, "lr0": 0.01}

    payload = create_model_payload("yolov8n.pt", args)

    assert payload == {
        "config": {
            "batchSize": 16,
            "epochs": 3,
            "imageSize": 640,
            "patience": 100,
            "device": "None",
            "cache": "False",
        },
        "dataset": {"name": "coco8.yaml"},
        "lineage": {"architecture": {"name": "yolov8n"}, "parent": {"name": "yolov8n.pt"}},
        "meta": {"name": "yolov8n.pt"},
    }


def test_absent_arguments_have_the_sessions_defaults() -> None:
    payload = create_model_payload("yolov8n.pt", {})

    assert payload["config"] == {
        "batchSize": -1,
        "epochs": 300,
        "imageSize": 640,
        "patience": 100,
        "device": "",
        "cache": "ram",
    }
    assert payload["dataset"] == {"name": ""}


@pytest.mark.parametrize(
    ("model", "architecture", "parent"),
    [
        ("yolov8n.pt", "yolov8n", {"name": "yolov8n.pt"}),
        ("yolov8n.yaml", "yolov8n", {}),
        ("yolov8n.yml", "yolov8n", {}),
        ("a.b.pt", "a.b", {"name": "a.b.pt"}),
        ("plain", "plain", {}),
    ],
)
def test_only_weights_have_a_parent(model: str, architecture: str, parent: dict[str, str]) -> None:
    lineage = create_model_payload(model, {})["lineage"]

    assert lineage == {"architecture": {"name": architecture}, "parent": parent}


@pytest.mark.parametrize(
    "model", ["/home/me/secret/best.pt", PurePosixPath("/data/best.pt"), "C:\\runs\\best.pt"]
)
def test_no_folder_of_this_machine_is_sent(model: str | Path) -> None:
    payload = create_model_payload(model, {})

    assert payload["meta"]["name"] == payload["lineage"]["parent"]["name"] == "best.pt"
    assert payload["lineage"]["architecture"]["name"] == "best"


def test_every_value_is_strict_json() -> None:
    class Odd:
        def __str__(self) -> str:
            return "odd"

    args = {
        "batch": Odd(),
        "epochs": float("nan"),
        "imgsz": (640, Odd()),
        "patience": None,
        "data": Path("d.yaml"),
    }

    payload = json.loads(json.dumps(create_model_payload("m.pt", args), allow_nan=False))

    assert payload["config"] == {
        "batchSize": "odd",
        "epochs": None,
        "imageSize": [640, "odd"],
        "patience": None,
        "device": "",
        "cache": "ram",
    }
    assert payload["dataset"] == {"name": "d.yaml"}


def test_a_key_in_the_address_of_a_dataset_is_masked() -> None:
    payload = create_model_payload("m.pt", {"data": "https://hub.example.org/datasets/1?api_key=hunter2"})

    assert payload["dataset"]["name"] == "https://hub.example.org/datasets/1?api_key=***"
