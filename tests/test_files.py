import csv
import json
import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from bmvtrack.errors import UserError
from bmvtrack.files import (
    atomic_file,
    atomic_folder,
    csv_text,
    held,
    numbered_files,
    write_json,
    write_text,
)


def test_a_file_is_written_whole_in_folders_made_as_needed(tmp_path):
    path = tmp_path / "a" / "b" / "result.json"
    with atomic_file(path) as temporary:
        assert temporary.suffix == ".json"
        assert temporary.parent == path.parent
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "weights"
    for name in ("old", "new"):
        with atomic_folder(path) as temporary:
            (temporary / name).touch()
    assert [p.name for p in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_file_leaves_nothing_behind(tmp_path, existing):
    path = tmp_path / "result.txt"
    if existing:
        path.write_text("old")
    with suppress(KeyboardInterrupt), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"] * existing


@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_folder_leaves_nothing_behind(tmp_path, existing):
    path = tmp_path / "weights"
    if existing:
        path.mkdir()
        (path / "old").touch()
    with suppress(KeyboardInterrupt), atomic_folder(path) as temporary:
        (temporary / "half").touch()
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.rglob("*")] == ["weights", "old"] * existing


@pytest.mark.parametrize("write", [atomic_file, atomic_folder])
def test_folders_that_were_made_go_again_if_they_are_empty(tmp_path, write):
    (tmp_path / "there").mkdir()
    with suppress(KeyboardInterrupt), write(tmp_path / "there" / "a" / "b" / "c"):
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.rglob("*")] == ["there"]


def test_others_may_read_what_was_written_as_they_may_read_any_file(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "whole", "μ\n")
    (tmp_path / "plain folder").mkdir()
    with atomic_folder(tmp_path / "whole folder"):
        pass
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert modes["whole"] == modes["plain"]
    assert modes["whole folder"] == modes["plain folder"]
    assert (tmp_path / "whole").read_text(encoding="utf-8") == "μ\n"


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    with atomic_folder(path) as temporary:
        (temporary / "old").touch()
    replace = Path.replace

    def failing(source, target):
        if target == path and (source / "new").exists():
            raise OSError("the disk is gone")
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="the disk is gone"), atomic_folder(path) as temporary:
        (temporary / "new").touch()
    assert [p.name for p in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_listed_by_number_with_links_that_lead_nowhere(tmp_path):
    for name in ("10.png", "9.png", "._9.png", "9.txt"):
        (tmp_path / name).touch()
    (tmp_path / "11.PNG").symlink_to(tmp_path / "gone")
    (tmp_path / "8.png").mkdir()
    names = [path.name for path in numbered_files(tmp_path, (".png",))]
    assert names == ["9.png", "10.png", "11.PNG"]


def test_json_says_no_to_what_it_cannot_hold(tmp_path):
    write_json(tmp_path / "x.json", {"β": [1, None]})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"β": [1, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})


def test_cells_with_commas_are_quoted():
    rows = [["name", "iou"], ["ant, left", "0.5"], ['a "b"', ""]]
    assert list(csv.reader(csv_text(rows).splitlines())) == rows


def test_a_link_to_a_file_stays_one(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_names_that_are_no_text_are_written_so_that_json_gives_them_back(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "a.json", {"name": name})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": name}


def test_a_folder_takes_no_file_s_place_and_follows_links(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(NotADirectoryError), atomic_folder(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "precious"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with atomic_folder(tmp_path / "link") as temporary:
        (temporary / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere" / "new").exists()


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    folder = tmp_path / "new" / "run"
    with held(folder):
        with pytest.raises(UserError, match=r"another process is writing to .*run"), held(folder):
            pass
        with held(tmp_path / "other"):
            pass
    assert list(folder.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), held(folder):
        raise KeyboardInterrupt
    with held(folder):
        pass
