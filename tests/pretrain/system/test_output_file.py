"""A file that cannot be written is refused before the work, and nothing is made for the check."""

from __future__ import annotations

import pytest

from pretrain.system.errors import UserError
from pretrain.system.output_file import check_output_file, check_output_folder
from tests.small_disk import read_only


def test_what_can_be_written_is_taken_and_not_made(tmp_path):
    (tmp_path / "there").write_text("old")
    for name in ("there", "new", "a/b/new"):
        check_output_file(tmp_path / name, "--json")
    check_output_file(None, "--json")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(("name", "part"), [("", "is a folder"), ("file/x", "cannot be"), ("x" * 300, "no name")])
def test_what_cannot_be_written_is_named_with_its_option(tmp_path, name, part):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"--json .*{part}"):
        check_output_file(tmp_path / name, "--json")


def test_a_folder_without_permission_is_refused(tmp_path):
    with read_only(tmp_path / "closed") as folder, pytest.raises(UserError, match="cannot be written"):
        check_output_file(folder / "x", "--json")


def test_folders_are_checked_and_not_made(tmp_path):
    (tmp_path / "file").write_text("")
    check_output_folder(tmp_path / "a/b", "--output")
    for name, part in (("file", "file is a file"), ("file/x", "file is a file"), ("x" * 300, "no name of a folder")):
        with pytest.raises(UserError, match=f"--output .*{part}"):
            check_output_folder(tmp_path / name, "--output")
    with read_only(tmp_path / "closed") as folder, pytest.raises(UserError, match="nothing can be written in"):
        check_output_folder(folder / "x", "--output")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["closed", "file"]
