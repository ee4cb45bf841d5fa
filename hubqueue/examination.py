"""`hubqueue check`: look at everything that can be wrong, and say of each what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hubqueue import sqlite
from hubqueue.config import Config, DestinationSettings
from hubqueue.errors import ConfigError, HubqueueError, OutboxDamaged
from hubqueue.home import Home
from hubqueue.lifecycle import State
from hubqueue.outbox import Outbox, open_outbox, replace_damaged
from hubqueue.outcome import Delivered, RetryLater
from hubqueue.plain import is_intact
from hubqueue.salvage import salvage
from hubqueue.transports import connect

# Below this, in bytes, the outbox itself is in danger.
_LEAST_FREE = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    ok: bool
    detail: str
    hint: str | None = None


def examine(home: str | None, config: str | None, *, online: bool, set_aside: bool) -> list[Finding]:
    """Look at configuration, home, outbox, accounting, spool, credentials and, when `online`, the destinations."""
    try:
        place = Home.locate(home, os.environ)
        settings = place.load_config(Path(config) if config is not None else None, os.environ)
    except ConfigError as error:
        return [Finding("configuration", False, problem, error.hint) for problem in error.problems]
    except HubqueueError as error:  # a home or a file that others may change
        return [Finding("home", False, str(error), error.hint)]
    found = [
        Finding(
            "configuration",
            True,
            f"{', '.join(settings.destinations)}; a run goes to {settings.default_destination} unless it says otherwise",
        )
    ]
    found += _home(place)
    try:
        if set_aside and (aside := replace_damaged(place, settings)) is not None:
            found.append(Finding("outbox", True, f"the damaged one is kept as {aside}; a new one is started"))
        with open_outbox(home, config) as outbox:
            if set_aside:
                salvage(outbox)
            found += _asides(place)
            found += [*_outbox(outbox), *_spool(outbox), *_credentials(outbox, settings)]
            if online:
                found += _destinations(outbox, settings)
    except HubqueueError as error:
        found.append(Finding("outbox", False, str(error), error.hint))
    return found


def _home(home: Home) -> Iterator[Finding]:
    if home.is_network_file_system():
        hint = "it works, with a slower journal; a local disk is faster and safer: HUBQUEUE_HOME"
        yield Finding("home", True, f"{home.path} is on {home.file_system()}, a network file system ({hint})")
    else:
        yield Finding("home", True, f"{home.path} ({home.file_system()})")


def _asides(home: Home) -> Iterator[Finding]:
    for path in sqlite.asides(home.outbox):
        said = sqlite.report_of(path) or "a worker will look what can be saved from it"
        hint = "once everything owed has arrived, move the file and its spool away"
        yield Finding("outbox", False, f"a damaged outbox was set aside: {path}; {said}", hint)


def _outbox(outbox: Outbox) -> Iterator[Finding]:
    described = outbox.database.describe()
    if outbox.database.path:
        verdict = outbox.database.integrity()
        if verdict != "ok":
            yield Finding("outbox", False, f"{described['url']} is damaged: {verdict}", sqlite.SET_ASIDE)
            raise OutboxDamaged(f"{described['url']} is damaged", hint=sqlite.SET_ASIDE)
    journal = f"{described['journal_mode']}/{described['synchronous']}"
    yield Finding(
        "outbox",
        True,
        f"{described['url']}, revision {described['revision']}, {described['backend']} {described['version']}, {journal}",
    )
    wrong = outbox.stats.miscounted()
    if wrong:
        hint = "somebody changed the database by hand; please report it"
        yield Finding("accounting", False, f"{len(wrong)} lanes are miscounted, such as {wrong[0]}", hint)
    else:
        totals = outbox.stats.totals()
        parts = " + ".join(
            f"{totals[name]} {name}" for name in ("pending", "delivered", "dead", "superseded", "cancelled")
        )
        yield Finding("accounting", True, f"{totals['enqueued']} enqueued = {parts}")
    for state in (State.PENDING, State.DEAD):
        for entry_id, key, payload, kept in outbox.stats.payloads(state):
            if not is_intact(key, payload, kept):
                hint = f"it would be refused; give it up: hubqueue cancel {entry_id}"
                yield Finding("outbox", False, f"the payload of entry {entry_id} is damaged", hint)


def _spool(outbox: Outbox) -> Iterator[Finding]:
    bad = 0
    for state in (State.PENDING, State.DEAD):
        for entry_id, snapshot in outbox.stats.snapshots(state):
            try:
                outbox.spool.verify(snapshot)
            except HubqueueError as error:
                bad += 1
                yield Finding(
                    "spool", False, f"entry {entry_id}: {error}", f"give it up: hubqueue cancel {entry_id}"
                )
    free, reserve = outbox.spool.free_bytes(), max(outbox.config.spool.min_free_bytes, _LEAST_FREE)
    if free < reserve:
        hint = "free some space; no checkpoint is taken before"
        yield Finding(
            "spool", False, f"only {free} bytes are free on the disk, {reserve} are kept in reserve", hint
        )
    elif not bad:
        yield Finding("spool", True, f"{outbox.spool.path}, {outbox.spool.bytes_used()} bytes used")


def _concerned(outbox: Outbox, settings: Config) -> list[DestinationSettings]:
    """The destinations that the configuration names, and those that are used without that."""
    used = {row["name"] for row in outbox.stats.destinations()}
    return [
        each for name, each in settings.destinations.items() if name not in settings.implied or name in used
    ]


def _credentials(outbox: Outbox, settings: Config) -> Iterator[Finding]:
    for problem in outbox.credentials.problems():
        yield Finding(
            "credentials", False, problem, f"chmod 600 {outbox.home.credentials}, or hubqueue login again"
        )
    for target in _concerned(outbox, settings):
        try:
            keys = outbox.credentials.keys(target.name, target.type)
        except HubqueueError:
            continue  # told above
        if keys:
            yield Finding("credentials", True, f"{len(keys)} key(s) for {target.name}")
        else:
            yield Finding("credentials", False, f"no key for {target.name}", f"hubqueue login {target.name}")


def _destinations(outbox: Outbox, settings: Config) -> Iterator[Finding]:
    held = {row["name"]: row["held"] for row in outbox.stats.destinations()}
    for target in _concerned(outbox, settings):
        if held.get(target.name):
            yield Finding(
                "destination",
                False,
                f"{target.name} is held: {held[target.name]}",
                f"hubqueue resume {target.name}",
            )
        keys = partial(outbox.credentials.keys, target.name, target.type)
        transport = connect(target, keys=keys, open_body=outbox.spool.open)
        try:
            outcome = transport.check()
        except HubqueueError as error:
            yield Finding("destination", False, f"{target.name}: {error}", error.hint)
            continue
        finally:
            transport.close()
        if isinstance(outcome, Delivered):
            yield Finding("destination", True, f"{target.name} at {target.url} accepts the key")
        else:
            hint = f"hubqueue login {target.name}, or mend destinations.{target.name}.url"
            if isinstance(outcome, RetryLater):
                hint = "try again later; nothing is lost meanwhile"
            yield Finding("destination", False, f"{target.name} at {target.url}: {outcome.reason}", hint)
