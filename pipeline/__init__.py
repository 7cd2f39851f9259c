"""Token shards to a distilled student. Run ``python -m pipeline.distill --help``."""
