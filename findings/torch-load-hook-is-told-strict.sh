#!/usr/bin/env bash
# torch 2.13.0, Python 3.11.
#
# A hook of Module.register_load_state_dict_pre_hook is called with an argument `strict`. It is True in every load, also in
# load_state_dict(..., strict=False), for the module itself and for those within it: what the caller asked for does not reach it.
#
# Output seen:
#   load_state_dict(strict=True): the hooks were told [True, True]
#   load_state_dict(strict=False): the hooks were told [True, True]
#
# A hook that raises for unknown names "only where strict" raises in loads that allow them, and one that looks "only where not strict"
# (at adapters, which peft loads so) never looks. Tell the two apart by what the state dict holds.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 "numpy==2.1.3"

venv/bin/python - <<'EOF'
import torch

told = []


def hook(module, state_dict, prefix, metadata, strict, missing, unexpected, errors):
    told.append(strict)


model = torch.nn.Sequential(torch.nn.Linear(2, 2))
model.register_load_state_dict_pre_hook(hook)
model[0].register_load_state_dict_pre_hook(hook)
for strict in (True, False):
    told.clear()
    model.load_state_dict(model.state_dict(), strict=strict)
    print(f"load_state_dict(strict={strict}): the hooks were told {told}")
    assert told == [True, True], "this changed: the comment above is out of date"
EOF
