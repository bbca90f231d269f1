"""Writer of sample images during a run; its libraries are imported only when there is something to generate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from pretrain.config import TrainConfig
from pretrain.coordination import Coordinator
from pretrain.data import Data
from pretrain.records import Records
from pretrain.system.errors import UserError


class SampleWriter:
    """Generates the configured sample prompts on rank 0, which loads the image tokenizer once, and only if needed."""

    def __init__(self, config: TrainConfig, data: Data, run: Path, coordinator: Coordinator):
        self.config, self.data, self.run, self.coordinator = config, data, run, coordinator
        self.captions = config.log.sample_prompts if config.log.samples_every else ()
        if self.captions and coordinator.rank == 0:
            from tokenization.vq import load_vq

            self.vq = load_vq(config.data.vq, device=str(place_of_drawing()[0]))
            if self.vq.fingerprint != data.templates.vq_fingerprint:
                raise UserError(
                    f"data.vq {config.data.vq} is not the image tokenizer that made the shards (fingerprint "
                    f"{self.vq.fingerprint[:12]}, the shards have {data.templates.vq_fingerprint[:12]}): set data.vq to it"
                )

    def draw(self, engine, step: int, records: Records, alive: Callable[[], None]) -> None:
        """Write samples/step_NNNNNNNN.png. A collective: weights come from all ranks, and the others wait for rank 0;
        `alive` is called meanwhile. Out of GPU memory is a warning."""
        if not self.captions:
            return
        from pretrain.sample_images import draw_samples, hugging_face_model, sheet

        weights = [
            pair for pair in engine.weights() if self.coordinator.rank == 0
        ]  # a collective: consume it on all ranks

        def draw(going_on: Callable[[], None]) -> None:
            device, dtype = place_of_drawing()
            try:
                model = hugging_face_model(self.data.model_config, weights, dtype, self.data.picture_shapes()).to(
                    device
                )
                log, seed = self.config.log, self.config.run.seed
                pictures = draw_samples(
                    model,
                    self.data.encode,
                    self.data.templates,
                    self.vq,
                    self.captions,
                    log.guidance,
                    log.temperature,
                    seed,
                    lambda _: going_on(),
                )
            except torch.OutOfMemoryError:
                size = sum(tensor.numel() for _, tensor in weights) * dtype.itemsize / 2**30
                self.coordinator.warn(
                    f"the sample pictures of step {step} are not drawn: the GPU has no room for a second "
                    f"copy of the weights ({size:.1f} GiB): set log.samples_every=0, and draw from checkpoints "
                    "with tools/convert_to_hf.py and tools/generate.py"
                )
                return
            records.put(self.run / "samples" / f"step_{step:08d}.png", sheet(pictures, self.captions))

        self.coordinator.wait_for_first(draw, alive)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # return the memory of generation to training in one piece


def place_of_drawing() -> tuple[torch.device, torch.dtype]:
    """Device and dtype of generation: a GPU in bf16, where the CPU would take an hour for 3B; else the CPU in fp32."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device()), torch.bfloat16
    return torch.device("cpu"), torch.float32
