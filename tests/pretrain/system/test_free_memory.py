"""What may still be taken is the least of the machine's free memory and what each control group above has left."""

from pretrain.system.free_memory import free_memory


def test_the_least_of_the_machine_and_its_groups(tmp_path):
    meminfo, own, groups = tmp_path / "meminfo", tmp_path / "own", tmp_path / "groups"
    meminfo.write_text("MemTotal: 4096 kB\nMemAvailable:    2048 kB\n")
    own.write_text("0::/job/step\n")
    (groups / "job" / "step").mkdir(parents=True)
    assert free_memory(meminfo, groups, own) == 2048 * 1024
    (groups / "job" / "step" / "memory.max").write_text("max\n")
    (groups / "job" / "step" / "memory.current").write_text("10\n")
    assert free_memory(meminfo, groups, own) == 2048 * 1024
    (groups / "job" / "memory.max").write_text("1000\n")
    (groups / "job" / "memory.current").write_text("400\n")
    assert free_memory(meminfo, groups, own) == 600
    (groups / "job" / "memory.current").write_text("1400\n")
    assert free_memory(meminfo, groups, own) == 0


def test_a_system_that_does_not_say(tmp_path):
    assert free_memory(tmp_path / "a", tmp_path / "b", tmp_path / "c") is None
    assert (free_memory() or 1) > 0


def test_files_that_were_read_are_no_use_of_memory(tmp_path):
    """A group's `memory.current` counts the page cache, which after weights were read is nearly all of the limit."""
    (tmp_path / "own").write_text("0::/\n")
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("990\n")
    stat = "anon 190\nfile 800\nshmem 100\ninactive_anon 100\ninactive_file 500\nactive_file 200\nslab_reclaimable 5\n"
    (tmp_path / "memory.stat").write_text(stat)
    assert free_memory(tmp_path / "none", tmp_path, tmp_path / "own") == 10 + 500 + 200 + 5
