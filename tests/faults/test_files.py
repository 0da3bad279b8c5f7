"""Files that are written by several processes, to a full disk, or in place of a link."""

import os

import pytest

from memtools.files import read_json, refuse_links, replace_atomically, write_text

A, B = "a" * 20_000, "b" * 30_000


def test_processes_that_write_one_file_take_turns(tmp_path):
    if not hasattr(os, "fork"):
        pytest.skip("forks are needed")
    path = tmp_path / "file"
    write_text(path, A)
    children = []
    for text in (A, B):
        child = os.fork()
        if not child:
            status = 1
            try:
                for _ in range(150):
                    write_text(path, text)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    while children:
        assert path.read_text() in (A, B)  # whole, whoever is writing
        done, status = os.waitpid(children[0], os.WNOHANG)
        if done:
            assert os.WEXITSTATUS(status) == 0
            children.pop(0)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(small_disk):
    folder, fill = small_disk
    write_text(folder / "file", "old")
    fill(but=8_192)
    with pytest.raises(OSError, match="No space left"):
        write_text(folder / "file", A)
    assert (folder / "file").read_text() == "old"
    assert sorted(p.name for p in folder.iterdir()) == ["file", "filler"]


def test_a_read_only_folder_is_named(tmp_path, frozen):
    write_text(tmp_path / "file", "old")
    frozen(tmp_path)
    with pytest.raises(OSError, match=r"Read-only|denied") as caught:
        write_text(tmp_path / "file", "new")
    assert str(tmp_path) in str(caught.value)
    assert (tmp_path / "file").read_text() == "old"


@pytest.fixture
def outside(tmp_path):
    """A file outside of the folder that is written to."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside").write_text("mine")
    yield tmp_path / "outside"
    assert (tmp_path / "outside").read_text() == "mine"


def test_a_link_is_replaced_and_not_written_through(outside):
    path = outside.with_name("inside") / "file"
    path.symlink_to(outside)
    write_text(path, "theirs")
    assert path.read_text() == "theirs"
    assert not path.is_symlink()


def test_a_link_in_place_of_what_waits_for_its_name_is_not_written_through(outside):
    path = outside.with_name("inside") / "file"
    path.with_name(".file.tmp").symlink_to(outside)
    with pytest.raises(OSError, match=r"\.file\.tmp"):
        write_text(path, "theirs")


def test_links_that_lead_out_of_a_folder_are_named(tmp_path):
    inside = tmp_path / "inside"
    (inside / "deep").mkdir(parents=True)
    (inside / "file").write_text("")
    (inside / "deep" / "harmless").symlink_to("../file")
    refuse_links(inside)
    (tmp_path / "also inside").symlink_to(inside)
    refuse_links(tmp_path / "also inside")
    for target in ("../..", "/etc/passwd", "../../nowhere"):
        link = inside / "deep" / "link"
        link.symlink_to(target)
        with pytest.raises(ValueError, match="deep/link is a link that leads out of its folder"):
            refuse_links(inside)
        link.unlink()


def test_json_that_is_nested_without_end_is_an_error_of_its_own(tmp_path):
    (tmp_path / "bomb.json").write_text("[" * 10**5)
    with pytest.raises(ValueError, match=r"bomb\.json is nested too deeply"):
        read_json(tmp_path / "bomb.json")


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with replace_atomically(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
