"""URLs with a query as arguments of commands."""

from __future__ import annotations

import json
import shutil

import pytest
from file_server import serving
from helpers import GOLDEN

from emollama.inference import fingerprint
from emollama.paths import extension
from emollama.remote import manager

pytestmark = pytest.mark.faults

OV = GOLDEN / "ov2024"
QUERY = "?signature=a.b/c"


@pytest.fixture
def url(tmp_path, monkeypatch):
    """The URL of a server of the golden files of open-vocabulary words."""
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    manager._path_manager.cache_clear()
    shutil.copytree(OV, tmp_path / "files")
    with serving(tmp_path / "files") as server:
        yield server.url
    manager._path_manager.cache_clear()


@pytest.mark.parametrize("query", ["", QUERY])
def test_score_reads_predictions_references_and_groups_at_urls(tmp_path, emollama, url, query):
    predictions = f"{url}/predict-openset.csv{query}"
    options = ("--truth", f"{url}/check-openset.csv{query}", "--synonyms", f"{url}/openset-synonym.zip{query}", "--resamples", 0)
    done = emollama("score", "--predictions", predictions, *options, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    ((_, task),) = json.loads((tmp_path / "out/scores.json").read_text())["tasks"].items()
    expected = json.loads((OV / "expected.json").read_text())["per_clip_groups"]["score"]
    assert task["files"][predictions]["estimates"]["ov"]["value"] == pytest.approx(expected, abs=1e-12)


def test_import_reads_a_table_and_a_map_of_labels_at_urls(tmp_path, emollama, url):
    (tmp_path / "files/table.csv").write_text("name,discrete\na,glad\n")
    (tmp_path / "files/map.json").write_text('{"glad": "happy"}')
    source, labels = f"{url}/table.csv{QUERY}", f"{url}/map.json{QUERY}"
    done = emollama("import", "mer2024", source, "--label-map", labels, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "happy" in "".join(path.read_text() for path in (tmp_path / "out").glob("*.txt"))


def test_the_fingerprint_of_scoring_files_at_urls_is_that_of_their_contents(tmp_path, url):
    assert fingerprint._contents(f"{url}/check-openset.csv{QUERY}") == fingerprint._contents(str(OV / "check-openset.csv"))


def test_the_fingerprint_of_features_at_a_url_does_not_depend_on_the_current_folder(tmp_path, monkeypatch):
    place = fingerprint._place("https://example.org/a.tar")
    monkeypatch.chdir(tmp_path)
    assert fingerprint._place("https://example.org/a.tar") == place == "https://example.org/a.tar"


@pytest.mark.parametrize("path", ["a/b.CSV", "https://x/b.csv?c=d.npz", "s3://x/b.csv", "b.csv"])
def test_the_format_of_a_path_or_url_follows_from_its_extension(path):
    assert extension(path) == ".csv"


def test_a_question_mark_in_a_local_name_is_a_part_of_it():
    assert extension("a?b.csv") == ".csv" and extension("a.csv?b") == ".csv?b"
