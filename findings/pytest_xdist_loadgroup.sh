#!/usr/bin/env bash
# pytest-xdist 3.8.0, the newest, under pytest 9.2.0: `--dist loadgroup` keeps no group together, and says nothing.
#
# xdist marks the group of a test by writing `item._nodeid`. pytest 9.2 derives `item.nodeid` from a structured id and does
# not read that attribute, so the scheduler sees no "@group" at the end of the names, and hands the tests of a group to any
# worker. Tests that share a port, a database or an expensive session fixture "in one group" then run beside each other.
# With pytest 8.4.2 groups are kept.
#
# Seen:
#   pytest 8.4.2: 12 tests of group "one" ran in 1 workers
#   pytest 9.2.0: 12 tests of group "one" ran in 2 workers
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/test_group.py" <<'END'
import os
import time

import pytest


@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(12))
def test_it(number):
    time.sleep(0.2)
    with open("workers", "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
END
found=()
for version in 8.4.2 9.2.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "pytest==$version" pytest-xdist==3.8.0
  rm -f "$folder/workers"
  (cd "$folder" && "$folder/$version/bin/python" -m pytest -q -p no:cacheprovider -n 2 --dist loadgroup test_group.py >/dev/null)
  workers=$(sort -u "$folder/workers" | wc -l)
  echo "pytest $version: $(wc -l < "$folder/workers") tests of group \"one\" ran in $workers workers"
  found+=("$workers")
done
[ "${found[0]}" = 1 ] && [ "${found[1]}" = 2 ]
