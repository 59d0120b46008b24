"""Writing that cannot be half done, and finding what ships with the package."""

import errno
import hashlib
import json
import os
import stat

import pytest

from ine.errors import IneError, OutputError, did_you_mean
from ine.files import (
    atomic_path,
    check_free,
    sha256_of,
    shipped,
    write_bytes,
    write_json,
    write_text,
)


def test_what_is_written_is_there_and_nothing_else(tmp_path):
    write_bytes(tmp_path / "a" / "b" / "c.bin", b"\x00\xff")
    write_text(tmp_path / "a" / "d.txt", "fl\N{LATIN SMALL LETTER A WITH DIAERESIS}me\n")
    assert (tmp_path / "a" / "b" / "c.bin").read_bytes() == b"\x00\xff"
    assert (tmp_path / "a" / "d.txt").read_bytes() == b"fl\xc3\xa4me\n"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "c.bin", "d.txt"]


def test_json_is_readable_and_ends_its_last_line(tmp_path):
    value = {"b": [1, 2.5, None], "a": "\N{FIRE}"}
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert text.endswith("}\n")
    assert "\N{FIRE}" in text


def half_written(path, error):
    with atomic_path(path) as part:
        part.write_text("half of the n")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with pytest.raises(error):
        half_written(path, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with atomic_path(path) as part:
        part.write_text("new")
        assert part.parent == tmp_path
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    path = tmp_path / "x.txt"
    with pytest.raises(OutputError, match=r"x\.txt: cannot be written \(the disk is full\)"):
        half_written(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/x\.txt: cannot be written"):
        write_text(tmp_path / "file" / "x.txt", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder: cannot be written"):
        write_text(tmp_path / "folder", "text")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_an_error_of_ine_is_not_renamed(tmp_path):
    with pytest.raises(IneError, match="mine") as caught:
        half_written(tmp_path / "x", IneError("mine"))
    assert type(caught.value) is IneError


def test_files_get_the_permissions_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "x", "text")
        assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_an_existing_output_needs_force(tmp_path):
    path = tmp_path / "x"
    check_free(path)
    path.write_text("")
    with pytest.raises(OutputError, match=r"x: exists already; give --force"):
        check_free(path)
    check_free(path, force=True)


def test_a_hash_of_pieces_is_the_hash_of_the_whole():
    assert sha256_of(b"fi", b"", b"re") == hashlib.sha256(b"fire").hexdigest()
    assert sha256_of(b"fire") != sha256_of(b"Fire")


def test_shipped_folders_are_found():
    assert (shipped("recipes") / "fire.yaml").is_file()
    assert shipped("embeddings").is_dir()
    with pytest.raises(FileNotFoundError, match="shipped nothing are missing"):
        shipped("nothing")


def test_a_near_word_is_suggested_and_a_far_one_is_not():
    assert did_you_mean("stpes", ["steps", "seed"]) == "; did you mean 'steps'?"
    assert did_you_mean("zzz", ["steps", "seed"]) == ""
