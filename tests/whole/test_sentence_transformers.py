"""The student of a teacher that is a sentence-transformers folder is one too, and pools in the same way."""

import importlib.util

import pytest
import torch
from huggingface_hub import ModelCard

from pipeline.evaluate.embedding import Embedder, settings
from pipeline.evaluate.scored_model import open_model
from pipeline.export import export
from pipeline.models.pooling import POOLING_FILES, read_pooling
from tests.models.test_pooling import st_teacher
from tests.parts import launching
from tests.parts.tiny import make_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentence-transformers")
    st_teacher(folder / "teacher", do_lower_case=False, max_seq_length=40)
    launching.finish_jobs(folder, 1, [{"recipe": str(make_recipe(folder)), "overrides": []}])
    for _ in range(2):  # an earlier export is replaced
        export(folder / "run", folder / "student")
    return folder / "student"


def test_the_export_says_how_it_is_pooled(student):
    assert all((student / name).is_file() for name in POOLING_FILES)
    pooling = read_pooling(str(student))
    assert (pooling.modes, pooling.normalizes, pooling.prompt, pooling.length) == (("cls", "mean"), True, "w3 ", 40)
    card = ModelCard.load(student / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert 'model = SentenceTransformer("path/to/this/folder")' in card.text


def test_sentence_transformers_gives_the_same_vectors(student):
    if importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("sentence-transformers is not installed; the extra mteb brings it")
    from sentence_transformers import SentenceTransformer

    texts = ["w1", "w2 w7 w9 w10", "", "w1 " * 70]
    for folder in (student, student.parent / "teacher"):
        opened = open_model(str(folder))
        own = Embedder(opened, settings(opened, None, None), 3)(texts)
        theirs = SentenceTransformer(str(folder), device="cpu").encode(texts, convert_to_tensor=True)
        assert torch.allclose(own, theirs, atol=1e-5)
