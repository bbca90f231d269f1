#!/usr/bin/env bash
# transformers 5.24.0 (4.57.6 beside it): a configuration class of one's own that keeps `self.rope_scaling = None`, as the classes
# that travel with models on the Hub do (`trust_remote_code`), reads back a dict: `rope_scaling` is a property of the base class
# there, another name of `rope_parameters`, which the base class fills. So `if config.rope_scaling is not None:
# kind = config.rope_scaling["type"]`, the usual lines in such models, is a KeyError, and a model without scaling takes the branch
# for scaled positions. The saved config.json has `rope_parameters`, and no `rope_scaling`.
# A class attribute `rope_scaling = None` in one's own class takes the property away, and both versions agree again.
#
# Output seen, 2026-11-29:
#   4.57.6  reads None; saved keys: rope_scaling, rope_theta; with a class attribute: None
#   5.24.0  reads {'rope_theta': 500000.0, 'rope_type': 'default'}; saved keys: rope_parameters, rope_theta; with a class attribute: None
#   5.24.0  the usual lines: KeyError('type')
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/seen.py" <<'PYTHON'
import json
import sys
import tempfile

import transformers
from transformers import PretrainedConfig


class Own(PretrainedConfig):
    model_type = "own"

    def __init__(self, rope_theta=500_000.0, rope_scaling=None, **kwargs):
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        super().__init__(**kwargs)


class Kept(Own):
    rope_scaling = None


config = Own()
with tempfile.TemporaryDirectory() as folder:
    config.save_pretrained(folder)
    saved = sorted(key for key in json.load(open(f"{folder}/config.json")) if key.startswith("rope"))
print(f"{transformers.__version__}  reads {config.rope_scaling}; saved keys: {', '.join(saved)}; "
      f"with a class attribute: {Kept().rope_scaling}")
assert Kept().rope_scaling is None
if transformers.__version__.startswith("4"):
    assert config.rope_scaling is None and saved == ["rope_scaling", "rope_theta"]
    sys.exit()
assert config.rope_scaling == {"rope_theta": 500000.0, "rope_type": "default"} and saved == ["rope_parameters", "rope_theta"]
try:
    if config.rope_scaling is not None:
        config.rope_scaling["type"]
    raise AssertionError("rope_scaling is None again")
except KeyError as error:
    print(f"{transformers.__version__}  the usual lines: {error!r}")
PYTHON
for version in 4.57.6 5.24.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version"
    "$folder/$version/bin/python" -W ignore "$folder/seen.py" 2> /dev/null
done
