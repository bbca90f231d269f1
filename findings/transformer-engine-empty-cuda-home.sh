#!/usr/bin/env bash
# transformer-engine 2.12.0: with CUDA_HOME (CUDA_PATH, CUDNN_HOME, ...) set and empty, importing it walks the whole file system.
#
# It looks for cuDNN, NVRTC and cuRAND below each of these variables that is set: glob("$CUDA_HOME/**/libcudnn.so*", recursive). A
# variable that is there and empty, as `CUDA_HOME=` in a job script or what a module leaves behind, makes it "/**/libcudnn.so*":
# every folder of the machine, network file systems included, once for each library. The import takes minutes, at the start of
# every process, and says nothing. torch takes an empty CUDA_HOME for none.
#
# So who starts processes has to unset these variables, not to empty them. Here the walk is seen and ended before it begins.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check packaging==26.3
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps transformer-engine==2.12.0 transformer-engine-cu13==2.12.0
cat > "$folder/watch_import.py" <<'PY'
import os, sys

def hook(event, arguments):
    if event == "glob.glob":
        print(arguments[0], flush=True)
        if arguments[0].startswith("/**"):
            os._exit(7)

sys.addaudithook(hook)
import transformer_engine
PY
look() { env -u CUDA_PATH -u CUDNN_HOME -u CUDNN_PATH -u CUDA_HOME "$@" "$folder/venv/bin/python" "$folder/watch_import.py" 2>/dev/null || echo "exit code $?"; }
empty=$(look CUDA_HOME=)
unset_=$(look)
echo "empty: $empty"
echo "unset: $unset_"
[[ $empty == *'/**/libcudnn.so*'*'exit code 7' ]]
[[ $unset_ != *$'\n''/**'* && $unset_ != '/**'* ]]
