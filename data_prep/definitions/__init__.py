"""The words of templates by their definitions in a dump: lines of a table as ``data_prep/formats/templates.txt``."""
