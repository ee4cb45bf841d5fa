"""Whether what a destination says of a checkpoint can be valid, and safe to write here. Pure rules.

A manifest in a bucket is foreign input: a person who can write to the bucket must not write elsewhere on this machine.
What only another system cannot store (`CON` and `a:b` on Windows, `A` beside `a` where case does not count) is refused
only there, so that a checkpoint that was saved on this kind of system always comes back.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath, PureWindowsPath

from hubqueue.domain.quantities import plural
from hubqueue.domain.redact import clean
from hubqueue.domain.snapshots.manifest import MOST_FILES, manifest_text
from hubqueue.domain.snapshots.stored import StoredCheckpoint, StoredFile

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NOT_ON_WINDOWS = re.compile(r'[<>:"|?*\\\x00-\x1f]|[. ](?:/|$)')
_DEVICE = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])(?:[ .:].*)?", re.IGNORECASE)
_EXTENSION = re.compile(r"\.[A-Za-z0-9_]{1,16}")
_USUAL = ".pt"


def problem_of(
    checkpoint: StoredCheckpoint, *, windows: bool = False, folds_case: bool = False
) -> str | None:
    """Why a checkpoint cannot be valid, or cannot be written here; None if it can.

    `windows` says that this is Windows, `folds_case` that the file system does not distinguish `a` and `A`.
    """
    files = checkpoint.files
    if problem := name_problem(checkpoint.name, windows=windows):
        return f"its name {problem}"
    if len(files) > MOST_FILES:
        return f"it lists {plural(len(files), 'file')}, more than {MOST_FILES}"
    if not files:
        return "it lists no file: its manifest is damaged, or of a newer version"
    if not checkpoint.is_folder and len(files) > 1:
        return f"it is one file, but lists {len(files)}"
    for each in files:
        if problem := _problem_of_file(each, windows=windows):
            return problem
    return _collision((each.path for each in files), folds_case=folds_case or windows) or _problem_of_list(
        checkpoint
    )


def name_problem(name: str, *, windows: bool = False) -> str | None:
    """Why a name of a run or a checkpoint cannot be the name of a file here; continues a sentence."""
    problem = _problem_of_path(name, windows=windows)
    if problem is None and ("/" in name or "\\" in name or name.startswith(".")):
        problem = f"{_shown(name)} is not the name of a file"
    return problem


def local_name(checkpoint: StoredCheckpoint) -> str:
    """The name of a pulled checkpoint: `epoch-0012` for a folder, `epoch-0012.pt` for a file."""
    if checkpoint.is_folder:
        return checkpoint.name
    extension = PurePosixPath(checkpoint.files[0].path).suffix
    return checkpoint.name + (extension if _EXTENSION.fullmatch(extension) else _USUAL)


def _problem_of_file(file: StoredFile, *, windows: bool) -> str | None:
    if problem := _problem_of_path(file.path, windows=windows):
        return f"the path {problem}"
    if file.size < 0:
        return f"the size of {_shown(file.path)} is invalid"
    if file.sha256 is not None and not (isinstance(file.sha256, str) and _SHA256.fullmatch(file.sha256)):
        return f"the SHA-256 of {_shown(file.path)} is invalid"
    return None


def _problem_of_list(checkpoint: StoredCheckpoint) -> str | None:
    """Whether the list of a folder is another one than that which was saved, as the hash of its manifest proves."""
    files = sorted(checkpoint.files, key=lambda each: each.path)
    hashes = [each.sha256 for each in files if each.sha256 is not None]
    if not checkpoint.is_folder or checkpoint.manifest_sha256 is None or len(hashes) < len(files):
        return None
    text = manifest_text((each.path, each.size, sha256) for each, sha256 in zip(files, hashes, strict=True))
    if hashlib.sha256(text).hexdigest() != checkpoint.manifest_sha256:
        return "its list of files is not the one that was saved"
    return None


def _problem_of_path(path: object, *, windows: bool) -> str | None:
    if not isinstance(path, str) or not path:
        return "of a file is empty"
    parts = path.split("/")
    if "\0" in path:
        return f"{_shown(path)} has a NUL in it"
    if not _is_unicode(path):
        return f"{_shown(path)} is not valid Unicode"
    if path.startswith(("/", "\\")) or PureWindowsPath(path).is_absolute():
        return f"{_shown(path)} is absolute"
    if ".." in parts or (windows and ".." in path.split("\\")):
        return f"{_shown(path)} leads out of the folder"
    if "" in parts or "." in parts:
        return f"{_shown(path)} is not in its shortest form"
    if windows and (_NOT_ON_WINDOWS.search(path) or any(map(_DEVICE.fullmatch, parts))):
        return f"{_shown(path)} is not possible on Windows"
    return None


def _collision(paths: Iterable[str], *, folds_case: bool) -> str | None:
    """Two paths that would be one file here, or one that is also the folder of another one."""
    files: dict[str, str] = {}
    for each in paths:
        folded = _folded(each, folds_case)
        if folded in files:
            return f"the paths {_shown(files[folded])} and {_shown(each)} are the same file here"
        files[folded] = each
    for each in files:
        above = each.rpartition("/")[0]
        while above:
            if above in files:
                return f"the path {_shown(files[above])} is a file and a folder"
            above = above.rpartition("/")[0]
    return None


def _folded(path: str, folds_case: bool) -> str:
    return unicodedata.normalize("NFC", path).casefold() if folds_case else path


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(path: str) -> str:
    return repr(clean(path, limit=80))
