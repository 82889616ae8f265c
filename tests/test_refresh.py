"""Pages hold what their commands print."""

from pathlib import Path

import pytest
from run_folders import make_runs

from utils import refresh

ROOT = Path(__file__).parent.parent


@pytest.fixture
def runs(tmp_path):
    return make_runs(tmp_path)


@pytest.mark.parametrize("page", ["README.md", *sorted(f"results/{p.name}" for p in (ROOT / "results").glob("*.md"))])
def test_the_committed_results_are_those_that_the_pages_show(page, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    refresh.main(["--check", page])
    assert "up to date" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "<!-- python -m utils.tables 6 -->\nno end, then prose\n<!-- python -m utils.table6 -->\n<!-- end -->\n",
        "<!-- python -m utils.table6 -->\nold\n",
        "old\n<!-- end -->\n",
        "<!-- python -m utils.nothing -->\n<!-- end -->\n",
    ],
)
def test_a_page_whose_marks_do_not_pair_is_left_alone(text, tmp_path, fails):
    page = tmp_path / "page.md"
    page.write_text(text)
    assert fails(refresh.main, page)[0] == 1
    assert page.read_text() == text


def test_a_page_is_refreshed_between_its_marks_alone(runs, tmp_path, monkeypatch, capsys, fails):
    page = tmp_path / "page.md"
    text = f"Before.\n<!-- python -m utils.tables runs --runs {runs} -->\nold\n<!-- end -->\nAfter.\n"
    page.write_text(text)
    assert fails(refresh.main, "--check", page)[0] == 1
    assert page.read_text() == text
    refresh.main([str(page)])
    new = page.read_text()
    assert new.startswith("Before.\n<!--")
    assert new.endswith("<!-- end -->\nAfter.\n")
    assert "| fp | copy | 5 |" in new
    assert "old" not in new
    refresh.main(["--check", str(page)])


def test_a_binary_page_gets_one_line(tmp_path, fails):
    (tmp_path / "page.md").write_bytes(b"\xff\xfe\x00")
    assert fails(refresh.main, tmp_path / "page.md")[0] == 1
