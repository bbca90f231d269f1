"""GRPO of trl on drawn pictures: a picture is rewarded for being, in pixels, nearer to the real one of its name than to others.

    python docs/examples/trl_grpo_pictures.py --model work/demo/model --corpus work/data/corpus/train/folder \\
        --output work/grpo

Needs torch, transformers, pillow, trl and the export, and nothing else of this project. Pictures are drawn by
`generate_images`, through trl's `rollout_func`: trl's own sampler does not know how many codes a picture has. What is
learned are the codes, at temperature 1 and without guidance, as they were drawn.

Prints, as JSON, the share of pictures whose nearest real one has their name, before and after, drawn with seeds that were
not trained with: of the names that are trained and of as many others. pictures.png shows real, before and after.
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
parser.add_argument("--names", type=int, default=16, help="names to train, each with one real picture")
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--learning-rate", type=float, default=2e-4)
parser.add_argument(
    "--sharpness", type=float, default=1.5, help="distance in pixels by which a rival's share falls to 1/e"
)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

try:
    import numpy as np
    import torch
    from datasets import Dataset
    from PIL import Image
    from transformers import AutoModelForCausalLM, AutoProcessor
    from trl import GRPOConfig, GRPOTrainer
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
if not 2 <= 2 * args.names <= len(lines):
    parser.error(f"--names {args.names}: {captions} has {len(lines)} pictures, and twice as many are needed as names")

processor = AutoProcessor.from_pretrained(args.model, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=True, dtype=torch.float32)

order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(1234)).tolist()
picked = [lines[place] for place in order[: 2 * args.names]]  # the same for every seed; the second half is not trained
names = [line["captions"][0] for line in picked]
real = processor.pictures(processor.codes([Image.open(args.corpus / line["image"]) for line in picked]))


def pixels(pictures):
    """Pictures -> [b, pixels], 0 to 1."""
    return torch.from_numpy(np.stack([np.asarray(one, dtype=np.float32).ravel() for one in pictures]) / 255)


galleries = {True: pixels(real[: args.names]), False: pixels(real[args.names :])}
place_of = {name: place % args.names for place, name in enumerate(names)}


def places(said):
    """Which real picture is that of each name."""
    return torch.tensor([place_of[name] for name in said])


def distances(codes, trained=True):
    """Distances [b, names] of pictures [b, codes] from the real ones."""
    return torch.cdist(pixels(processor.pictures(codes)), galleries[trained])


def share(trained, guidance_scale=1.0, temperature=1.0, draws=8):
    """Share of hits, and the first picture of each name."""
    said = names[: args.names] if trained else names[args.names :]
    model.eval()
    codes = model.generate_images(
        **processor.draw(said * draws),
        guidance_scale=guidance_scale,
        temperature=temperature,
        generator=torch.Generator().manual_seed(10_000 + args.seed),
    )
    right = distances(codes, trained).argmin(1) == places(said * draws)
    return right.float().mean().item(), processor.pictures(codes[: args.names])


def measured():
    found = {
        "trained names": share(True)[0],
        "other names": share(False)[0],
        "trained names, guidance 3, temperature 0.5": share(True, 3.0, 0.5)[0],
    }
    return {name: round(value, 3) for name, value in found.items()}


generator = torch.Generator().manual_seed(args.seed)


def draw(prompts, trainer):
    """trl's rollout: names, each as often as it is to be drawn -> ids of prompts and of pictures."""
    trainer.model.eval()
    batch = processor.draw(prompts)
    codes = model.generate_images(**batch, guidance_scale=1.0, temperature=1.0, generator=generator)
    trainer.model.train()
    rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return {
        "prompt_ids": [ids[mask.bool()].tolist() for ids, mask in rows],
        "completion_ids": (codes + processor.offset).tolist(),
        "logprobs": None,
    }


def nearness(prompts, completion_ids, log_metric, **_):
    """The reward: log of the share that the right picture has in the softmax of -distance / sharpness over all of them.

    It says more than whether that picture is the nearest, 1 or 0, which every picture of a group may be, or none.
    """
    found, own = distances(torch.tensor(completion_ids) - processor.offset), places(prompts)
    log_metric("nearest_has_the_name", (found.argmin(1) == own).float().mean().item())
    return (-found / args.sharpness).log_softmax(1)[torch.arange(len(own)), own].tolist()


before, first = measured(), share(True)[1]
started = time.time()
trainer = GRPOTrainer(
    model,
    reward_funcs=nearness,
    rollout_func=draw,
    args=GRPOConfig(
        str(args.output / "run"),
        max_steps=args.steps,
        per_device_train_batch_size=64,  # 4 names, 16 pictures of each
        num_generations=16,
        max_completion_length=processor.num_codes,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        seed=args.seed,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
    ),
    train_dataset=Dataset.from_list([{"prompt": name} for name in names[: args.names]]),
    processing_class=processor,
)
trainer.train()
seconds = time.time() - started
after, last = measured(), share(True)[1]
trainer.save_model(str(args.output / "model"))

columns = [real[: args.names], first, last]
side = real[0].width
sheet = Image.new("RGB", (8 * 3 * (side + 4), -(-args.names // 8) * (side + 4)), "white")
for row, pictures in enumerate(zip(*columns, strict=True)):
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (((row % 8) * 3 + place) * (side + 4), (row // 8) * (side + 4)))
sheet.save(args.output / "pictures.png")
figures = {"before": before, "after": after, "steps": args.steps, "seconds": round(seconds)}
print(json.dumps({"seed": args.seed, **figures}))
