"""Paths as people give them: on a command line, in a configuration, or to a function."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gpuclust.errors import StoreError

LONGEST = 255  # bytes of a name, on the file systems in use


def place(given: str | os.PathLike[str]) -> Path:
    """Return a path that a person gave, with ``~`` as the home folder.

    Raises
    ------
    StoreError
        If no file or folder can have it: a URL, a name of more than 255 bytes, NUL, or bytes that are no UTF-8, which
        neither a record nor Arrow can keep.

    Examples
    --------
    >>> place("runs/demo").as_posix()
    'runs/demo'
    """
    text = os.fspath(given)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):  # a Path has made one slash of two
        raise StoreError(f"{text} is a URL; gpuclust reads and writes files: copy it, or mount it as a folder")
    if not text:
        raise StoreError("an empty path was given (a variable that is not set?): name a file or folder")
    if "\0" in text:
        raise StoreError(f"{text!r} holds a NUL, which no path can")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise StoreError(
            f"{text!r} holds a byte that is no UTF-8, at character {error.start}: rename that file or folder"
        ) from None
    names = [name.encode() for name in Path(text).parts]
    if names and (longest := max(names, key=len)) and len(longest) > LONGEST:
        raise StoreError(
            f"{longest.decode()[:40]}… is a name of {len(longest)} bytes, but file systems take {LONGEST}: shorten it"
        )
    return Path(os.path.expanduser(text))  # as a shell, it leaves a user that it does not know as it stands
