"""The formats of input files by name."""

import difflib
from functools import partial

from data_prep.cli import UserError
from data_prep.formats.books import BOOKS
from data_prep.formats.jsonl import clean_line, split_jsonl
from data_prep.formats.readers import TEXT, Format, clean_text
from data_prep.formats.wikipedia import WIKIPEDIA

_PLAIN = {"wikipedia": WIKIPEDIA, "text": TEXT, "cc100": TEXT, "books": BOOKS}
_WITH_FIELD = ("jsonl", "parquet", "bookcorpus")
FORMATS = (*_PLAIN, *_WITH_FIELD)


def open_format(name: str, field: str | None = None) -> Format:
    """The format ``name``; ``field`` is the field or column that holds the text, "text" if it is None.

    Raises UserError for an unknown name, and for a field of a format that has none.
    """
    if name in _PLAIN:
        if field is not None:
            raise UserError(
                f"field {field!r}: format {name} has no fields; only {', '.join(_WITH_FIELD)} have; leave it out"
            )
        return _PLAIN[name]
    field = "text" if field is None else field
    if name == "jsonl":
        return Format(partial(split_jsonl, field=field), partial(clean_line, field=field))
    if name in ("parquet", "bookcorpus"):
        # Imported here, because pyarrow takes a third of a second and 50 MB, which the other formats need not pay.
        from data_prep.formats import parquet

        split = parquet.split_parquet if name == "parquet" else parquet.split_sentences
        return Format(partial(split, field=field), clean_text)
    near = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0)[0]
    raise UserError(f"no format {name!r}, did you mean {near!r}? Known: {', '.join(FORMATS)}")
