"""lmms-eval model of a Uni-X folder: `--model unix --model_args pretrained=FOLDER,chat=True`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from lmms_eval.api.model import lmms
from lmms_eval.api.registry import register_model

from tools.evaluation.answering import open_answerer

MAX_NEW_TOKENS = 64  # of tasks that name no number


@register_model("unix")
class UniX(lmms):
    """Image understanding: answers, and log probabilities of answers, to questions about images."""

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str = "",
        dtype: str = "",
        chat: bool = False,
        exact: bool = True,
        **unknown: object,
    ) -> None:
        """`exact` reduces an answer to the option that it names (`tools/evaluation/options.py`)."""
        super().__init__()
        unknown.pop("max_batch_size", None)  # the runner always gives it
        if unknown:
            raise ValueError(f"--model_args {sorted(unknown)} are not known: give pretrained, dtype, chat or exact")
        self.answerer = open_answerer(pretrained, device, dtype, _true(chat), _true(exact))
        self.at_once = int(batch_size)

    def generate_until(self, requests: Sequence) -> list[str]:
        """Greedy answer to each request, in order; neighbours with the same limits are batched."""
        answers: list[str] = []
        for limit, same in itertools.groupby(requests, key=_limit_of):
            asked = list(same)
            for start in range(0, len(asked), self.at_once):
                part = asked[start : start + self.at_once]
                questions = [request.args[0] for request in part]
                pictures = [self._pictures(*request.args[2:6]) for request in part]
                texts = self.answerer.answer(questions, pictures, limit)
                answers += [_until(text, request.args[1]) for text, request in zip(texts, part, strict=True)]
        return answers

    def loglikelihood(self, requests: Sequence) -> list[tuple[float, bool]]:
        """(log probability, whether it is the greedy one) of each request's continuation."""
        found = []
        for request in requests:
            question, target, to_pictures, number, task, split = request.args
            continuation = target if isinstance(target, str) else target(self.task_dict[task][split][number])
            pictures = self._pictures(to_pictures, number, task, split)
            found.append(self.answerer.log_likelihood(question, pictures, continuation))
        return found

    def generate_until_multi_round(self, requests: Sequence) -> list[str]:
        """Not supported: its benchmarks ask once."""
        raise ValueError("unix answers tasks of one round only: choose tasks of output_type generate_until")

    def _pictures(self, to_pictures, number: int, task: str, split: str) -> list:
        found = to_pictures(self.task_dict[task][split][number]) if to_pictures else []
        return [picture.convert("RGB") for picture in found or []]


def _limit_of(request) -> int:
    return int(request.args[1].get("max_new_tokens", MAX_NEW_TOKENS))


def _until(text: str, options: dict) -> str:
    """A text up to its first stop string."""
    ends = options.get("until") or []
    for end in [ends] if isinstance(ends, str) else ends:
        text = text.split(end)[0] if end else text
    return text


def _true(value: object) -> bool:
    return value is True or str(value).lower() == "true"
