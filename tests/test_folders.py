"""Folders for results."""

from __future__ import annotations

import pytest

from attribkit.errors import InputError
from attribkit.folders import made_folder


def test_a_folder_stays_once_the_work_is_done(tmp_path):
    with made_folder(tmp_path / "a" / "b", "state"):
        assert (tmp_path / "a" / "b" / "state").is_dir()
    assert list((tmp_path / "a" / "b" / "state").iterdir()) == []


def test_an_error_leaves_no_empty_folder(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(KeyboardInterrupt), made_folder(tmp_path / "a" / "b" / "c", "state"):
        raise KeyboardInterrupt
    assert list((tmp_path / "a").iterdir()) == []

    def work():
        with made_folder(tmp_path / "a" / "b" / "c", "state"):
            (tmp_path / "a" / "b" / "kept").write_text("mine")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["kept"]


def test_what_cannot_be_made_or_written_is_said_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"the output folder '.*file.new' cannot be made: File exists$"):  # noqa: SIM117
        with made_folder(tmp_path / "file" / "new"):
            pytest.fail("the work was begun")

    def full(*args, **given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(InputError, match=r"the output folder '.*new' cannot be written: No space left on device$"):  # noqa: SIM117
        with made_folder(tmp_path / "new"):
            pytest.fail("the work was begun")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
