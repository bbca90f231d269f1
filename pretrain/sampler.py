"""Sample pictures of a run while it goes; what draws them is imported only when there is something to draw."""

from __future__ import annotations

from pathlib import Path

import torch

from model.errors import UserError
from pretrain.config import TrainConfig
from pretrain.data import Data
from pretrain.together import Together


class Sampler:
    """Draws the configured sample prompts on rank 0, which loads the image tokenizer once, and only if there are any."""

    def __init__(self, config: TrainConfig, data: Data, run: Path, together: Together):
        self.config, self.data, self.run, self.together = config, data, run, together
        self.captions = config.log.sample_prompts if config.log.samples_every else ()
        if self.captions and together.rank == 0:
            from tokenization.vq import load_vq

            self.vq = load_vq(config.data.vq)
            if self.vq.fingerprint != data.templates.vq_fingerprint:
                raise UserError(
                    f"data.vq {config.data.vq} is not the image tokenizer that made the shards (fingerprint "
                    f"{self.vq.fingerprint[:12]}, the shards have {data.templates.vq_fingerprint[:12]}): set data.vq to it"
                )

    def draw(self, engine, step: int) -> None:
        """Write samples/step_NNNNNNNN.png. All processes call it together: the weights come from all."""
        if not self.captions:
            return
        from pretrain.samples import draw_samples, hugging_face_model, write_sheet

        weights = [pair for pair in engine.weights() if self.together.rank == 0]  # all must go through all of them

        def draw() -> None:
            model = hugging_face_model(self.data.model_config, weights, torch.float32)
            log, seed = self.config.log, self.config.run.seed
            pictures = draw_samples(model, self.data.encode, self.data.templates, self.vq, self.captions,
                                    log.guidance, log.temperature, seed)  # fmt: skip
            write_sheet(self.run / "samples" / f"step_{step:08d}.png", pictures, self.captions)

        self.together.first_does(draw)
