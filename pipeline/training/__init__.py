"""A run: its start, the loop, one update, evaluation, guards, resuming, and what a person sees of it."""
