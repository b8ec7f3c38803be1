"""`metazoo demo` as a process: a zoo at hand, one job, and books that agree."""

import json
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def test_the_demo_prints_what_it_promises(run, zoo_folder: Path, tmp_path: Path) -> None:
    done = run("demo", "--zoo", str(zoo_folder), "--data-dir", str(tmp_path), "--queries", "400", "--json", timeout=380)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"accuracy", "interval", "random", "queries", "seconds", "meta_model"}
    assert result["queries"] == {"limit": 400, "spent": 400, "zoo_counted": 400}
    assert set(result["seconds"]) == {"build", "acquire", "meta_train", "evaluate", "total"}
    for shots in ("1", "5"):
        assert result["accuracy"][shots] > result["random"][shots] + result["interval"][shots]
    assert (tmp_path / "meta-models" / result["meta_model"] / "model.safetensors").exists()
    assert "the zoo counted 400" in done.stdout


def test_a_missing_data_set_is_told_before_anything_is_spent(run, zoo_folder: Path, tmp_path: Path) -> None:
    options = ["--zoo", str(zoo_folder), "--data-dir", str(tmp_path), "--dataset", "cifar-fs"]
    done = run("demo", *options, env={"METAZOO_DATA": str(tmp_path / "nowhere")}, timeout=200)
    assert done.returncode == 1
    assert "cifar-fs" in done.stderr
    assert str(tmp_path / "nowhere") in done.stderr
