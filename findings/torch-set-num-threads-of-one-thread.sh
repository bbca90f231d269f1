#!/usr/bin/env bash
# torch 2.13.0: for whom torch.set_num_threads counts.
#
#   a thread that has computed before     keeps its own number, whatever another thread, or the main one, sets later
#   a thread that begins afterwards       begins with what ANY thread set last, not with the number of the thread that started it
#
# So set_num_threads(1) in a program's main thread does not reach a ThreadPoolExecutor that has worked before, and a
# worker that sets its own number sets that of threads which others begin later. Give each pool an initializer that sets it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.1.3
cat > "$folder/threads.py" <<'PY'
import sys
from concurrent.futures import ThreadPoolExecutor

import torch


def in_a_new_thread():
    with ThreadPoolExecutor(1) as fresh:
        return fresh.submit(torch.get_num_threads).result()


torch.set_num_threads(2)
pool = ThreadPoolExecutor(1)
ask = lambda: (torch.get_num_threads(), pool.submit(torch.get_num_threads).result(), in_a_new_thread())
found = [ask()]
torch.set_num_threads(3)
found.append(ask())
pool.submit(torch.set_num_threads, 5).result()
found.append(ask())
for what, (main, old, new) in zip(("main sets 2", "main sets 3", "the pool's thread sets 5"), found):
    print(f"{what}: main {main}, the pool's thread {old}, a new thread {new}")
same = found == [(2, 2, 2), (3, 2, 3), (3, 5, 5)]
print("as described above" if same else "changed")
sys.exit(0 if same else 1)
PY
"$folder/venv/bin/python" "$folder/threads.py"
