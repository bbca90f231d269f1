"""Report of a study: at most three pages with plots, and details.md and CSVs with every number and its source."""

from __future__ import annotations

import statistics
from pathlib import Path

from tokenization.files import write_text
from tools.study.cells import DONE, FAILED, PROPOSAL, SPEED, best_rates, read_json
from tools.study.claims import answers, whole_entropies
from tools.study.compare import Arms, differences, finished, results_table
from tools.study.details import write_details
from tools.study.plan import (
    ARMS,
    TEXT_SHARE,
    WORDS,
    Preset,
    main_cells,
    same_arm,
    suggested_cells,
    tuning_cells,
)
from tools.study.plots import conflict_plot, curves

PAPER_ENTROPY = {  # bits, arXiv 2509.24365 and its released script: plug-in, Qwen tokenizer, VQ ids of 10^6 pictures
    "en": (10.83, 6.96, 4.11, 1.84, 0.77),
    "de": (10.68, 6.37, 3.95, 2.15, 1.06),
    "zh": (11.49, 7.94, 3.92, 1.37, 0.51),
    "pictures": (11.06, 10.29, 7.39, 4.97),
}


def collect(folder: Path, preset: Preset) -> list[dict]:
    """Every planned cell: its result, its failure, or {"missing": True}.

    `compared`: whether it is a cell of the comparison, and not one that a learning rate was chosen by alone.
    """
    tuned = [state_of(folder, cell.name, cell.to_dict(), measured=False) for cell in tuning_cells(preset)]
    rates = best_rates(tuned, preset)
    found = {result["name"]: {**result, "compared": False} for result in tuned}
    wanted = {cell.name: cell.to_dict() for cell in main_cells(preset, rates)}
    for seed in preset.seeds:  # also for arms whose learning rate is not chosen yet
        wanted |= {f"{arm}-seed{seed}": {"arm": arm, "seed": seed} for arm in ARMS if arm not in rates}
    proposal = folder / PROPOSAL
    if proposal.is_file():
        suggested = suggested_cells(preset, read_json(proposal), rates)
        wanted |= {cell.name: cell.to_dict() for cell in suggested}
    for name, cell in wanted.items():
        found[name] = {**state_of(folder, name, cell, measured=True), "compared": True}
    return list(found.values())


def state_of(folder: Path, name: str, cell: dict, measured: bool) -> dict:
    """State of a cell from its folder; one that is trained but not measured is missing."""
    for file in (DONE, FAILED):
        path = folder / name / file
        if path.is_file():
            result = read_json(path)
            if file == FAILED or not measured or "measures" in result:
                return {"name": name, **result}
    return {"name": name, "missing": True, "cell": cell}


def write(output: Path, folder: Path, preset: Preset, results: list[dict], problems: dict[str, str]) -> None:
    """Write report.md, details.md, CSVs and plots to `output`. problems: measurement ("entropy", "speed") -> why it
    failed."""
    output.mkdir(parents=True, exist_ok=True)
    arms = finished(results)
    curves(results, output / "curves.png")
    conflict_plot(folder, preset, results, output / "conflict.png")
    write_details(output, folder, preset, results, arms)
    words = [
        f"# Which layers to separate: the {preset.name} study",
        "",
        *what_it_is(preset, results),
        *answers(arms, folder, results),
        "## How",
        "",
        *held_and_varied(preset, results, folder),
        "## Results",
        "",
        "Losses are nats a token, held out, lower is better. The others are shares of right answers, higher is better: to find "
        f"the picture of a name, and to name a picture, among {preset.pairs} candidates (chance {1 / preset.pairs:.2f}), new (held "
        "out) or trained. ± is half of a 95 % interval over seeds (Student's t); in shares the chance of which questions were "
        "asked is added.",
        "",
        *results_table(arms),
        "Differences, paired by seed:",
        "",
        *differences(arms, "shared"),
        *arms_table(arms, results, folder, problems),
        "![Held-out losses by step](curves.png)",
        "",
        "## Conflict",
        "",
        "Gradient conflict of weights that both modalities meet, after training, first seed; 95 % intervals over "
        "blocks. Mixture-of-Transformers has no such weights in its layers.",
        "",
        "![Conflict by layer](conflict.png)",
        "",
        *proposal_words(folder),
        "## Entropy",
        "",
        *entropy_words(folder, problems.get("entropy")),
        "## What this cannot say",
        "",
        *limits(preset, results),
    ]
    write_text(output / "report.md", "\n".join(words))


def what_it_is(preset: Preset, results: list[dict]) -> list[str]:
    """Introduction, and what is missing."""
    undone = [result["name"] for result in results if "failed" in result or result.get("missing")]
    state = [f"**Not complete: {', '.join(undone)} failed or did not run.**", ""] if undone else []
    return [
        "Uni-X (arXiv 2509.24365) gives text and pictures layers of their own at both ends of a transformer. Is that better than "
        "sharing all layers, or than other ways to separate, and where should the separated layers be? This is the paper's "
        f"comparison at a size that two processor cores can repeat: six layers of width {preset.hidden_size}, "
        f"{preset.steps * preset.sequence_length / 1e6:.1f} million training tokens, {len(preset.seeds)} seeds. "
        "Uni-X a:b separates the first a and the last b layers; 2:1 is nearest to the paper's 9:5 of 28. "
        "Hard MoE has FFNs by modality in every second layer.",
        "",
        *state,
    ]


def held_and_varied(preset: Preset, results: list[dict], folder: Path) -> list[str]:
    """What was the same for all arms, and what was varied."""
    commits = sorted({result["commit"][:12] for result in results if "commit" in result})
    return [
        f"Varied: the kinds of the layers, and {len(preset.seeds)} seeds (first weights, order of the data). Held: "
        f"{preset.steps * preset.sequence_length:,} training tokens ({preset.steps} rows of {preset.sequence_length}), the same rows for "
        "equal seeds, width, number of layers, activated parameters, optimizer, schedule. Tuning, the same for each arm: "
        f"{len(preset.learning_rates)} learning rates ({', '.join(f'{rate:g}' for rate in preset.learning_rates)}) at full length with "
        "the first seed; the lowest held-out loss decides. Data: OpenMoji pictures with names, and the Debian Reference in English, "
        "German and Chinese, in the paper's shares of text and pictures; eight of ten draws of a picture are text to picture"
        f"{passes(preset, folder)}. Code: {', '.join(commits) or 'unknown'}. "
        "Tuning, all cells with their run folders, and differences from Uni-X 2:1 are "
        "in [details.md](details.md); every number is in results.csv, curves.csv and conflict.csv.",
        "",
    ]


def passes(preset: Preset, folder: Path) -> str:
    """Number of epochs, as a part of a sentence; empty before the entropies, which counted the data."""
    tokens = {"text": 0, "image": 0}
    for row in whole_entropies(folder):
        tokens[row["modality"]] += int(row["windows"]) if row["n"] == "1" else 0
    if not all(tokens.values()):
        return ""
    seen = preset.steps * preset.sequence_length
    text, pictures = seen * TEXT_SHARE / tokens["text"], seen * (1 - TEXT_SHARE) / tokens["image"]
    return f"; a training sees each text {text:.2g} times and each picture {pictures:.2g} times"


def arms_table(arms: Arms, results: list[dict], folder: Path, problems: dict[str, str]) -> list[str]:
    """A line for each arm: its sizes, its learning rate, and the cost of a step."""
    heads = ["arm", "seeds", "parameters", "activated", "learning rate", "tokens/s", "step time, shared = 1"]
    rates = {r["cell"]["arm"]: r["cell"]["learning_rate"] for r in results if "measures" in r and r["compared"]}
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    speeds = step_costs(folder)
    for arm, by_seed in arms.items():
        first = next(iter(by_seed.values()))
        cells = [
            WORDS[arm],
            f"{len(by_seed)}",
            f"{first['parameters_total']:,}",
            f"{first['parameters_activated']:,}",
            f"{rates[arm]:g}",
            *speeds.get(arm, ("-", "-")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    words = "Steps of all arms in turn on the same rows, one thread, processor time: the median, and the quartiles of the ratio."
    if "speed" in problems:
        words = f"**Speed was not measured: {problems['speed']}.**"
    return [*lines, "", words, ""]


def step_costs(folder: Path) -> dict[str, tuple[str, str]]:
    """arm -> tokens per second, and step time over the shared transformer's, as table cells."""
    if not (folder / SPEED).is_file():
        return {}
    found = read_json(folder / SPEED)
    seconds = {Path(run).parent.name.partition("-")[0]: times for run, times in found["seconds"].items()}
    costs = {}
    for arm, times in seconds.items():
        ratios = [one / base for one, base in zip(times, seconds["shared"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        spread = "1" if arm == "shared" else f"{middle:.2f} ({low:.2f} to {high:.2f})"
        costs[arm] = (f"{found['sequence_length'] / statistics.median(times):,.0f}", spread)
    return costs


def proposal_words(folder: Path) -> list[str]:
    """Proposal of tools/suggest_separation.py from the shared model's profile."""
    from tools.analysis.separation import words

    path = folder / PROPOSAL
    if not path.is_file():
        return ["There is no proposal: the shared transformer of the first seed has no profile.", ""]
    found = read_json(path)
    same = same_arm(found)
    trained = f" It is the arm {WORDS[same]}, so it was not trained again." if same else ""
    return [
        "From the profile of the shared transformer, first seed: "
        + "; ".join(words(found).splitlines())
        + f".{trained}",
        "",
    ]


def entropy_words(folder: Path, problem: str | None) -> list[str]:
    """Our entropies and the paper's."""
    source = folder / "entropy"
    if problem or not (source / "summary.md").is_file():
        return [f"**Not measured: {problem or 'the command did not run'}.**", ""]
    summary = (source / "summary.md").read_text(encoding="utf-8").split("\n", 2)[2]
    text, _, _ = summary.partition("What can be trusted:")  # the rest is in details.md
    orders = text.rstrip().splitlines()[-1].count("|") - 3  # columns after the stream's name and its tokens
    lines = []
    for name, values in PAPER_ENTROPY.items():
        cells = [f"{value:.2f}" for value in values[:orders]] + ["-"] * (orders - len(values))
        lines.append(f"| paper, {name} | - | {' | '.join(cells)} |")
    return [
        text.rstrip(),
        *lines,
        "",
        "The paper's are plug-in estimates of other corpora and tokenizers. With fewer pictures its own file has 0.28 "
        "bits at n = 4 in place of 4.97: the curves in details.md show the same fall of the plug-in estimate with the sample.",
        "",
    ]


def overfitting(results: list[dict]) -> list[str]:
    """A line where held-out image loss rose again before the end (overfitting): the last one is then not the arm's
    best."""
    rises: dict[str, list[float]] = {}
    for result in results:
        if result["compared"] and "measures" in result:
            losses = [image for _, _, image in result["curve"]]
            rises.setdefault(result["cell"]["arm"], []).append(losses[-1] - min(losses))
    means = {arm: statistics.mean(values) for arm, values in rises.items()}
    if not any(means.values()):
        return []
    most = max(means, key=means.__getitem__)
    return [
        f"- Held-out picture loss rose again before the end (by {min(means.values()):.2f} to {means[most]:.2f} nats, most in "
        f"{WORDS[most]}), and what is compared is the end: arms differ there also in how soon they know the training pictures "
        "by heart. More pictures could order them otherwise."
    ]


def limits(preset: Preset, results: list[dict]) -> list[str]:
    """Limits of the study, in plain words."""
    return [
        "- Six layers from random weights, on clip art and one manual, are not a trained language model of 1.5B parameters, whose "
        "text layers are to be kept, on 28B tokens: an order of the arms here does not carry over, in either direction.",
        f"- {len(preset.seeds)} seeds give wide intervals: small differences cannot be seen, and not told apart is not equal. The "
        "intervals are over seeds: another manual or other pictures may order the arms otherwise.",
        *overfitting(results),
        "- The first seed chose the learning rates, and is one of those that are compared.",
        "- Activated parameters are equal, total ones are not, as in the paper. The Uni-X arms have equally many.",
        "- New pictures are of concepts that were not trained on: a model that knows nothing else can hardly find or name them, so "
        "that every arm is near chance there. Trained pictures say what was learned by heart.",
        "",
    ]
