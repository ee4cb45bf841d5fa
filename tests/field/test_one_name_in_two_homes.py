"""Two homes train runs of one name to one folder: nobody resumes from the other one's checkpoint, or takes it for verified."""

from __future__ import annotations

from pathlib import Path

import pytest

import hubqueue
from hubqueue.domain.errors import UnknownName


def trained(home: Path, content: bytes, path: Path) -> str:
    """Train a run with the name `exp` to the folder `nas`; its id."""
    home.mkdir(mode=0o700)
    (home / "config.toml").write_text(f"[destinations.nas]\ntype = 'folder'\npath = '{path / 'nas'}'\n")
    checkpoint = path / "last.pt"
    checkpoint.write_bytes(content)
    run = hubqueue.start_run("m.pt", name="exp", destination="nas", home=home, worker="thread", strict=True)
    run.save_checkpoint(checkpoint, epoch=3)
    assert not run.finish(timeout=60)
    assert run.id is not None
    return run.id


def test_a_name_that_another_home_has_taken_is_refused_with_both_ids(tmp_path: Path) -> None:
    homes = {name: tmp_path / name for name in ("first", "second")}
    ids = {name: trained(home, name.encode(), tmp_path) for name, home in homes.items()}

    own = hubqueue.verify("nas", run="exp", home=homes["first"])
    with pytest.raises(UnknownName) as pulled:
        hubqueue.pull("nas", run="exp", to=tmp_path / "to", home=homes["second"])
    with pytest.raises(UnknownName):
        hubqueue.verify("nas", run="exp", home=homes["second"])
    by_id = {
        name: hubqueue.pull("nas", run=id, to=tmp_path / f"to-{name}", home=homes["second"]).read_bytes()
        for name, id in ids.items()
    }

    assert own and [each.recorded for each in own.checkpoints] == [True]
    assert str(pulled.value) == "exp at nas is not the run of this home with that name"
    assert ids["first"] in (pulled.value.hint or "") and ids["second"] in (pulled.value.hint or "")
    assert not (tmp_path / "to").exists()
    assert by_id == {"first": b"first", "second": b"second"}
