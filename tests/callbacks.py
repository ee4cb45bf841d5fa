"""The HUB callbacks of the ultralytics package, unmodified, from the wheels that `make` downloaded, without the package.

The module's source is executed unchanged. Stubs here replace its imports from the package, and the given session class
replaces the package's own.
"""

from __future__ import annotations

import logging
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

VERSIONS = ("8.2.70", "8.3.253")
_FILE = "ultralytics/utils/callbacks/hub.py"
Callbacks = dict[str, list[Callable[[Any], None]]]


def text_of(version: str) -> str:
    """The source of callbacks/hub.py in a version."""
    found = sorted((Path(sys.prefix) / "wheels").glob(f"ultralytics-{version}-*.whl"))
    if not found:
        pytest.skip(f"the wheel of ultralytics {version} is missing; make test downloads it")
    with zipfile.ZipFile(found[0]) as wheel:
        return wheel.read(_FILE).decode()


@contextmanager
def hub_callbacks(
    version: str, session: type, *, web_url: str = "https://hub.ultralytics.com"
) -> Iterator[Callbacks]:
    """The callbacks of a version, with `session` as its HUBTrainingSession."""
    package, hub, utils = (
        types.ModuleType(name) for name in ("ultralytics", "ultralytics.hub", "ultralytics.utils")
    )
    torch_utils = types.ModuleType("ultralytics.utils.torch_utils")
    hub.__dict__.update(
        HUB_WEB_ROOT=web_url, PREFIX="HUB: ", HUBTrainingSession=session, events=lambda _args: None
    )
    utils.__dict__.update(
        LOGGER=logging.getLogger("ultralytics"),
        RANK=-1,
        SETTINGS={"hub": True, "api_key": "key-of-the-tests"},
    )
    torch_utils.__dict__.update(
        model_info_for_loggers=lambda _trainer: {"model/parameters": 3157200, "model/GFLOPs": 8.9}
    )
    events = types.ModuleType("ultralytics.utils.events")
    events.__dict__.update(events=lambda *_args, **_kwargs: None)
    given = {each.__name__: each for each in (package, hub, utils, torch_utils, events)}
    before = {name: sys.modules.get(name) for name in given}
    sys.modules.update(given)
    try:
        module = types.ModuleType("ultralytics.utils.callbacks.hub")
        exec(compile(text_of(version), _FILE, "exec"), module.__dict__)
        # As in the package: one list of callbacks per event.
        names = ("on_pretrain_routine_start", "on_pretrain_routine_end", "on_fit_epoch_end", "on_model_save")
        yield {
            name: [module.__dict__["callbacks"][name]] for name in (*names, "on_train_start", "on_train_end")
        }
    finally:
        for name, module_before in before.items():
            if module_before is None:
                sys.modules.pop(name)
            else:
                sys.modules[name] = module_before
