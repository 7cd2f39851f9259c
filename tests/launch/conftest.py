"""A folder to launch from."""

import pytest

from tests.parts.tiny import make_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    make_recipe(folder)
    (folder / "hosts").write_text("a slots=2\nb slots=4\n")
    return folder
