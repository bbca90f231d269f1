"""What tools/convert_to_hf.py takes from a run folder, and what it leaves when it is refused, killed or out of room."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from pretrain import checkpoint
from tests.commands import assert_refused
from tests.small_disk import small_disk
from tests.tools.exported_run import Exported, convert, train_and_export
from tests.tools.test_full_disk import assert_no_room


@pytest.fixture(scope="module")
def exported(commands, tiny_data, tmp_path_factory) -> Exported:
    return train_and_export(commands, tiny_data, tmp_path_factory.mktemp("exported"), "model")


def test_damaged_checkpoints_are_named(commands, exported, tmp_path):
    run, output = tmp_path / "run", tmp_path / "export"
    shutil.copytree(exported.run, run)
    older, newest = checkpoint.all_checkpoints(run)
    (newest / "__0_0.distcp").unlink()
    assert_refused(convert(commands, newest, output), f"{newest}/__0_0.distcp is missing")
    done = convert(commands, run, output)
    warnings = [line for line in done.out.splitlines() if line.startswith("warning: ")]
    assert done.code == 0 and str(older) in done.out.splitlines()[-1]
    assert len(warnings) == 1 and f"{newest}/__0_0.distcp is missing" in warnings[0]
    shutil.rmtree(output)
    content = bytearray((older / "__0_0.distcp").read_bytes())
    content[100] ^= 1
    (older / "__0_0.distcp").write_bytes(content)
    assert_refused(convert(commands, run, output), "none of 2 checkpoints verifies")
    assert_refused(convert(commands, tmp_path / "nowhere", output), "nowhere", "holds no checkpoint")
    assert not output.exists()


def test_only_an_export_is_replaced(commands, exported, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(exported.run, run)
    notes, file = tmp_path / "notes", tmp_path / "file"
    notes.mkdir()
    (notes / "mine.txt").write_text("kept")
    file.write_text("kept")
    for output in (notes, file, run, checkpoint.folder_of(run, 3)):
        before = sorted(path for path in output.rglob("*"))
        assert_refused(convert(commands, exported.run, output), str(output), "no export")
        assert sorted(path for path in output.rglob("*")) == before
    assert file.read_text() == "kept" and checkpoint.verify(checkpoint.folder_of(run, 3)) is None
    (tmp_path / "empty").mkdir()
    assert convert(commands, exported.run, tmp_path / "empty").code == 0


def test_an_export_without_room_is_one_line_and_the_old_one_stays(commands, exported, tmp_path):
    """The old export is there before and after, whole; nothing of the new one is."""
    with small_disk(tmp_path / "disk", 1 << 20) as (disk, hook):
        shutil.copytree(exported.folder, disk / "model")
        (disk / "ballast").write_bytes(b"x" * (shutil.disk_usage(disk).free - (100 << 10) if not hook else 1))
        done = commands.run(
            "tools/convert_to_hf.py", "--checkpoint", exported.run, "--output", disk / "model", hook=hook
        )
        assert_no_room(done, disk)
        assert sorted(path.name for path in disk.iterdir()) == ["ballast", "model"]
        for path in exported.folder.rglob("*"):
            assert (
                path.is_dir() or path.read_bytes() == (disk / "model" / path.relative_to(exported.folder)).read_bytes()
            )


def test_a_killed_export_leaves_nothing_under_its_name_and_the_next_one_takes_its_remains(commands, exported, tmp_path):
    output, partial = tmp_path / "model", tmp_path / "model.partial"
    shutil.copytree(exported.folder, output)
    words = ("tools/convert_to_hf.py", "--checkpoint", exported.run, "--output", output)
    running = commands.start(*words, hook=(__name__, "stop_late", str(partial)))
    deadline = time.monotonic() + 120
    while not (partial / "stopped").exists():
        assert time.monotonic() < deadline and running.processes()
        time.sleep(0.05)
    second = convert(commands, exported.run, output)  # while the first one lives
    assert_refused(second, str(output), "another export is writing it")
    for pid in running.processes():
        os.kill(pid, signal.SIGKILL)
    running.wait()
    assert partial.is_dir() and same_files(exported.folder, output)
    assert convert(commands, exported.run, output).code == 0
    assert not partial.exists() and same_files(exported.folder, output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_what_is_no_unfinished_export_is_not_taken_away(commands, exported, tmp_path):
    """A folder of the user's own that happens to be called so."""
    partial = tmp_path / "model.partial"
    partial.mkdir()
    (partial / "notes.txt").write_text("kept")
    assert_refused(convert(commands, exported.run, tmp_path / "model"), str(partial), "move it away")
    assert (partial / "notes.txt").read_text() == "kept"


def stop_late(folder: str) -> None:
    """Have this process stand still when an export is nearly whole."""
    from tools.export import model_card

    def stop(*_, **__):
        (Path(folder) / "stopped").write_text("")
        time.sleep(600)

    model_card.model_card = stop


def same_files(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files with the same bytes."""
    files = [
        sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()) for folder in (one, other)
    ]
    return files[0] == files[1] and all((one / path).read_bytes() == (other / path).read_bytes() for path in files[0])
