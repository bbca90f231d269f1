#!/usr/bin/env bash
# megatron-core 0.16.1 beside transformer-engine 2.12.0: a transformer-engine that is installed and does not load ends
# `import megatron.core`, though megatron-core works without it.
#
# transformer-engine's wheels for CUDA 13 install on any machine. Where cuDNN is not there (a CPU build of torch, a login node, an
# image for another CUDA), importing it raises RuntimeError "cudnn shared object not found."; where another of its libraries
# is missing or has not the symbols, OSError. megatron-core asks for it in `try: import transformer_engine ... except
# ImportError`, and neither is one: the traceback ends whoever imports any part of megatron-core.
#
# So who wants to go on has to try the import first, and on failure put None in sys.modules["transformer_engine"], which makes
# every later import of it an ImportError: then megatron.core imports, with its own optimizer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.1.3 megatron-core==0.16.1 \
  packaging==26.3 einops==0.8.2
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps transformer-engine==2.12.0 transformer-engine-cu13==2.12.0
"$folder/venv/bin/pip" uninstall --quiet --yes nvidia-cudnn-cu13 || true  # which a build of torch for CUDA brings
cat > "$folder/try.py" <<'PY'
import subprocess, sys

PROGRAMS = {
    "transformer_engine": "import transformer_engine",
    "megatron.core": "import megatron.core.optimizer",
    "megatron.core with None in sys.modules": "import sys; sys.modules['transformer_engine'] = None\n"
    "from megatron.core.optimizer import Adam; print(Adam.__module__)",
}
seen = {}
for name, program in PROGRAMS.items():
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    last = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()[-1]
    seen[name] = (done.returncode, last)
    print(f"{name}: exit code {done.returncode}, {last}")
for name in ("transformer_engine", "megatron.core"):
    code, last = seen[name]
    assert code == 1 and not last.startswith(("ImportError", "ModuleNotFoundError")), seen
    assert last.startswith(("RuntimeError", "OSError")), seen
code, last = seen["megatron.core with None in sys.modules"]
assert code == 0 and last.startswith("torch.optim"), seen
PY
env -u CUDNN_HOME -u CUDNN_PATH -u CUDA_HOME -u CUDA_PATH -u LD_LIBRARY_PATH "$folder/venv/bin/python" "$folder/try.py"
