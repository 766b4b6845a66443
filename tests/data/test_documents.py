"""Documents: real text found in a fixed order, split by file, nothing lost."""

import pytest

from t6jax import InputError
from t6jax.data.documents import documents, split


def test_a_folder_gives_its_text_files_in_order_and_nothing_else(texts):
    found = documents(str(texts))
    assert [d.name for d in found] == sorted(d.name for d in found)
    assert len(found) == 12
    assert all(d.size == len(d.read()) for d in found)


def test_python_gives_its_documentation_and_library():
    found = documents("python")
    names = {d.name for d in found}
    assert "pydoc/for" in names and "argparse.py" in names
    assert not any("site-packages" in name for name in names)
    assert sum(d.size for d in found) > 5e6


def test_the_split_is_by_file_complete_and_fixed(texts):
    found = documents(str(texts))
    training, validation = split(found, 0.25)
    assert sorted(d.name for d in training + validation) == [d.name for d in found]
    share = sum(d.size for d in validation) / sum(d.size for d in found)
    assert 0.1 < share <= 0.25
    assert [d.name for d in split(list(reversed(found)), 0.25)[1]] == [
        d.name for d in reversed(validation)
    ]


def test_however_small_the_fraction_there_is_a_validation_document(texts):
    training, validation = split(documents(str(texts)), 1e-6)
    assert len(validation) == 1 and len(training) == 11


def test_a_single_file_is_cut_at_a_line(texts):
    (document,) = documents(str(texts / "1.txt"))
    (training,), (validation,) = split([document], 0.1)
    assert training.read() + validation.read() == document.read()
    assert training.read().endswith(b"\n")
    assert 0.08 < validation.size / document.size < 0.15


def test_what_is_wrong_with_a_source_is_named(tmp_path, texts):
    with pytest.raises(InputError, match="nowhere': there is no such file or folder"):
        documents(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="holds no text"):
        documents(str(tmp_path))
    with pytest.raises(InputError, match="data.validation_fraction must lie between 0 and 1"):
        split(documents(str(texts)), 1.0)
