"""What all commands share: the parser."""

from data_prep.cli import Parser


def test_the_home_folder_is_found_behind_an_options_equals_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    parser = Parser()
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--out")
    parser.add_argument("--root-folder")
    found = parser.parse_intermixed_args(["--out=~/data", "a=~/x", "--root-folder=~", "b~/c"])
    assert (found.out, found.root_folder, found.rest) == ("/home/me/data", "/home/me", ["a=~/x", "b~/c"])
    assert parser.parse_args(["--out=x~/y"]).out == "x~/y"
