"""Raw text to token shards. Run ``python -m data_prep --help``. Never imports ``pipeline``."""
