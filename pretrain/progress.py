"""Progress of a run as stored in checkpoints; bad steps, and when there are too many of them."""

from __future__ import annotations

import dataclasses
import math
import statistics
from dataclasses import dataclass, field

from pretrain.config import ResilienceSection
from pretrain.engines import StepFigures, finite

NO_STEPS = (0.0, 0.0, 0, 0, 0)
"""Text loss, image loss, text tokens, image tokens, as sums over steps, and how many steps these are."""


@dataclass
class Progress:
    """Counters of a run. Equal on all processes, which see the same figures; stored in checkpoints, so a resumed run
    decides alike."""

    step: int = 0  # steps done, including skipped ones
    rows: int = 0  # the next row to train on
    updates: int = 0  # steps with an update
    losses: list[float] = field(default_factory=list)  # losses of the last good steps, at most a window of them
    bad: list[int] = field(default_factory=list)  # bad steps among the last ones
    went_back: list[dict] = field(
        default_factory=list
    )  # {"from": step, "to": step, "left_out": [first row, last row + 1]}

    skills: list[str] | None = field(default_factory=list)
    """Skills that this run's data, and its initial weights' data, teach; None if the initial weights name none."""

    since_line: list[float] = field(default_factory=lambda: list(NO_STEPS))  # sums since the last line, as NO_STEPS

    @classmethod
    def of(cls, state: dict) -> Progress:
        """Progress from a checkpoint's state; older checkpoints have steps and rows only."""
        known = {field.name: state[field.name] for field in dataclasses.fields(cls) if field.name in state}
        return cls(**{"updates": state["step"], **known})

    def state(self) -> dict:
        """State for a checkpoint; only numbers for a run without bad steps."""
        return dataclasses.asdict(self)

    def add(self, figures: StepFigures) -> None:
        """Add a step's losses to the means of the next line, unless they are not finite."""
        if finite(figures):
            step = (figures.loss_text, figures.loss_image, figures.tokens_text, figures.tokens_image, 1)
            self.since_line = [sum(pair) for pair in zip(self.since_line, step)]

    def means(self) -> dict[str, float]:
        """Since the last line: mean losses of all target tokens, and mean target tokens per step, by name."""
        loss_text, loss_image, text, image, steps = self.since_line
        figures = StepFigures(loss_text, loss_image, int(text), int(image))
        tokens = {"tokens_text": figures.tokens_text, "tokens_image": figures.tokens_image}
        return figures.means() | {name: count / max(1, steps) for name, count in tokens.items()}

    def sound(self, figures: StepFigures, options: ResilienceSection) -> bool:
        """Whether a step's losses are good enough for an update (finite, no spike)."""
        if not finite(figures):
            return False
        if not options.spike or len(self.losses) < options.window:
            return True
        limit = statistics.mean(self.losses) + options.spike * statistics.pstdev(self.losses)
        return figures.means().get("loss", 0.0) <= limit

    def note(self, figures: StepFigures, rows: int, options: ResilienceSection) -> None:
        """Count a finished step, which took `rows` rows."""
        self.step, self.rows = self.step + 1, self.rows + rows
        self.bad = [step for step in self.bad if step > self.step - options.window]
        if not figures.updated:
            self.bad.append(self.step)
            return
        self.updates += 1
        if options.spike and "loss" in figures.means():
            self.losses = [*self.losses, figures.means()["loss"]][-options.window :]

    def too_many(self, options: ResilienceSection) -> bool:
        """Whether too many of the last steps were bad to go on from here (rollback)."""
        return bool(options.bad_steps) and len(self.bad) >= options.bad_steps

    def gone_back(self, earlier: Progress) -> Progress:
        """Progress after a rollback to the weights of `earlier`: its step, but the rows continue from here."""
        left_out = {"from": self.step, "to": earlier.step, "left_out": [earlier.rows, self.rows]}
        return dataclasses.replace(
            earlier, rows=self.rows, skills=self.skills, bad=[], went_back=[*self.went_back, left_out]
        )


def what_was_wrong(figures: StepFigures) -> str:
    """Why a step made no update, in words."""
    if not finite(figures):
        return "its loss is not finite"
    if not math.isfinite(figures.grad_norm):
        return "its gradient is not finite"
    return f"its loss {figures.means()['loss']:.3f} is far above those before"
