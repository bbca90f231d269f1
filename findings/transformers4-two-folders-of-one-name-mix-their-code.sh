#!/usr/bin/env bash
# transformers 4.57.6, torch 2.13.0, Python 3.11.
#
# Two local folders with code of their own and the same last name, opened in one process with trust_remote_code=True. The file
# that config.json names is run anew for the second folder. The files that it imports are copied anew too, and yet are not: they
# are in sys.modules under the same names, so the second folder's model is built of the first folder's parts, without a word.
#
# Output seen:
#   a/model: model code a, parts a
#   b/model: model code b, parts a
#
# Two releases of one export, say of a checkpoint of last week and one of today, both in folders called "model", give a third
# program that nobody wrote. Name the folders differently, or open them in two processes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==4.57.6 "numpy==2.1.3"

for place in a b; do
    mkdir -p "$place/model"
    cat > "$place/model/config.json" <<'EOF'
{"model_type": "toy", "auto_map": {"AutoConfig": "configuration_toy.ToyConfig", "AutoModel": "modeling_toy.ToyModel"}}
EOF
    cat > "$place/model/configuration_toy.py" <<EOF
from transformers import PretrainedConfig

class ToyConfig(PretrainedConfig):
    model_type = "toy"
# of $place
EOF
    cat > "$place/model/parts_toy.py" <<EOF
PARTS = "$place"
EOF
    cat > "$place/model/modeling_toy.py" <<EOF
import torch
from transformers import PreTrainedModel

from .configuration_toy import ToyConfig
from .parts_toy import PARTS

class ToyModel(PreTrainedModel):
    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(2, 2)
        self.said = "model code $place, parts " + PARTS
        self.post_init()
EOF
done

cat > run.py <<'EOF'
import warnings

warnings.filterwarnings("ignore")
from transformers import AutoConfig, AutoModel

for place in ("a", "b"):
    config = AutoConfig.from_pretrained(f"{place}/model", trust_remote_code=True)
    print(f"{place}/model:", AutoModel.from_config(config, trust_remote_code=True).said)
EOF
HF_HUB_OFFLINE=1 HF_HOME=home HF_MODULES_CACHE=modules venv/bin/python run.py | tee seen
diff seen - <<'EOF'
a/model: model code a, parts a
b/model: model code b, parts a
EOF
echo "as written above"
