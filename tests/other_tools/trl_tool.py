"""trl: SFT, DPO and GRPO on texts, conversations and pictures; packing; adapters; what is saved draws."""

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from steps import ASKED, MODEL, NAMES, TURNS, WORK, draws, processor, say, seen
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

COMMON = {
    "output_dir": str(WORK / "run"),
    "use_cpu": True,
    "bf16": False,
    "report_to": [],
    "save_strategy": "no",
    "trust_remote_code": True,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "disable_tqdm": True,
}
READER = processor()


def opened(folder=MODEL):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)


def sft(rows, processing_class=None, model=None, peft_config=None, **settings):
    values = {**COMMON, "max_steps": 3, "learning_rate": 1e-3, **settings}
    return SFTTrainer(
        model or opened(),
        SFTConfig(**values),
        train_dataset=Dataset.from_list(rows),
        processing_class=processing_class,
        peft_config=peft_config,
    )


def rows_of(trainer):
    batch = next(iter(trainer.get_train_dataloader()))
    pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return sorted(ids[mask.bool()].tolist() for ids, mask in pairs)


def falls(trainer) -> None:
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    seen(f"losses {losses}")
    assert losses[-1] < losses[0]


def reinforced(reader) -> list[list[int]]:
    """Ids that two steps of GRPO sampled."""
    sampled = []

    def reward(completion_ids, **_):
        sampled.extend(completion_ids)
        return [float(len(set(ids))) for ids in completion_ids]

    arguments = GRPOConfig(**COMMON, max_steps=2, num_generations=4, max_completion_length=8)
    prompts = Dataset.from_list([{"prompt": turns[:1]} for turns in TURNS])
    GRPOTrainer(opened(), reward, args=arguments, train_dataset=prompts, processing_class=reader).train()
    assert len(sampled) == 8
    return sampled


def text() -> str:
    ended = sorted([*READER.encode(answer), READER.eos] for _, answer in ASKED)
    for reader in (None, AutoTokenizer.from_pretrained(MODEL, trust_remote_code=True)):
        trainer = sft([{"text": answer} for _, answer in ASKED], reader)
        assert rows_of(trainer) == ended
        falls(trainer)
        falls(sft([{"messages": turns} for turns in TURNS], reader, assistant_only_loss=True))
        pairs = [{"prompt": one[:1], "chosen": one[1:], "rejected": other[1:]} for one, other in zip(TURNS, TURNS[1:])]
        DPOTrainer(opened(), args=DPOConfig(**COMMON, max_steps=2), train_dataset=Dataset.from_list(pairs)).train()
        for ids in reinforced(reader):
            assert READER.start in ids or not [token for token in ids if token >= READER.offset]
    return "SFT, DPO, GRPO"


def packing() -> str:
    trainer = sft([{"text": answer} for _, answer in ASKED], packing=True, max_length=64)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    model = trainer.model.eval()
    with torch.no_grad():
        packed = model(**{name: value for name, value in batch.items() if name != "labels"}).logits[0]
        starts = [*(batch["position_ids"][0] == 0).nonzero().flatten().tolist(), batch["input_ids"].shape[1]]
        for start, end in zip(starts, starts[1:]):
            alone = model(batch["input_ids"][:, start:end]).logits[0]
            assert (packed[start:end] - alone).abs().max() < 1e-4
    assert len(starts) == 5
    return "bfd, padding-free: documents apart"


def pictures() -> str:
    drawn = READER.pictures(torch.arange(2 * READER.num_codes).view(2, -1) % 1000)
    rows = [
        {"prompt": turns[:1], "completion": turns[1:], "images": [picture]}
        for turns, picture in zip(TURNS, drawn, strict=False)
    ]
    trainer = sft(rows, per_device_train_batch_size=2)
    assert all(READER.start in row and row.count(READER.end) == 1 for row in rows_of(trainer))
    falls(trainer)
    pairs = [{**row, "chosen": row.pop("completion"), "rejected": TURNS[3][1:]} for row in rows]
    DPOTrainer(opened(), args=DPOConfig(**COMMON, max_steps=1), train_dataset=Dataset.from_list(pairs)).train()
    asked, drawn = [], []
    for place, name in enumerate(NAMES[:2]):
        asked.append(READER.draw([name])["input_ids"][0].tolist())
        codes = range(READER.offset + place, READER.offset + place + READER.num_codes)
        drawn.append([*codes, READER.end, READER.eos])
    answers = [
        {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}
        for prompt, answer in zip(asked, drawn, strict=True)
    ]
    falls(sft(answers, READER))
    rows = [
        {"prompt": prompt, "chosen": one, "rejected": other, "images": []}
        for prompt, one, other in zip(asked, drawn, drawn[::-1], strict=True)
    ]
    ids = DataCollatorForPreference(pad_token_id=READER.eos)
    trainer = DPOTrainer(
        opened(),
        args=DPOConfig(**COMMON, max_steps=4, learning_rate=1e-4, max_length=None),
        train_dataset=Dataset.from_list(rows),
        data_collator=lambda rows: ids(
            [{f"{name}_ids": row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
        ),
        processing_class=READER,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    learned = [row[mask.bool()].tolist() for row, mask in zip(*map(batch.get, ("input_ids", "completion_mask")))]
    assert sorted(learned) == sorted(2 * drawn)
    falls(trainer)
    return "SFT, DPO: before words; answers: ids"


def saving() -> str:
    trainer = sft([{"messages": turns} for turns in TURNS])
    trainer.train()
    trainer.save_model(str(WORK / "tuned"))
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = sft([{"messages": turns} for turns in TURNS], peft_config=adapter)
    adapted.train()
    adapted.save_model(str(WORK / "adapters"))
    ids = torch.tensor([READER.encode("A red heart.")])
    with torch.no_grad():
        expected, again = (
            adapted.model.eval()(ids).logits,
            PeftModel.from_pretrained(opened(), WORK / "adapters").eval(),
        )
        assert torch.equal(again(ids).logits, expected)
        again.merge_and_unload().save_pretrained(WORK / "merged")
        assert (opened(WORK / "merged").eval()(ids).logits - expected).abs().max() < 1e-3
        assert torch.equal(opened(WORK / "tuned").eval()(ids).logits, trainer.model.eval()(ids).logits)
    return "models, adapters"


torch.set_num_threads(1)
say("text", text())
say("packing", packing())
say("pictures", pictures())
say("saving and loading", saving())
for folder in ("tuned", "merged"):
    said = draws(opened(WORK / folder).eval())
say("drawing afterwards", said)
