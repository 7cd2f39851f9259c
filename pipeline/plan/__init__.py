"""Estimate a run: the memory of a GPU, network traffic, time, and disk used."""
