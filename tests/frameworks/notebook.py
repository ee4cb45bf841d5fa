"""Runs the cells of a notebook in a kernel, as a person does: one is interrupted, one ends with its kernel, and they run again.

    notebook.py NOTEBOOK FOLDER BLOCKED

It needs the environment of the frameworks. `BLOCKED` is a file where the destination expects a folder; it is removed before
the run ends. Prints a JSON list: of each cell that ran, its title, text, HTML and error.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient
from nbformat import read

SECONDS = 240


class Person:
    """Runs cells of a notebook, in a kernel that may die."""

    def __init__(self, notebook: Path, folder: Path) -> None:
        self.cells = [each.source for each in read(notebook, as_version=4).cells if each.cell_type == "code"]
        self.done: list[dict[str, str]] = []
        self._folder = str(folder)
        self.start()

    def start(self) -> None:
        self.manager, self.client = start_new_kernel(SECONDS, cwd=self._folder)

    def run(self, title: str, cell: str, *, interrupt_at: str = "", kill_at: str = "") -> None:
        """Run a cell. When it has printed a text it is interrupted, or its kernel is killed."""
        shown = {"cell": title, "text": "", "html": "", "error": ""}
        self.done.append(shown)

        def output(message: dict[str, Any]) -> None:
            content = message["content"]
            shown["text"] += content.get("text", "") if message["msg_type"] == "stream" else ""
            shown["html"] += content.get("data", {}).get("text/html", "")
            shown["error"] += content.get("ename", "")
            if kill_at and kill_at in shown["text"]:
                self.manager.signal_kernel(signal.SIGKILL)
                raise BrokenPipeError
            if interrupt_at and interrupt_at in shown["text"] and not shown["error"]:
                self.manager.interrupt_kernel()

        try:
            self.client.execute_interactive(cell, output_hook=output, timeout=SECONDS)
        except BrokenPipeError:
            self.end()
            shown["error"] = "killed"

    def end(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


def main(notebook: Path, folder: Path, blocked: Path) -> list[dict[str, str]]:
    person = Person(notebook, folder)
    setup, train, display, status, end, _ = person.cells
    person.run("setup", setup)
    person.run("interrupted", train, interrupt_at="epoch 3\n")
    person.run("display", display)
    person.run("again", train, kill_at="epoch 8\n")
    person.start()
    person.run("setup", setup)
    person.run("restarted", train)
    person.run("display in an outage", display)
    person.run("status in an outage", status)
    blocked.unlink()
    person.run("end", end)
    person.run("status", status)
    person.run("display at the end", display)
    person.end()
    return person.done


def execute(notebook: Path, folder: Path) -> list[dict[str, str]]:
    """All cells from the first to the last, in one go."""
    made = read(notebook, as_version=4)
    NotebookClient(made, timeout=SECONDS, resources={"metadata": {"path": str(folder)}}).execute()
    found = []
    for number, cell in enumerate(each for each in made.cells if each.cell_type == "code"):
        text = "".join(each.get("text", "") for each in cell.outputs)
        html = "".join(each.get("data", {}).get("text/html", "") for each in cell.outputs)
        found.append({"cell": str(number), "text": text, "html": html, "error": ""})
    return found


if __name__ == "__main__":
    paths = [Path(each) for each in sys.argv[1:]]
    print(json.dumps(main(*paths) if len(paths) == 3 else execute(*paths)))
