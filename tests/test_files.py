import stat
from contextlib import suppress

import pytest

from bmvtrack.files import whole_file, whole_folder, write_text


def test_a_file_is_written_whole_in_folders_made_as_needed(tmp_path):
    path = tmp_path / "a" / "b" / "result.json"
    with whole_file(path) as temporary:
        assert temporary.suffix == ".json"
        assert temporary.parent == path.parent
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "weights"
    for name in ("old", "new"):
        with whole_folder(path) as temporary:
            (temporary / name).touch()
    assert [p.name for p in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_file_leaves_nothing_behind(tmp_path, existing):
    path = tmp_path / "result.txt"
    if existing:
        path.write_text("old")
    with suppress(KeyboardInterrupt), whole_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"] * existing


@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_folder_leaves_nothing_behind(tmp_path, existing):
    path = tmp_path / "weights"
    if existing:
        path.mkdir()
        (path / "old").touch()
    with suppress(KeyboardInterrupt), whole_folder(path) as temporary:
        (temporary / "half").touch()
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.rglob("*")] == ["weights", "old"] * existing


def test_others_may_read_what_was_written_as_they_may_read_any_file(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "whole", "μ\n")
    (tmp_path / "plain folder").mkdir()
    with whole_folder(tmp_path / "whole folder"):
        pass
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert modes["whole"] == modes["plain"]
    assert modes["whole folder"] == modes["plain folder"]
    assert (tmp_path / "whole").read_text(encoding="utf-8") == "μ\n"
