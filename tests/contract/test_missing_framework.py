"""An integration whose framework is not installed: its import is one line that says what to install."""

from __future__ import annotations

import importlib.util

import pytest

FRAMEWORKS = {
    "accelerate": ["accelerate"],
    "keras": ["keras"],
    "lightning": ["lightning", "pytorch_lightning"],
    "transformers": ["transformers"],
}


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_the_import_of_an_integration_without_its_framework_names_the_extra(name: str) -> None:
    if any(importlib.util.find_spec(each) for each in FRAMEWORKS[name]):
        pytest.skip(f"{name} is installed here")

    with pytest.raises(ImportError) as raised:
        importlib.import_module(f"hubqueue.integrations.{name}")

    needs, _, line = str(raised.value).partition("; ")
    assert (
        needs == f"hubqueue.integrations.{name} needs {' or '.join(FRAMEWORKS[name])}, which is not installed"
    )
    assert line == f"install it with: pip install 'hubqueue[{name}]'"
