"""Check of a converted model against its base: logits of both on a few ids, one model in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.config import MODEL_TYPES, ModelConfig
from model.hf_source import HuggingFaceFolder
from pretrain.system.errors import RunFailed

SMALL = 2 * 10**9  # bytes of weights up to which the check runs by default
BAR = 1e-3  # tolerance relative to the largest logit: twice float32's rounding through 80 layers stays far below
ROWS, LENGTH = 2, 96


def stored_bytes(source: HuggingFaceFolder) -> int:
    """Total size of the weight files."""
    return sum(path.stat().st_size for path in set(source.files.values()))


def largest_difference(source: HuggingFaceFolder, checkpoint: Path, config: ModelConfig) -> tuple[float, float]:
    """(largest difference, largest logit) over text ids, in float32. Raises RunFailed above the tolerance.

    The base is transformers' own class; for an export of this project, the class that its code is copied from.
    """
    import torch

    from pretrain.system.torchvision_compat import ensure_torchvision

    ensure_torchvision()
    from pretrain.sample_images import hugging_face_model
    from pretrain.sharded_files import read_whole, stored_tensors

    rows = min(source.values["vocab_size"], config.image_token_offset)
    ids = torch.randint(0, rows, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    ids[ids == config.vision_start_token_id] = 0 if config.vision_start_token_id else 1  # image tokens in our model
    names = stored_tensors(checkpoint)
    dtype = next(iter(names.values()))[1]
    with torch.no_grad():
        with _as_run_failed(source):
            base = _base(source, config, dtype)
        expected = base(ids).logits[..., :rows].float()
        del base
        model = hugging_face_model(config, read_whole(checkpoint, names), torch.float32)
        found = model(ids).logits[..., :rows].float()
    difference, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    if not difference <= BAR * max(1.0, largest):
        raise RunFailed(
            f"{source.folder}: logits of the converted model differ by up to {difference:.3g} from the base's, which go up to "
            f"{largest:.3g}: nothing was written; --no-verify writes it all the same"
        )
    return difference, largest


def _base(source: HuggingFaceFolder, config: ModelConfig, dtype):
    """The folder's model in float32, its weights rounded to `dtype` like the converted ones."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from model.hf.modeling_uni_x import UniXForCausalLM

    if source.values["model_type"] in MODEL_TYPES:
        return UniXForCausalLM.from_pretrained(source.folder, dtype=dtype).float().eval()
    theirs = AutoConfig.from_pretrained(source.folder)
    if "rope_parameters" in source.values and hasattr(theirs, "rope_theta"):
        # transformers 4 does not read what 5 writes, and would compare with a base of 10,000
        theirs.rope_theta, theirs.rope_scaling = config.rope_theta, config.rope_scaling
    return AutoModelForCausalLM.from_pretrained(source.folder, config=theirs, dtype=dtype).float().eval()


@contextmanager
def _as_run_failed(source: HuggingFaceFolder) -> Iterator[None]:
    """Errors of transformers on loading as RunFailed: this project can read the folder, so the user is not at fault."""
    try:
        yield
    except Exception as error:
        why = f"{error.__class__.__name__}: {' '.join(str(error).split())}"[:200]
        raise RunFailed(
            f"{source.folder}: transformers cannot open it ({why}): nothing was written; --no-verify writes it unchecked"
        ) from None
