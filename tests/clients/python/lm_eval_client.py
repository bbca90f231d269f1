"""lm-eval: texts over chats, and log-likelihoods and texts over completions, on a task of its own with local data."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from steps import KEY, MODEL, URL, run

folder = Path(tempfile.mkdtemp())
rows = [
    {"question": f"{number} plus one is", "choices": [f" {number + 1}", f" {number}"], "answer": 0}
    for number in range(3)
]
(folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
SHARED = f"""dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/data.jsonl}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
(folder / "choose.yaml").write_text(
    f"task: choose\noutput_type: multiple_choice\n{SHARED}doc_to_choice: choices\ndoc_to_target: answer\n"
    "metric_list: [{metric: acc}]\n"
)
(folder / "write.yaml").write_text(
    f"task: write\noutput_type: generate_until\n{SHARED}doc_to_target: '{{{{choices[0]}}}}'\n"
    "generation_kwargs: {until: ['\\n'], max_gen_toks: 8}\nmetric_list: [{metric: exact_match}]\n"
)


def evaluate(model, task, path, *more):
    arguments = (
        f"model={MODEL},base_url={URL}/{path},num_concurrent=2,max_retries=1,tokenizer={os.environ['TOKENIZER']}"
    )
    command = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--tasks", task, "--include_path", str(folder)]
    command += ["--model_args", arguments, "--output_path", str(folder / task), "--log_samples", *more]
    environment = {
        **os.environ,
        "OPENAI_API_KEY": KEY,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "cache"),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    (samples,) = (folder / task).rglob("samples_*.jsonl")
    found = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(found) == 3, found
    return found


def text():
    found = evaluate("local-chat-completions", "write", "chat/completions", "--apply_chat_template")
    assert all(isinstance(one["resps"][0][0], str) for one in found)


def completions():
    for one in evaluate("local-completions", "choose", "completions"):
        for ((value, _greedy),) in one["resps"]:
            assert float(value) < 0, one


run({"text": text, "completions": completions})
