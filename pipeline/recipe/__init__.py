"""Recipes before a run: checked, shown with what follows from them, looked at next to data and machine, or written anew."""
