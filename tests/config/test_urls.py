"""What opens a URL is used and not kept."""

import json

from t6jax.config import RunConfig, differences
from t6jax.config.urls import without_secrets
from t6jax.runs import CONFIG, write_config
from tests.conftest import tiny_run

URL, PUBLIC = "https://me:word@host/a.jsonl?sig=abc", "https://host/a.jsonl"


def test_a_runs_config_does_not_keep_it_and_resumes_with_a_new_one(tmp_path):
    values = tiny_run(tmp_path)
    values["data"] |= {"source": URL}
    config = RunConfig.from_dict(values)
    assert config.data.source == URL
    write_config(tmp_path, config.to_dict())
    kept = json.loads((tmp_path / CONFIG).read_text())
    assert kept["data"]["source"] == PUBLIC
    values["data"] |= {"source": URL.replace("abc", "later")}
    assert differences(kept, RunConfig.from_dict(values)) == {}
    values["data"] |= {"source": URL.replace("a.jsonl", "b.jsonl")}
    assert [*differences(kept, RunConfig.from_dict(values))] == ["data.source"]


def test_it_is_taken_out_at_any_depth():
    values = {"mixture": {"web": {"source": URL, "weight": 2.0}}, "steps": 3}
    public = {"mixture": {"web": {"source": PUBLIC, "weight": 2.0}}, "steps": 3}
    assert without_secrets(values) == public == without_secrets(public)
