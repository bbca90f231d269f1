#!/usr/bin/env bash
# torch 2.13.0: what torchrun makes of a stop that its processes obey.
#
#   SIGTERM or SIGINT, processes save and leave with 0    torchrun ends in a traceback (SignalException) with exit code 1: a
#                                                         scheduler counts a clean stop as a failure
#   the same, and saving takes longer than 30 s           the processes are killed, nothing is saved; the same traceback and code
#   the second with --shutdown-timeout 60                 saved; still exit code 1
#
# So a training script cannot tell "saved, go on later" by its exit code through torchrun, and whoever saves for longer has to know
# of the option. A shorter limit stands for the 30 s below: 3 s, and a save of 8 s; the default is read from torchrun's own settings.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.1.3
cat > "$folder/train.py" <<'PY'
import os
import signal
import sys
import time

place, seconds, asked = sys.argv[1], float(sys.argv[2]), []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: asked.append(True))
mine = os.path.join(place, os.environ["RANK"])
open(mine + ".ready", "w").close()
while not asked:
    time.sleep(0.05)
time.sleep(seconds)  # the checkpoint
open(mine + ".saved", "w").close()
PY
cat > "$folder/stop.py" <<'PY'
import os
import signal
import subprocess
import sys
import tempfile
import time

from torch.distributed.launcher.api import LaunchConfig

folder = sys.argv[1]
default = LaunchConfig(1, 1, 1).shutdown_timeout
print("seconds by default:", default)
same = default == 30
CASES = [
    ("SIGTERM", 1, "30", 2),
    ("SIGINT", 1, "30", 2),
    ("SIGTERM", 8, "3", 0),
    ("SIGTERM", 8, "60", 2),
]
for name, saving, limit, expected in CASES:
    place = tempfile.mkdtemp(dir=folder)
    words = ["torchrun", "--standalone", "--nproc-per-node", "2", "--shutdown-timeout", limit, f"{folder}/train.py", place, str(saving)]
    words[0] = os.path.join(os.path.dirname(sys.executable), words[0])
    run = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while len(os.listdir(place)) < 2:
        time.sleep(0.1)
    run.send_signal(getattr(signal, name))
    told = run.communicate()[1]
    saved = sum(file.endswith(".saved") for file in os.listdir(place))
    print(f"{name}, a save of {saving} s, limit {limit} s: {saved} of 2 saved, exit code {run.returncode}, traceback {'SignalException' in told}")
    same = same and (saved, run.returncode, "SignalException" in told) == (expected, 1, True)
print("as described above" if same else "changed")
sys.exit(0 if same else 1)
PY
"$folder/venv/bin/python" "$folder/stop.py" "$folder"
