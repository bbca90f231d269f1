"""The report of a study as Markdown with plots, and every number in results.csv with the run that it came from."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path

from tools.study.cells import DONE, FAILED
from tools.study.compare import (
    MEASURES,
    answers,
    differences,
    finished,
    mean_and_width,
    number,
    of_the_paper,
    values_of,
)
from tools.study.plan import ARMS, SUGGESTED, WORDS, Preset, same_arm, tuning_cells
from tools.study.plots import conflict_plot, curves

PAPER_ENTROPY = {  # bits, arXiv 2509.24365 and its released script: plug-in, Qwen tokenizer, VQ ids of 10^6 pictures
    "en": (10.83, 6.96, 4.11, 1.84, 0.77),
    "de": (10.68, 6.37, 3.95, 2.15, 1.06),
    "zh": (11.49, 7.94, 3.92, 1.37, 0.51),
    "pictures": (11.06, 10.29, 7.39, 4.97),
}


def collect(folder: Path, preset: Preset) -> list[dict]:
    """Every cell that the study is meant to have: its result, its failure, or {"missing": True}."""
    wanted = [(cell.name, cell.arm, cell.seed, True) for cell in tuning_cells(preset)]
    arms = [*ARMS, *([SUGGESTED] if any(folder.glob(f"{SUGGESTED}-seed*")) else [])]
    wanted += [(f"{arm}-seed{seed}", arm, seed, False) for seed in preset.seeds for arm in arms]
    found = []
    for name, arm, seed, tuning in wanted:
        for file in (DONE, FAILED):
            if (folder / name / file).is_file():
                found.append({"name": name, **json.loads((folder / name / file).read_text(encoding="utf-8"))})
                break
        else:
            found.append({"name": name, "missing": True, "cell": {"arm": arm, "seed": seed, "tuning": tuning}})
    return found


def write(output: Path, folder: Path, preset: Preset, results: list[dict], entropy_problem: str | None) -> None:
    """report.md, results.csv, curves.png, conflict.png and entropy.png in `output`."""
    output.mkdir(parents=True, exist_ok=True)
    arms = finished(results)
    write_csv(output / "results.csv", results)
    curves(results, output / "curves.png")
    conflict_plot(folder, preset, arms, output / "conflict.png")
    words = [
        f"# Which layers to separate: a controlled comparison ({preset.name})",
        "",
        *answers(arms),
        *held_and_varied(preset, results),
        "## Results",
        "",
        *arms_table(arms, results),
        *tuning_table(preset, results),
        *results_table(arms),
        *differences(arms, "shared"),
        *differences(arms, "unix_both"),
        *of_the_paper(arms),
        "![Held-out losses by step](curves.png)",
        "",
        "## Conflict",
        "",
        "Gradient conflict of weights that both modalities meet, after training, first seed; 95 % intervals over "
        "blocks.",
        "",
        "![Conflict by layer](conflict.png)",
        "",
        *proposal_words(folder),
        "## Entropy",
        "",
        *entropy_words(folder, output, entropy_problem),
        "## What this can and cannot say",
        "",
        *limits(preset),
        "## Cells",
        "",
        *cells_table(results),
    ]
    (output / "report.md").write_text("\n".join(words), encoding="utf-8")


def held_and_varied(preset: Preset, results: list[dict]) -> list[str]:
    """What was the same for all arms, and what was not."""
    undone = [result["name"] for result in results if "failed" in result or result.get("missing")]
    commits = sorted({result["commit"][:12] for result in results if "commit" in result})
    state = [f"**Not complete: {', '.join(undone)} failed or did not run.**", ""] if undone else []
    return [
        *state,
        f"Varied: the kinds of the layers, and {len(preset.seeds)} seeds (first weights, order of the data). Held: "
        f"{preset.steps * preset.row_length:,} training tokens ({preset.steps} rows of {preset.row_length}), the "
        f"same rows for equal "
        f"seeds, width {preset.hidden_size}, six layers, activated parameters, optimizer, schedule. Tuning: each arm "
        f"over "
        f"{len(preset.learning_rates)} learning rates ({', '.join(f'{rate:g}' for rate in preset.learning_rates)}), "
        f"{preset.tuning_steps} steps each, the lowest held-out loss taken. Data: OpenMoji pictures with names, and "
        f"the Debian "
        "Reference in English, German and Chinese, in the paper's shares of text and pictures; eight of ten draws of "
        "a picture are "
        f"text to picture. Code: {', '.join(commits) or 'unknown'}.",
        "",
        "± is half of a 95 % interval over seeds (Student's t). Losses are nats a token, lower is better; the others "
        "are shares of "
        f"right answers among {preset.pairs} candidates (chance {1 / preset.pairs:.3f}), higher is better.",
        "",
    ]


def arms_table(arms: dict, results: list[dict]) -> list[str]:
    """A line for each arm: its sizes and its speed."""
    heads = ["arm", "seeds", "parameters", "activated", "learning rate", "tokens/s"]
    rates = {r["cell"]["arm"]: r["cell"]["learning_rate"] for r in results if "measures" in r}
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for arm, by_seed in arms.items():
        first = next(iter(by_seed.values()))
        cells = [WORDS[arm], f"{len(by_seed)}", f"{first['parameters_total']:,}", f"{first['parameters_activated']:,}",
                 f"{rates[arm]:g}", f"{statistics.median(v['tokens_per_second'] for v in by_seed.values()):,.0f}"]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    speed = (
        "Tokens a second are medians over a run, of whatever else the machine did then; Uni-X arms do less attention."
    )
    return [*lines, "", speed, ""]


def tuning_table(preset: Preset, results: list[dict]) -> list[str]:
    """Held-out loss of each arm at each learning rate, and which arms were best at an end of the range."""
    tried: dict[str, dict[float, float]] = {}
    for result in results:
        if result["cell"].get("tuning") and "heldout" in result:
            tried.setdefault(result["cell"]["arm"], {})[result["cell"]["learning_rate"]] = result["heldout"]
    rates = sorted(preset.learning_rates)
    lines = ["| tuning: held-out loss at | " + " | ".join(f"{rate:g}" for rate in rates) + " |", "|---" * (len(rates) + 1) + "|"]
    at_end = []
    for arm, found in tried.items():
        best = min(found, key=found.get)
        at_end += [WORDS[arm]] if best in (rates[0], rates[-1]) else []
        shown = [("**{:.3f}**" if rate == best else "{:.3f}").format(found[rate]) if rate in found else "-" for rate in rates]
        lines.append(f"| {WORDS[arm]} | " + " | ".join(shown) + " |")
    words = "Every arm is best between the ends of the range."
    if at_end:
        words = f"Best at an end of the range, so that a rate beyond it might be better still: {', '.join(at_end)}."
    return [*lines, "", f"Of {preset.tuning_steps} steps with a seed that is used nowhere else. {words}", ""] if tried else []


def results_table(arms: dict) -> list[str]:
    """A line for each arm: each measure with its interval."""
    heads = ["arm", *(head for head, _ in MEASURES.values())]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for arm, by_seed in arms.items():
        cells = [
            number(*mean_and_width([values[name] for values in by_seed.values()]), digits)
            for name, (_, digits) in MEASURES.items()
        ]
        lines.append("| " + " | ".join([WORDS[arm], *cells]) + " |")
    return [*lines, ""]


def proposal_words(folder: Path) -> list[str]:
    """What tools/suggest_separation.py made of the shared model's profile."""
    from tools.suggest_separation import words

    path = folder / "proposal.json"
    if not path.is_file():
        return ["There is no proposal: the shared transformer of the first seed has no profile.", ""]
    found = json.loads(path.read_text(encoding="utf-8"))
    same = same_arm(found)
    trained = f" It is the arm {WORDS[same]}, so it was not trained again." if same else ""
    return [
        "From the profile of the shared transformer, first seed: "
        + "; ".join(words(found).splitlines())
        + f".{trained}",
        "",
    ]


def entropy_words(folder: Path, output: Path, problem: str | None) -> list[str]:
    """Our entropies and the paper's, and where ours can be trusted."""
    source = folder / "entropy"
    if problem or not (source / "summary.md").is_file():
        return [f"**Not measured: {problem or 'the command did not run'}.**", ""]
    (output / "entropy.png").write_bytes((source / "entropy.png").read_bytes())
    text = (source / "summary.md").read_text(encoding="utf-8").split("\n", 2)[2]
    lines = ["| paper, plug-in | n=1 | n=2 | n=3 | n=4 | n=5 |", "|---|---|---|---|---|---|"]
    for name, values in PAPER_ENTROPY.items():
        lines.append(
            f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + (" | -" if len(values) < 5 else "") + " |"
        )
    return [
        text, *lines, "",
        "The paper's are of other corpora and tokenizers. With fewer pictures its own file has 0.28 bits at n = 4 in "
        "place of 4.97: "
        "the curves show the same fall of the plug-in estimate with the sample, in text as in pictures.", "",
        "![Entropy by sample size](entropy.png)", "",
    ]  # fmt: skip


def limits(preset: Preset) -> list[str]:
    """In plain words."""
    return [
        "- A model of six layers on clip art and one manual is not a 1.5B model on 28B tokens: an order of the arms "
        "here does not "
        "carry over, in either direction.",
        f"- {len(preset.seeds)} seeds give wide intervals: small differences cannot be seen, and no difference is "
        f"not equality.",
        "- Total parameters differ between arms, as in the paper; activated ones do not. The three Uni-X arms have "
        "equally many.",
        "- Conflict is measured where both modalities meet the same weights: Uni-X arms have fewer such layers, so "
        "their mean is of "
        "other layers than that of the shared transformer.",
        "- Held-out names are of concepts that were not trained on; those are hard for a model that knows nothing "
        "else.",
        "",
    ]


def cells_table(results: list[dict]) -> list[str]:
    """Where each number comes from; failures in their own words. Cells that tuned stand in results.csv if they are done."""
    lines = ["| cell | seed | learning rate | run folder | state |", "|---|---|---|---|---|"]
    for result in results:
        cell = result["cell"]
        if cell.get("tuning") and "heldout" in result:
            continue
        state = (
            f"**failed**: {result['failed']}" if "failed" in result else "not run" if result.get("missing") else "done"
        )
        changed = " (with uncommitted changes)" if result.get("changed_files") else ""
        rate = f"{cell['learning_rate']:g}" if "learning_rate" in cell else "-"
        lines.append(f"| {result['name']} | {cell['seed']} | {rate} | {result.get('run', '-')} | {state}{changed} |")
    return [
        *lines,
        "",
        "The configuration of each cell is config.yaml in its folder; the same command makes the same run again. Cells that tuned "
        "are in results.csv.",
        "",
    ]


def write_csv(path: Path, results: list[dict]) -> None:
    """cell, arm, seed, learning_rate, run, measure, value: one line a number."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("cell", "arm", "seed", "learning_rate", "run", "measure", "value"))
        for result in results:
            cell = result["cell"]
            head = (result["name"], cell["arm"], cell["seed"], cell.get("learning_rate", ""), result.get("run", ""))
            if "failed" in result or result.get("missing"):
                writer.writerow((*head, "state", "failed" if "failed" in result else "not run"))
                continue
            values = {"heldout": result["heldout"], "seconds": result.get("seconds", "")}
            values |= values_of(result) if "measures" in result else {}
            for name, value in values.items():
                writer.writerow((*head, name, value))
