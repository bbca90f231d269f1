#!/usr/bin/env bash
# megatron-core 0.19.2 (PyPI): `megatron.core.__version__` ends with the commit of whatever git repository the package is installed
# under, such as a project whose .venv lies inside its checkout. It asks `git rev-parse` in its own folder at import and takes the
# answer for its own commit.
#
# Expected: an installed release says "0.19.2", as its metadata does. Seen: "0.19.2+" and the newest commit of the project around
# it, another one after each commit of the project. Whoever writes the version into a run's record, or compares two of them to see
# whether a run goes on with the same library, compares commits of the own project. importlib.metadata tells the release.
# 0.16.1 does not do so. NO_VCS_VERSION=1 in the environment turns it off.
#
# Output seen:
#   0.16.1: metadata 0.16.1, __version__ the same before and after a commit of the project around it
#   0.19.2: metadata 0.19.2, __version__ followed the project's commits
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/said.py" <<'END'
import runpy
import sys

print(runpy.run_path(sys.argv[1] + "/megatron/core/package_info.py")["__version__"])
END
cd "$folder"
mkdir project
git -C project init -q
commit() {
  git -C project -c user.name=someone -c user.email=someone@example.com commit -q --allow-empty -m "$1"
}
problem=0
for version in 0.16.1 0.19.2; do
  packages="$folder/project/packages-$version"
  python=$([ "$version" = 0.16.1 ] && echo 3.11 || echo 3.12) # 0.19.2 asks for 3.12, and only its own file is run here
  python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version "$python" \
    --dest "$folder/$version" "megatron-core==$version"
  python3 -m zipfile -e "$folder/$version"/*.whl "$packages"
  commit "before $version"
  before=$(python3 said.py "$packages") first=$(git -C project rev-parse --short HEAD)
  commit "after $version"
  after=$(python3 said.py "$packages") second=$(git -C project rev-parse --short HEAD)
  metadata=$(ls -d "$packages"/megatron_core-*.dist-info | sed 's/.*megatron_core-\(.*\)\.dist-info/\1/')
  if [ "$before" = "$version" ] && [ "$after" = "$version" ]; then
    echo "$version: metadata $metadata, __version__ the same before and after a commit of the project around it"
    [ "$version" = 0.16.1 ] || problem=1
  elif [ "$before" = "$version+$first" ] && [ "$after" = "$version+$second" ]; then
    echo "$version: metadata $metadata, __version__ followed the project's commits"
    [ "$version" = 0.19.2 ] || problem=1
  else
    echo "$version: metadata $metadata, __version__ $before, then $after"
    problem=1
  fi
done
exit $problem
