"""Facts, worded for the log: one line each, the only place with these sentences."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import assert_never

from hubqueue.domain import quantities
from hubqueue.domain.quantities import plural
from hubqueue.worker import events
from hubqueue.worker.events import Fact

_LOG = logging.getLogger("hubqueue.worker")


def write(fact: Fact) -> None:
    """Log a fact, at its level."""
    worded = word(fact)
    if worded is not None:
        _LOG.log(*worded)


def word(fact: Fact) -> tuple[int, str] | None:
    """The level and the line of a fact; None for what happens too often to be logged."""
    match fact:
        case events.UploadProgressed():
            return None
        case events.WorkerStarted(worker, pid, home):
            return logging.INFO, f"worker {worker} started: pid {pid}, home {home}"
        case events.WorkerStopped(worker, reason):
            return logging.INFO, f"worker {worker} stopped: {reason}"
        case events.AttemptStarted(run_id, kind, entries, size, attempt):
            return (
                logging.DEBUG,
                f"run {run_id}: sending {kind}, {_entries(entries)}, {quantities.size(size)}, attempt {attempt}",
            )
        case events.BatchDelivered(run_id, kind, entries, size, took):
            line = f"run {run_id}: {kind} delivered, {_entries(entries)}, {quantities.size(size)} in {took.total_seconds():.2f} s"
            return logging.INFO, line
        case events.RunRegistered(run_id, remote_id, url):
            return logging.INFO, f"run {run_id}: registered as {remote_id}" + (f", {url}" if url else "")
        case events.HeartbeatDelivered(run_id):
            return logging.DEBUG, f"run {run_id}: heartbeat delivered"
        case events.RunCancelled(run_id):
            return logging.WARNING, f"run {run_id}: the hub asks to stop the training"
        case events.AttemptFailed(run_id, kind, entries, reason, failures, again_at):
            line = f"run {run_id}: {kind} not delivered ({_entries(entries)}, failure {failures}): {reason}"
            return logging.WARNING, f"{line}; next try at {_time(again_at)}"
        case events.DestinationPaused(destination, until):
            return (
                logging.WARNING,
                f"destination {destination}: rate-limited by the hub, resumes at {_time(until)}",
            )
        case events.BatchSplit(run_id, kind, entries, reason):
            return (
                logging.WARNING,
                f"run {run_id}: {kind} batch of {entries} refused ({reason}); split to find the entry it rejects",
            )
        case events.EntryBuried(run_id, kind, entry_id, key, reason):
            line = f"run {run_id}: {kind} {key} was refused by the hub: {reason}; to retry it: hubqueue redrive {entry_id}"
            return logging.ERROR, line
        case events.Held(what, destination, reason):
            return (
                logging.ERROR,
                f"{what} is on hold: {reason}; it is tried again automatically; at once: hubqueue resume {destination}",
            )
        case events.HoldProbed(what, reason):
            return logging.INFO, f"{what} is still on hold: {reason}"
        case events.HoldLifted(what):
            return logging.WARNING, f"{what} is no longer on hold: the hub accepts its uploads again"
        case events.AttemptReleased(run_id, kind, reason):
            return logging.INFO, f"run {run_id}: {kind} upload interrupted, will be retried: {reason}"
        case events.SettleLost(run_id, kind, reason):
            return (
                logging.WARNING,
                f"run {run_id}: the response for {kind} arrived after another worker took over; ignored: {reason}",
            )
        case events.StorageTroubled(reason):
            return logging.ERROR, f"storage trouble: {reason}; nothing is lost, trying again"
        case events.RunInterrupted(run_id):
            return logging.WARNING, f"run {run_id}: interrupted, its process has ended; its heartbeat stops"
        case events.RunFailed(run_id, code):
            return logging.WARNING, f"run {run_id}: failed, its process ended with exit code {code}"
        case events.LeasesReclaimed(workers, lanes):
            return (
                logging.WARNING,
                f"{plural(workers, 'worker')} died; {plural(lanes, 'unfinished upload')} will be retried",
            )
        case events.Tidied(pruned, swept):
            return (
                logging.DEBUG,
                f"tidied: {plural(pruned, 'row')} pruned, {plural(swept, 'file')} swept",
            )
        case events.Salvaged(path, report):
            return logging.WARNING, f"the damaged outbox {path}: {report}"
        case unknown:
            assert_never(unknown)


def _entries(count: int) -> str:
    return plural(count, "entry", "entries")


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
