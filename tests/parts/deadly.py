"""``python -m tests.parts.deadly ARGUMENTS``: data_prep, where documents of format text that begin with a certain word do as
a page of a wiki would.

Some end the process that cleans them, inside C code, which no exception stops; a document may take half a second of CPU
time. ``beside a b | text`` has lost the templates a and b; torn and broken_xml are dropped as that. Workers import this module
as their parent's main module.
"""

import ctypes
import os
import re
import resource
import signal
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

from data_prep import plan, sampling, units
from data_prep.__main__ import main
from data_prep.cli import run_command
from data_prep.formats.readers import Document, Format, clean_text, split_text

SECONDS = 0.5


class Raw(NamedTuple):
    """A raw document of format text; its title is its first word."""

    text: tuple
    title: str


def split(path, begin=0):
    for piece, text in split_text(path, begin):
        yield piece, Raw(text, text[0].split()[0].decode())


def clean(raw):
    document = clean_text(raw.text)
    match document.text.split():
        case ["loop", *_]:
            re.fullmatch("(a+)+b", "a" * 60)
        case ["crash", *_]:
            ctypes.string_at(0)
        case ["abort", *_]:
            os.abort()
        case ["killed", *_]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["once", path, *_] if not Path(path).exists():
            Path(path).touch()
            ctypes.string_at(0)
        case ["torn" | "broken_xml" as reason, *_]:
            return Document(dropped=reason)
        case ["beside", *words]:
            names = words[: words.index("|")]
            text = words[len(names) + 1 :]
            return Document(" ".join(text), words=len(text), beside=Counter(names))
    return document


units.open_format = sampling.open_format = lambda name, field, templates=None: Format(split, clean, guarded=True)
plan.Job = partial(plan.Job, seconds=SECONDS)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

if __name__ == "__main__":
    run_command(main)
