"""A recipe: its keys, its reading, its checks. No torch."""
