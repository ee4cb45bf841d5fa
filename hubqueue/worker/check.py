"""`hubqueue check`: examines everything that can be wrong, and gives a hint for each problem."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hubqueue.config.choice import choose_all
from hubqueue.config.credentials import Credentials, secret_variables
from hubqueue.config.home import READ_ONLY, Home
from hubqueue.config.names import unread
from hubqueue.config.reader import DestinationSettings
from hubqueue.config.registry import BUILT_IN, absent, declaration, packages
from hubqueue.domain.account import origin
from hubqueue.domain.errors import ConfigError, HubqueueError, OutboxDamaged, SpoolAway
from hubqueue.domain.lifecycle import State
from hubqueue.domain.outcome import Delivered, Outcome, RetryLater
from hubqueue.domain.plain import is_intact
from hubqueue.domain.quantities import plural, size
from hubqueue.domain.redact import clean, safe_url
from hubqueue.outbox.database import sqlite
from hubqueue.outbox.database.schema_check import differences
from hubqueue.outbox.outbox import Outbox, open_to_read, replace_damaged
from hubqueue.outbox.reach import cure, is_explained, is_served, no_key, obstacle
from hubqueue.outbox.salvage import salvage
from hubqueue.worker.daemon import last_failure

_NO_CHECK = "this type of destination has no check"
_ASK_THE_AUTHOR = "report it to the author of this type of destination"
# In bytes. With less free space the outbox itself is at risk.
_LEAST_FREE = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. What is `ok` may still be a `warning`."""

    what: str
    ok: bool
    detail: str
    hint: str | None = None
    warning: bool = False


def examine(
    home: str | None, config: str | None, *, online: bool, set_aside: bool, new_spool: bool = False
) -> list[Finding]:
    """Check configuration, home, outbox, accounting, spool, credentials and, when `online`, the destinations."""
    try:
        located = Home.locate(home, os.environ)
        settings = located.load_config(Path(config) if config is not None else None, os.environ)
    except ConfigError as error:
        return [Finding("configuration", False, problem, error.hint) for problem in error.problems]
    except HubqueueError as error:  # a home or a file that other users may change
        return [Finding("home", False, str(error), error.hint)]
    default = choose_all(settings, Credentials(located.credentials, os.environ), None)
    found = [
        Finding(
            "configuration",
            True,
            f"default destination: {', '.join(each.name for each in default)}",
        )
    ]
    for line in unread(os.environ, settings.destinations, secret_variables(settings.destinations.values())):
        found.append(Finding("environment", True, line, warning=True))
    impossible = located.obstacle()
    if impossible is not None:
        return [*found, Finding("home", False, str(impossible), impossible.hint)]
    found += _home(located)
    try:
        if set_aside and (aside := replace_damaged(located, settings)) is not None:
            found.append(Finding("outbox", True, f"the damaged one is kept as {aside}; a new one is started"))
        with open_to_read(home, config) as outbox:
            if set_aside:
                salvage(outbox)
            if new_spool:
                found.append(_new_spool(outbox))
            found += _asides(located)
            found += [*_outbox(outbox), *_spool(outbox), *_plugins(), *_libraries(outbox)]
            found += [*_credentials(outbox), *_addresses(outbox), *_worker(located)]
            if online:
                found += _destinations(outbox)
    except HubqueueError as error:
        found.append(Finding("outbox", False, str(error), error.hint))
    return found


def _new_spool(outbox: Outbox) -> Finding:
    try:
        outbox.spool.make()
    except OSError as error:
        what = f"{outbox.spool.path} cannot be written: {error.strerror}"
        return Finding("spool", False, what, "make it writable, or set another spool.path")
    return Finding("spool", True, f"{outbox.spool.path} is the spool of this outbox from now on")


def _home(home: Home) -> Iterator[Finding]:
    if home.is_network_file_system():
        hint = "it works, with a slower journal; a local disk is faster and safer: HUBQUEUE_HOME"
        yield Finding("home", True, f"{home.path} is on {home.file_system()}, a network file system ({hint})")
    else:
        yield Finding("home", True, f"{home.path} ({home.file_system()})")
    if home.read_only:
        yield Finding(
            "home", False, f"the home {home.path} is read-only: nothing can be saved or sent", READ_ONLY
        )
    for what, hint in home.problems():
        yield Finding("home", True, what, hint, warning=True)


def _asides(home: Home) -> Iterator[Finding]:
    for path in sqlite.asides(home.outbox):
        report = sqlite.report_of(path) or "a worker will copy what can be read from it"
        hint = "when everything from it has been uploaded, move the file and its spool away"
        yield Finding("outbox", False, f"a damaged outbox was set aside: {path}; {report}", hint)


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
    with outbox.database.read() as connection:
        for difference in differences(connection):
            hint = "only hubqueue may change the schema; undo the change"
            yield Finding("outbox", False, f"the schema is not hubqueue's: {difference}", hint)
    wrong = outbox.stats.miscounted()
    if wrong:
        hint = "the database was changed by hand, or this is a defect; please report it"
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
                hint = f"it will not be sent; give it up: hubqueue cancel {entry_id}"
                yield Finding("outbox", False, f"the payload of entry {entry_id} is damaged", hint)


def _spool(outbox: Outbox) -> Iterator[Finding]:
    away = outbox.spool.away()
    if away is not None:
        yield Finding("spool", False, str(away), away.hint)
        return  # every snapshot in it would be reported as missing
    bad = 0
    for state in (State.PENDING, State.DEAD):
        for entry_id, snapshot in outbox.stats.snapshots(state):
            try:
                outbox.spool.verify(snapshot)
            except HubqueueError as error:
                bad += 1
                hint = f"give it up: hubqueue cancel {entry_id}"
                if isinstance(error, SpoolAway):
                    hint = error.hint or hint
                yield Finding("spool", False, f"entry {entry_id}: {error}", hint)
    free, reserve = outbox.spool.free_bytes(), max(outbox.config.spool.min_free_bytes, _LEAST_FREE)
    if free < reserve:
        hint = "free space; checkpoints are refused until then"
        yield Finding(
            "spool", False, f"{size(free)} free on the disk, {size(reserve)} reserve required", hint
        )
    elif not bad:
        yield Finding("spool", True, f"{outbox.spool.path}, {size(outbox.spool.bytes_used())} used")


def _plugins() -> Iterator[Finding]:
    for type, package in packages():
        missing = absent(type)
        if missing is not None:
            yield Finding("plugin", False, missing.problem, missing.hint)
        else:
            yield Finding("plugin", True, f"destinations of type {type} come with {package}")


def _libraries(outbox: Outbox) -> Iterator[Finding]:
    """The types of hubqueue's own that are in use, without the library that they need."""
    for target in _in_use(outbox):
        missing = absent(target.type)
        if missing is not None and target.type in BUILT_IN:
            yield Finding("destination", False, f"{target.name}: {missing.problem}", missing.hint)


def _credentials(outbox: Outbox) -> Iterator[Finding]:
    for problem, hint in outbox.credentials.problems():
        yield Finding("credentials", False, problem, hint)
    for target in _concerned(outbox):
        if not declaration(target.type).secrets:
            continue
        try:
            keys = outbox.credentials.keys(target)
        except HubqueueError:
            continue  # reported above
        if not keys and not declaration(target.type).needs_key:
            yield Finding("credentials", True, f"{target.name} is used without a key")
        elif keys:
            yield Finding(
                "credentials", True, f"{plural(len(keys), 'key')} for {target.name} ({origin(target.url)})"
            )
        else:
            missing = no_key(outbox, target)
            yield Finding("credentials", False, missing.what, missing.hint)


def _concerned(outbox: Outbox) -> list[DestinationSettings]:
    """The destinations in use whose type can be loaded; the others are reported before."""
    return [each for each in _in_use(outbox) if absent(each.type) is None]


def _in_use(outbox: Outbox) -> list[DestinationSettings]:
    """The destinations of runs, those in the configuration file, and the default one."""
    settings, used = outbox.config, {row["label"] for row in outbox.stats.destinations() if row["runs"]}
    default = choose_all(settings, outbox.credentials, None)
    named = set(settings.destinations) - settings.implied if settings.default_named else set()
    wanted = used | named or {each.name for each in default}
    return [each for name, each in settings.destinations.items() if name in wanted]


def _addresses(outbox: Outbox) -> Iterator[Finding]:
    """Entries that wait for an address or an account that this environment does not have, and holds."""
    owed = outbox.stats.owed_by_destination()
    held = {row["name"]: row["held"] for row in outbox.stats.destinations()}
    for address in outbox.addresses.all():
        where, waiting = f"{address.label} at {safe_url(address.url)}", owed.get(address.name, 0)
        if held.get(address.name):
            why = f"{where} is on hold: {held[address.name]}"
            yield Finding("destination", False, why, cure(address.label, address.url, held[address.name]))
        barred = obstacle(outbox, address) if waiting else None
        if barred is not None and not barred.key:
            served = "; a running worker has what it needs" if is_served(outbox, address.name) else ""
            what = f"{waiting} waiting for {where}: {barred.what}{served}"
            yield Finding("destination", bool(served), what, barred.hint)


def _worker(home: Home) -> Iterator[Finding]:
    failure = last_failure(home)
    if failure is not None:
        hint = f"{home.worker_log} has more; start one in the foreground: hubqueue worker"
        yield Finding("worker", False, f"the last worker ended with an error: {clean(failure)}", hint)


def _destinations(outbox: Outbox) -> Iterator[Finding]:
    for target in _concerned(outbox):
        if declaration(target.type).needs_key and not outbox.key(target):
            continue  # reported above
        keys = partial(outbox.credentials.keys, target)
        try:
            with closing(declaration(target.type).open(target, keys, outbox.spool.open)) as transport:
                outcome: object = transport.check()
        except HubqueueError as error:
            yield Finding("destination", False, f"{target.name}: {error}", error.hint)
            continue
        except (Exception, SystemExit) as error:  # a stranger's code may raise anything
            what = clean(f"{type(error).__name__}: {error}")
            yield Finding("destination", False, f"{target.name} cannot be checked: {what}", _ASK_THE_AUTHOR)
            continue
        if outcome is None:  # a type of another package may have nothing to check
            yield Finding("destination", True, f"{target.name} at {target.url} was not checked: {_NO_CHECK}")
        elif not isinstance(outcome, Outcome):
            what = f"its check returned {type(outcome).__name__}, which is no outcome"
            yield Finding("destination", False, f"{target.name} cannot be checked: {what}", _ASK_THE_AUTHOR)
        elif isinstance(outcome, Delivered):
            what = "the key" if outbox.key(target) else "requests"
            yield Finding("destination", True, f"{target.name} at {target.url} accepts {what}")
        else:
            hint = cure(target.name, target.url, outcome.reason)
            if isinstance(outcome, RetryLater) and not is_explained(outcome.reason):
                hint = "try again later; nothing is lost meanwhile"
            yield Finding("destination", False, f"{target.name} at {target.url}: {outcome.reason}", hint)
