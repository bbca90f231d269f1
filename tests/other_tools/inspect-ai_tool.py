"""inspect-ai: a task of two questions, answered by the export through its own provider for transformers."""

import torch
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import includes
from steps import MODEL, WORK, say, seen
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = ("Once", "What is it?")
task = Task(dataset=[Sample(input=question, target="a") for question in QUESTIONS], scorer=includes())
options = dict(model_path=str(MODEL), tokenizer_path=str(MODEL), trust_remote_code=True, device="cpu", do_sample=False)
model = get_model("hf/local", config=GenerateConfig(max_tokens=12, max_connections=2), **options)
(log,) = eval(task, model=model, display="none", log_dir=str(WORK / "logs"))
assert log.status == "success", log.error
answers = [sample.output.completion for sample in log.samples]
tokenizer = AutoTokenizer.from_pretrained(MODEL, trust_remote_code=True)
export = AutoModelForCausalLM.from_pretrained(MODEL, trust_remote_code=True, dtype=torch.float32).eval()
for question, answer in zip(QUESTIONS, answers, strict=True):  # the demo's model says next to nothing to text alone
    turns = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = export.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    seen(f"{question!r}: {answer!r}, by generate {said.tolist()}")
    assert answer == tokenizer.decode(said, skip_special_tokens=True)
say("text", f"{len(answers)} conversations, scored; the answers of generate")
