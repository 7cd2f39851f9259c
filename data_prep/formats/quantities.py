"""Numbers and units as the arguments of a conversion template give them, without what they are converted to."""

import re

_NUMBER = re.compile(r"[-−+]?\.?\d")  # as it begins
# What stands between the two ends of a range, or between sides, and how it is shown.
_SIGNS = {
    "-": "–", "–": "–", "—": "–", "x": " × ", "×": " × ", "*": " × ", "xx": "×", "+": " + ", "±": " ± ",
    "+/-": " ± ", "+/−": " ± ", "/": "/", ",": ", ", "to(-)": " to ", "and(-)": " and ", "&": " and ",
}  # fmt: skip
_WORDS = re.compile("to|and|or|by|till|through|a|à|et|ou|e|y|o|bis|und|til|og|och|do|až|și|la|ile|і|и|до")
_THOUSANDS = re.compile(r"e(\d{1,2})(?=.)")  # as in e6km2, 1,000,000 km2
_DEGREES = {"C": "°C", "F": "°F"}
_SMALLER = {  # units of which a second number may follow
    "ft": ("in", "inch"), "yd": ("ft", "in"), "mi": ("yd", "ft", "ch", "fur"), "lb": ("oz",), "st": ("lb", "lbs"),
    "stone": ("lb", "lbs"), "h": ("min", "m"), "min": ("s",), "hand": ("in",), "fathom": ("ft",), "nmi": ("yd",),
}  # fmt: skip


def quantity(words: list[str]) -> str:
    """The number and the unit that the arguments begin with; empty if they begin with no number.

    5, ft, 8, in, cm -> "5 ft 8 in"; 60, to, 170, kg, lb -> "60 to 170 kg"; 2, e6km2 -> "2×10^6 km2".
    """
    if not words or not any(map(str.isdigit, words[0])):
        return ""
    text, words = words[0], words[1:]
    while len(words) > 1:
        if between := _between(words):
            text += between + words[1]
            words = words[2:]
        elif words[2:] and words[2] in _SMALLER.get(words[0], ()) and _NUMBER.match(words[1]):
            text += f" {words[0]} {words[1]}"
            words = words[2:]
        elif _between(words[1:]):
            text += f" {words[0]}"
            words = words[1:]
        else:
            break
    unit = "".join(words[:1])
    if found := _THOUSANDS.match(unit):
        text, unit = f"{text}×10^{found[1]}", unit[found.end() :]
    return f"{text} {_DEGREES.get(unit, unit)}".strip()


def _between(words: list[str]) -> str:
    """What is shown for the first word if it joins a number to the one before; else nothing."""
    if len(words) < 2 or not _NUMBER.match(words[1]):
        return ""
    return f" {words[0]} " if _WORDS.fullmatch(words[0]) else _SIGNS.get(words[0], "")
