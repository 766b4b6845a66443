"""What a record says of its run."""

import json
import subprocess

from benchmarks import record


def test_the_command_leaves_out_where_the_record_goes(monkeypatch):
    argv = ["prog", "--quick", "--out=/tmp/x", "--commit", "abc", "--peers", "DIR", "--out", "y"]
    monkeypatch.setattr("sys.argv", argv)
    made = record.provenance("benchmarks.decode", "NVIDIA H200", "abc")
    assert made["command"] == "python -m benchmarks.decode --quick --peers DIR"
    assert made["commit"] == "abc" and made["device"] == "NVIDIA H200"


def test_a_record_is_written_under_its_device_and_read_again(tmp_path):
    path = record.write(tmp_path / "new", "train", {"device": "NVIDIA H200", "results": []})
    assert path.name == "train_nvidia_h200.json"
    assert record.read(path) == json.loads(path.read_text())
    assert record.read("train_nvidia_h200.json")["results"]


def test_the_commit_is_that_of_the_folder(tmp_path):
    assert record.commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    assert len(record.commit(tmp_path)) == 40
