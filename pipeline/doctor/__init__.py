"""Is this machine, or are these hosts, fit to run?"""
