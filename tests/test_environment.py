"""The environment that `make setup` makes is sound for a user's own script, which knows nothing of this project."""

from __future__ import annotations

import subprocess
import sys


def test_models_of_transformers_import_in_a_plain_process(tmp_path):
    """With a torchvision that is linked to another build of torch they do not ("operator torchvision::nms ...")."""
    code = "from transformers import AutoModelForCausalLM, Qwen2ForCausalLM; import peft; print('sound')"
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and done.stdout.strip() == "sound", (
        f"{done.stderr[-600:]}\nif this names torchvision: `pip uninstall torchvision`, as make setup does"
    )
