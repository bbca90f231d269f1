"""SFT of trl on pictures: a model learns to draw pictures that it has never seen, for their names.

    python docs/examples/trl_sft_pictures.py --model work/demo/model --corpus work/data/corpus/heldout/folder \\
        --output work/sft

Needs torch, transformers, pillow, trl and the export, and nothing else of this project. trl's own columns of pictures stand
before a user's words; a picture in an answer goes in as ids: `input_ids` and `labels`, which trl takes as they are.

Prints, as JSON, the share of drawn pictures whose nearest real one has their name, before and after. pictures.png shows
real, before and after.
"""

import argparse
import json
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True, help="export of tools/convert_to_hf.py")
parser.add_argument(
    "--corpus", type=Path, required=True, help="folder of captions.jsonl and the pictures that it names"
)
parser.add_argument("--output", type=Path, required=True, help="folder for the tuned export and pictures.png")
parser.add_argument("--names", type=int, default=16, help="pictures to learn")
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--learning-rate", type=float, default=1e-3)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

try:
    import numpy as np
    import torch
    from datasets import Dataset
    from PIL import Image
    from transformers import AutoModelForCausalLM, AutoProcessor
    from trl import SFTConfig, SFTTrainer
except ModuleNotFoundError as error:
    print(f"error: this needs trl (no module {error.name}): pip install torch transformers pillow trl", file=sys.stderr)
    sys.exit(2)
torch.set_num_threads(1)

captions = args.corpus / "captions.jsonl"
if not (Path(args.model) / "config.json").is_file():
    parser.error(f"--model {args.model}: is no export: a folder of tools/convert_to_hf.py is needed")
if not captions.is_file():
    parser.error(
        f"--corpus {args.corpus}: has no captions.jsonl: a folder like work/data/corpus/train/folder is needed"
    )
lines = [json.loads(line) for line in captions.read_text(encoding="utf-8").splitlines()]
if not 1 <= args.names <= len(lines):
    parser.error(f"--names {args.names}: {captions} has {len(lines)} pictures, and one is needed of each name")

processor = AutoProcessor.from_pretrained(args.model, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=True, dtype=torch.float32)

order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(1234)).tolist()
picked = [lines[place] for place in order[: args.names]]  # the same for every seed
names = [line["captions"][0] for line in picked]
codes = processor.codes([Image.open(args.corpus / line["image"]) for line in picked])
real = processor.pictures(codes)


def row(name, of_picture):
    """A prompt for a picture, the picture, and the end of it and of the text; the prompt is not learned."""
    prompt = processor.draw([name])["input_ids"][0].tolist()  # ends with <|vision_start|>
    answer = [*(of_picture + processor.offset).tolist(), processor.end, processor.eos]
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def pixels(pictures):
    """Pictures -> [b, pixels], 0 to 1."""
    return torch.from_numpy(np.stack([np.asarray(one, dtype=np.float32).ravel() for one in pictures]) / 255)


def share(draws=4):
    """Share of pictures whose nearest real one has their name, and the first picture of each name."""
    model.eval()
    drawn = processor.pictures(
        model.generate_images(
            **processor.draw(names * draws),
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(10_000 + args.seed),
        )
    )
    nearest = torch.cdist(pixels(drawn), pixels(real)).argmin(1)
    return (nearest == torch.arange(args.names).repeat(draws)).float().mean().item(), drawn[: args.names]


before, first = share()
started = time.time()
trainer = SFTTrainer(
    model,
    args=SFTConfig(
        str(args.output / "run"),
        max_steps=args.steps,
        per_device_train_batch_size=args.names,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        seed=args.seed,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        logging_steps=10,
        save_strategy="no",
        report_to=[],
    ),
    train_dataset=Dataset.from_list([row(*pair) for pair in zip(names, codes, strict=True)]),
    processing_class=processor,
)
trainer.train()
seconds = time.time() - started
after, last = share()
trainer.save_model(str(args.output / "model"))

side = real[0].width
sheet = Image.new("RGB", (8 * 3 * (side + 4), -(-args.names // 8) * (side + 4)), "white")
for place, three in enumerate(zip(real, first, last, strict=True)):
    for column, picture in enumerate(three):
        sheet.paste(picture, (((place % 8) * 3 + column) * (side + 4), (place // 8) * (side + 4)))
sheet.save(args.output / "pictures.png")
losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
figures = {"before": round(before, 3), "after": round(after, 3), "losses": losses, "seconds": round(seconds)}
print(json.dumps({"seed": args.seed, **figures}))
