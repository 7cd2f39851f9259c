"""Files that one verb writes and another reads."""
