"""The formats of input files by name."""

import difflib
from dataclasses import replace
from functools import partial
from pathlib import Path

from data_prep.cli import UserError
from data_prep.formats.books import BOOKS
from data_prep.formats.csv_rows import split_csv
from data_prep.formats.jsonl import clean_line, split_jsonl
from data_prep.formats.readers import TEXT, Format, clean_text
from data_prep.formats.wikipedia import WIKIPEDIA, clean_article

_PLAIN = {"wikipedia": WIKIPEDIA, "text": TEXT, "cc100": TEXT, "books": BOOKS}
COLUMNS = ("parquet", "bookcorpus", "arrow")  # formats of Arrow's columns
_WITH_FIELD = ("jsonl", "csv", *COLUMNS)
WITH_TEMPLATES = ("wikipedia",)
FORMATS = (*_PLAIN, *_WITH_FIELD)

# The version of a format's clean-up, 1 if it is not named here. Raise it when the same files give other texts, so that
# these are not mixed with earlier ones in one corpus.
CLEANUPS = {"wikipedia": 2, "books": 2}


def open_format(name: str, field: str | None = None, templates: Path | None = None) -> Format:
    """The format ``name``; ``field`` is the field or column that holds the text, "text" if it is None.

    ``templates``: a table of the words of templates, for a format that has any (``WITH_TEMPLATES``).

    Raises UserError for an unknown name, and for a field of a format that has none.
    """
    if name in _PLAIN:
        if field is not None:
            raise UserError(
                f"field {field!r}: format {name} has no fields; only {', '.join(_WITH_FIELD)} have; leave it out"
            )
        if templates and name in WITH_TEMPLATES:
            return replace(WIKIPEDIA, clean=partial(clean_article, templates=str(templates)))
        return _PLAIN[name]
    field = "text" if field is None else field
    if name == "jsonl":
        return Format(partial(split_jsonl, field=field), partial(clean_line, field=field))
    if name == "csv":
        return Format(partial(split_csv, field=field), clean_text)
    if name in COLUMNS:
        # Imported here, because pyarrow takes a third of a second and 50 MB, which the other formats need not pay.
        from data_prep.formats import arrow, parquet

        splits = {"arrow": arrow.split_arrow, "parquet": parquet.split_parquet, "bookcorpus": parquet.split_sentences}
        return Format(partial(splits[name], field=field), clean_text)
    near = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0)[0]
    raise UserError(f"no format {name!r}, did you mean {near!r}? Known: {', '.join(FORMATS)}")
