"""Reports, for a person, of scores or of one run."""
