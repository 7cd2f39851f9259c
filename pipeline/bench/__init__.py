"""Measurements of this machine: the loss, updates, reading, sharded teachers and fine-tuning."""
