"""An export made before the code files were named `*_uni_x.py` opens with its own code, and with every tool of today.

`tests/data/export_unix_ar/folder` was written by commit f2eeab9, random weights; `expected.json` is what its code gave.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from tools.export.folder import open_export
from tools.export.from_checkpoint import check_output
from tools.generation.batches import unconditional

FORMER = Path(__file__).parents[1] / "data" / "export_unix_ar"
FOLDER, EXPECTED = FORMER / "folder", json.loads((FORMER / "expected.json").read_text())
OWN_CODE = """
import json, sys

sys.modules["torchvision"] = None
import torch
from transformers import AutoModelForCausalLM, AutoProcessor

processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.float32).eval()
prompt = processor.draw(["red heart"])
codes = model.generate_images(**prompt, guidance_scale=3.0, generator=torch.Generator().manual_seed(5))
picture = processor.pictures(codes)[0]
caption = processor.caption([picture])
said = model.generate(**caption, max_new_tokens=8, do_sample=False, logits_processor=model.text_only())
print(json.dumps({
    "prompt": prompt["input_ids"][0].tolist(),
    "codes": codes[0].tolist(),
    "read": processor.codes([picture])[0].tolist(),
    "said": said[0, caption["input_ids"].shape[1] :].tolist(),
}))
"""


def test_it_opens_with_its_own_code(tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", "-c", OWN_CODE, str(FOLDER)],
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == EXPECTED


def test_todays_classes_give_what_its_own_code_gives(caplog):
    export = open_export(FOLDER)
    assert export.model.config.model_type == "uni_x"
    assert not [record for record in caplog.records if "model of type" in record.getMessage()]
    codes = export.model.generate_images(
        torch.tensor([EXPECTED["prompt"]]),
        unconditional_ids=unconditional(export),
        num_codes=16,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5),
    )
    assert codes[0].tolist() == EXPECTED["codes"]
    prompt = export.templates.text_to_image[0].replace("{caption}", "red heart")
    assert [*export.encode(prompt), export.vocabulary.vision_start_id] == EXPECTED["prompt"]


def test_every_tool_takes_it(commands, tmp_path):
    draw = ("tools/generate.py", "--model", FOLDER, "--prompt", "red heart", "--guidance", 3.0)
    done = commands.run(*draw, "--output", tmp_path / "drawn")
    assert done.code == 0 and list((tmp_path / "drawn").glob("*.png")), done.err
    done = commands.run("tools/convert_from_hf.py", "--hf", FOLDER, "--output", tmp_path / "checkpoint")
    assert done.code == 0, done.err
    check_output(FOLDER)  # convert_to_hf.py may replace it
