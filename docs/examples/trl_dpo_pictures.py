"""DPO of trl with a picture in the answer: a name's real picture is preferred to those that the model draws for it.

    python docs/examples/trl_dpo_pictures.py --model work/demo/model --corpus work/data/corpus/train/folder \\
        --output work/dpo

Needs torch, transformers, pillow, trl and the export, and nothing else of this project. trl has no columns for ids in DPO:
it spells `chosen` and `rejected` as text, but for a data set with a column `images`, whose rows it hands to the
`data_collator` as they are. So the three columns hold ids, `images` is empty, and trl's own collator of ids makes the batch.

Of the pictures drawn for a name, at temperature 1 and without guidance, the quarter that is farthest from the real one, in
pixels, is rejected. The loss of SFT is added: without it both pictures of a pair grow unlikely, and drawn ones fall apart.

Prints, as JSON, the share of pictures whose nearest real one has their name, before and after, drawn with seeds that were
not trained with: of the names that are trained and of as many others. Also the share of new pairs of which the model finds
the preferred picture likelier, against the model before. pictures.png shows real, before and after.
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
parser.add_argument("--draws", type=int, default=64, help="pictures drawn of each name; a quarter of them is rejected")
parser.add_argument("--steps", type=int, default=64)
parser.add_argument("--learning-rate", type=float, default=2e-4)
parser.add_argument("--beta", type=float, default=0.1)
parser.add_argument("--sft-weight", type=float, default=1.0)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

try:
    import numpy as np
    import torch
    from datasets import Dataset
    from PIL import Image
    from transformers import AutoModelForCausalLM, AutoProcessor
    from trl import DPOConfig, DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference
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
real_codes = processor.codes([Image.open(args.corpus / line["image"]) for line in picked])
real = processor.pictures(real_codes)


def pixels(pictures):
    """Pictures -> [b, pixels], 0 to 1."""
    return torch.from_numpy(np.stack([np.asarray(one, dtype=np.float32).ravel() for one in pictures]) / 255)


galleries = {True: pixels(real[: args.names]), False: pixels(real[args.names :])}


def drawn(trained, draws, seed, guidance_scale=1.0, temperature=1.0):
    """Codes [draws * names, codes] of the model, and the distances of their pictures from all real ones, [draws * names, names]."""
    said = names[: args.names] if trained else names[args.names :]
    model.eval()
    codes = model.generate_images(
        **processor.draw(said * draws),
        guidance_scale=guidance_scale,
        temperature=temperature,
        generator=torch.Generator().manual_seed(seed),
    )
    return codes, torch.cdist(pixels(processor.pictures(codes)), galleries[trained])


def share(*settings):
    """Share of pictures whose nearest real one has their name."""
    distances = drawn(*settings)[1]
    return (distances.argmin(1) == torch.arange(len(distances)) % args.names).float().mean().item()


def answer(codes):
    """Ids of a picture in an answer: its codes, the end of it and of the text."""
    return [*(codes + processor.offset).tolist(), processor.end, processor.eos]


def pairs(draws, seed):
    """Rows of ids: each name's real picture, against the quarter of its drawn ones that is farthest from it."""
    codes, distances = drawn(True, draws, seed)
    rows = []
    for place, name in enumerate(names[: args.names]):
        prompt = processor.draw([name])["input_ids"][0].tolist()  # ends with <|vision_start|>
        own, far = codes[place :: args.names], distances[place :: args.names, place].argsort(descending=True)
        for rejected in own[far[: max(1, draws // 4)]]:
            both = {"chosen": answer(real_codes[place]), "rejected": answer(rejected)}
            rows.append({"prompt": prompt, **both, "images": []})
    return Dataset.from_list(rows)


def measured():
    seed = 10_000 + args.seed
    found = {
        "trained names": share(True, 8, seed),
        "other names": share(False, 8, seed),
        "trained names, guidance 3, temperature 0.5": share(True, 8, seed, 3.0, 0.5),
    }
    return {name: round(value, 3) for name, value in found.items()}


before, first = measured(), processor.pictures(drawn(True, 1, 10_000 + args.seed)[0])
new_pairs = pairs(8, 20_000 + args.seed)
started = time.time()
ids = DataCollatorForPreference(pad_token_id=processor.eos)


def collate(rows):
    """A data set's rows -> trl's batch of ids."""
    return ids([{f"{name}_ids": row[name] for name in ("prompt", "chosen", "rejected")} for row in rows])


trainer = DPOTrainer(
    model,
    args=DPOConfig(
        str(args.output / "run"),
        max_steps=args.steps,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        beta=args.beta,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, args.sft_weight],
        max_length=None,
        seed=args.seed,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        trust_remote_code=True,
        logging_steps=10,
        save_strategy="no",
        report_to=[],
    ),
    train_dataset=pairs(args.draws, args.seed),
    eval_dataset=new_pairs,
    data_collator=collate,
    processing_class=processor,
)
trainer.train()
seconds = time.time() - started
told = trainer.evaluate()["eval_rewards/accuracies"]
after, last = measured(), processor.pictures(drawn(True, 1, 10_000 + args.seed)[0])
trainer.save_model(str(args.output / "model"))

side = real[0].width
sheet = Image.new("RGB", (8 * 3 * (side + 4), -(-args.names // 8) * (side + 4)), "white")
for row, pictures in enumerate(zip(real, first, last, strict=False)):
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (((row % 8) * 3 + place) * (side + 4), (row // 8) * (side + 4)))
sheet.save(args.output / "pictures.png")
figures = {"before": before, "after": after, "new pairs told": round(told, 3), "seconds": round(seconds)}
print(json.dumps({"seed": args.seed, **figures}))
