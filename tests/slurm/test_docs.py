"""docs/cluster.md against what it speaks of."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from pretrain.config import TrainConfig, load_config
from pretrain.process_ranks import check_world
from pretrain.system.errors import UserError
from slurm import attempt, submit

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")


def test_every_setting_is_in_the_table_and_every_row_is_a_setting():
    site = (ROOT / "slurm/site.sh").read_text(encoding="utf-8")
    settings = set(re.findall(r'^: "\$\{(\w+):=', site, re.MULTILINE)) - {"UNIX_ROOT"}
    table = PAGE[PAGE.index("| setting |") : PAGE.index("The number of nodes, GPUs")]
    named = {
        name
        for row in table.splitlines()
        if row.startswith("|")
        for name in re.findall(r"`([A-Z]\w+)`", row.split("|")[1])
    }
    assert settings == named
    for name in settings:  # and something reads it
        readers = [path for path in (ROOT / "slurm").iterdir() if path.is_file() and path.name != "site.sh"]
        assert name.startswith("SBATCH_") or any(name in path.read_text(encoding="utf-8") for path in readers), name


def test_its_commands_name_files_that_exist():
    commands = [
        line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines() if line.strip()
    ]
    assert len(commands) >= 8
    for command in commands:
        for word in shlex.split(command):
            if re.match(r"(slurm|tools|pretrain)/", word) or word.endswith(".yaml"):
                assert (ROOT / word.split("=")[-1]).is_file(), command


def test_the_table_of_nodes_is_what_batches_divide_over():
    table = PAGE[PAGE.index("| script | replaced |") : PAGE.index("The batches of the configurations")]
    rows = [[cell.strip() for cell in row.split("|")[1:4]] for row in table.splitlines()[2:] if row]
    assert len(rows) >= 5
    for scripts, replaced, nodes in rows:
        for script in re.findall(r"`(\S+)`", scripts):
            _, config, own = submit.options_of(ROOT / "slurm" / script)
            loaded = load_config(ROOT / config, [*own, *shlex.split(replaced.strip("`"))])
            divides = [str(count) for count in range(8, 0, -1) if divides_over(loaded, 8 * count)]
            assert ", ".join(divides) == nodes, script


def divides_over(config: TrainConfig, processes: int) -> bool:
    """Whether a run can go over so many processes."""
    try:
        check_world(config, processes)
    except UserError:
        return False
    return True


def test_the_table_of_exit_codes_is_what_the_script_does():
    table = PAGE[PAGE.index("| the ranks end with |") : PAGE.index("Attempts have numbers")]
    said = {
        code.strip(): row.split("|")[3]
        for row in table.splitlines()[2:]
        if "|" in row
        for code in row.split("|")[1].split(",")
    }
    words = {
        "done": "the job ends",
        "refused": "is not tried again",
        "requeue": "back into the queue",
        "restart": "a new attempt",
    }
    for code in (0, 1, 2, 75, 130):
        assert words[attempt.decide(code, "")] in said[str(code)]
