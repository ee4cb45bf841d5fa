"""What the integrations of the training frameworks share: their checks at the start, and that nothing raises later.

Promises: a person's mistake (an unknown option, a wrong configuration) raises before the training starts. Every other error of
hubqueue is logged, and the training continues.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from hubqueue.config.choice import choose_all
from hubqueue.config.credentials import Credentials
from hubqueue.config.home import Home
from hubqueue.config.names import did_you_mean
from hubqueue.domain.errors import ConfigError, InvalidArgument, InvalidModel
from hubqueue.producer.called_with import check_start, destination_names, run_name
from hubqueue.producer.run import Run, start_run
from hubqueue.producer.startup.wanted import readable_settings
from hubqueue.producer.survival import logger

_P = ParamSpec("_P")
_T = TypeVar("_T")
_LOG = logger()
_MISTAKES = (ConfigError, InvalidArgument, InvalidModel)


def not_installed(library: str, extra: str) -> ImportError:
    """The error to raise where the library of an integration cannot be imported."""
    line = f"pip install 'hubqueue[{extra}]'"
    return ImportError(
        f"hubqueue.integrations.{extra} needs {library}, which is not installed; install it with: {line}",
        name=library,
    )


def is_main_process(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process sends: of several that train together (torchrun, `accelerate launch`), the one with rank 0."""
    return environ.get("RANK", "0") in ("-1", "0")


def check_options(caller: str, options: Mapping[str, Any]) -> None:
    """Check the options of `start_run` before a training starts, except `model` and `args`.

    `caller` is the name in the errors. Raises `InvalidArgument` for unknown options and values, `ConfigError` for a wrong
    configuration.
    """
    known = set(inspect.signature(start_run).parameters) - {"model", "args"}
    for each in options.keys() - known:
        hint = f"the options are those of start_run: {', '.join(sorted(known))}"
        raise InvalidArgument(f"{caller} has no option {each!r}{did_you_mean(each, known)}", hint=hint)
    check_start("model.pt", None, options.get("worker", "auto"))
    run_name(options.get("name"))
    home = Home.locate(options.get("home"))
    settings, _ = readable_settings(home, options.get("config"), strict=bool(options.get("strict")))
    names = destination_names(options.get("destination"))
    choose_all(settings, Credentials(home.credentials, os.environ), names)


def started(model: str, args: Mapping[str, object], options: Mapping[str, Any]) -> Run | None:
    """The started run; None if that failed for a reason that is nobody's mistake. Raises as `start_run` does."""
    try:
        return start_run(model, args=args, **options)
    except _MISTAKES:
        raise
    except Exception:
        _LOG.exception("the run could not be started; the training continues without it")
        return None


def guarded(act: Callable[_P, _T]) -> Callable[_P, _T | None]:
    """A callback that never raises: an error is logged, and the training continues."""

    @functools.wraps(act)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        try:
            return act(*args, **kwargs)
        except Exception:
            _LOG.exception("%s failed in hubqueue; the training continues", act.__qualname__)
            return None

    return call
