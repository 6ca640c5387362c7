"""Which files a folder holds: none is passed over in silence for the case of its ending, or for lying behind a link."""

from pathlib import Path

import pytest

from lst.data.sources import guess_format
from lst.data.sources.audio import list_audio
from lst.data.sources.files import files_below, input_files
from lst.data.sources.texts import written_source
from lst.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of three kinds of ending, some behind a link to a folder elsewhere; two links that would go round."""
    for name in ("in/a.txt", "in/deep/b.TXT", "in/.hidden/no.txt", "in/.no.txt", "elsewhere/c.Txt", "elsewhere/d.FLAC"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("One.")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "deep" / "up").symlink_to("..")
    (tmp_path / "elsewhere" / "round").symlink_to(".")
    return tmp_path / "in"


def test_a_folders_files_are_found_behind_links_and_each_once(folder: Path) -> None:
    found = [str(file.relative_to(folder)) for file in files_below(folder)]
    assert sorted(found) == ["a.txt", "deep/b.TXT", "link/c.Txt", "link/d.FLAC"]


def test_a_link_that_leads_nowhere_is_kept_to_be_refused_by_name(folder: Path) -> None:
    (folder / "gone.flac").symlink_to("nowhere.flac")
    assert list_audio(folder)[1] == ["gone.flac", "link/d.FLAC"]
    (folder / "gone.txt").symlink_to("nowhere.txt")
    with pytest.raises(DataError, match=r"gone\.txt cannot be read"):
        written_source(str(folder), {}).blocks()


def test_endings_count_in_letters_of_any_case(folder: Path) -> None:
    assert [file.name for file in input_files(str(folder), (".txt",))[1]] == ["a.txt", "b.TXT", "c.Txt"]
    assert list_audio(folder)[1] == ["link/d.FLAC"]
    source = written_source(str(folder), {})
    ids = [record.row["id"] for block in source.blocks() for record in source.read(block)]  # type: ignore[union-attr]
    assert ids == ["a-000001", "deep/b-000001", "link/c-000001"]
    assert guess_format("SPEECH.PARQUET") == "parquet"
