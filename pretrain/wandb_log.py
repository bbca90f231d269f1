"""Metrics of a run in Weights & Biases, with `log.wandb`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pretrain.system.errors import UserError


class WandbLog:
    """One W&B run per run folder, over all its attempts.

    W&B has no way back: after a resume the steps since the checkpoint are there twice, with equal values. Curves are
    drawn over `step`, so they look as if the run had never stopped.
    """

    def __init__(self, folder: Path, project: str):
        """Raises UserError when the package is missing, or W&B refuses the run."""
        try:
            import wandb
        except ImportError:
            raise UserError(
                "log.wandb is set, but the package wandb is missing: install it, or leave log.wandb empty"
            ) from None
        import yaml

        config = folder / "config.yaml"
        try:
            settings = wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True)
            settings.update_from_env_vars(dict(os.environ))
            self._run = wandb.init(
                project=project,
                name=folder.name,
                id=run_id(folder),
                resume=None if settings.mode == "offline" else "allow",  # it would warn
                dir=str(folder),
                config=yaml.safe_load(config.read_text(encoding="utf-8")) if config.exists() else {},
                settings=settings,
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"log.wandb {project}: {' '.join(str(error).split())}: run `wandb login`, set WANDB_MODE=offline, or leave "
                "log.wandb empty"
            ) from None
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: dict[str, float]) -> None:
        """Send values; W&B's own process does it."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Wait until everything is sent, or written where WANDB_MODE is offline."""
        import wandb

        self._run.finish()
        wandb.teardown()  # finish alone does not wait for its process


def run_id(folder: Path) -> str:
    """W&B run id: the same for every attempt of a run folder, unique to the folder."""
    return hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]
