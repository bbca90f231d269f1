from tests.tools.test_plan_parallel import SCRIPT, write_config
from tests.pretrain.tiny_run import *
def test_probe(commands, tiny_data, tmp_path):
    config = write_config(tiny_data, tmp_path / "run")
    out=[]
    for gib in (1.0,.01,.005,.004,.0035,.003,.0027,.0025,.0024,.0023,.0022,.0021,.00205,.002,.0019,.0018,.0017,.0016,.0015):
        done = commands.run(SCRIPT, config, "data.rows_per_step=4", "log.heldout_rows=4", "--gpus", 4, "--gpu-memory", gib)
        b=[l for l in done.out.splitlines() if l.startswith("| 1 |")]
        out.append((gib, [c.strip() for c in b[0].split("|")[2:6]]+b[0].split("|")[-2:] if b else done.err[:150]))
    print("\n".join(map(str,out)))
    assert 0
