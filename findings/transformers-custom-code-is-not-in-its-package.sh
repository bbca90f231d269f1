#!/usr/bin/env bash
# transformers 5.24.0 (and 4.57.6, 5.19.0), dill 0.4.1, datasets 5.0.1, Python 3.11.
#
# A class that transformers opens with trust_remote_code stands in sys.modules, and not in its package: pickle finds it, and
# dill does not. datasets sends what a map is given by dill, so with num_proc the worker dies with "One of the subprocesses has
# abruptly died during map operation", or, without a pool, loading ends in an AttributeError.
#
# Output seen:
#   pickle: as it was
#   dill: module 'transformers_modules.folder' has no attribute 'configuration_own'   (5.x has a hash in the name)
#   with the module as an attribute of its package, dill: as it was
#
# Trainers that give a custom processor to a map of several processes fail by it; the code of a model can put itself there.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check transformers==5.24.0 dill==0.4.1

mkdir folder
cat > folder/configuration_own.py <<'EOF'
from transformers import PretrainedConfig


class OwnConfig(PretrainedConfig):
    model_type = "own"

    def width(self):
        return 3
EOF
echo '{"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}' > folder/config.json

cat > run.py <<'EOF'
import pickle
import sys

import dill
from transformers import AutoConfig

config = AutoConfig.from_pretrained("folder", trust_remote_code=True)
assert pickle.loads(pickle.dumps(config)).width() == 3
print("pickle: as it was")
try:
    dill.loads(dill.dumps(config))
except AttributeError as error:
    print("dill:", error)
else:
    sys.exit("dill reads it now")
module = sys.modules[type(config).__module__]
package, _, name = module.__name__.rpartition(".")
setattr(sys.modules[package], name, module)
assert dill.loads(dill.dumps(config)).width() == 3
print("with the module as an attribute of its package, dill: as it was")
EOF
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 venv/bin/python run.py
