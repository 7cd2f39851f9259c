"""The formats of input files: how each is split into documents and cleaned."""
