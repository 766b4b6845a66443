"""What the tests of the harness share: tasks on disk, and a cache of data sets that is gone with
the tests.
"""

import pytest

from tests.evaluation.local_tasks import write_tasks


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets"))
        )
        yield
