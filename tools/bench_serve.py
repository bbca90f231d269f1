"""Load test of tools/serve.py: concurrent clients for minutes, every answer compared, and the server's memory."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from statistics import median

from pretrain.system.errors import RunFailed, run_command
from tools.generation.arguments import at_least, choose_device

ROOT = Path(__file__).resolve().parents[1]
STOPPING = 600  # seconds that a server may take to end when it is told to
EPILOG = """\
examples:
  python tools/bench_serve.py --model work/demo/model --seconds 60
  python tools/bench_serve.py --model work/demo/model --clients 2 --seconds 5 --distinct 2
  python tools/bench_serve.py --model work/demo/model --against ../older --seconds 8 --rounds 6
  python tools/bench_serve.py --model work/demo/model --queue 64

Starts a server of its own on a free port of this machine. Before that, the model itself makes the answers to --distinct
prompts each of drawing, editing and captioning, one at a time. Clients then ask for them at random with the official
client, streamed or not, and every answer must be what the model made alone. Among them are requests that are malformed,
and clients that leave in the middle of an answer. At the end the server is sent SIGTERM while all clients wait.

--against DIR compares the pictures a second of this build and of another checkout, in turns, and their pictures too.
--queue N lets 1, 2, 4 ... N clients ask at once and prints how long they wait; every picture must be that of its seed.

Exit codes: 0 all answers are right, 1 one is lost or another's, or the server did not end well, 2 wrong usage or input.
"""


def build_parser() -> argparse.ArgumentParser:
    """Command-line parser."""
    parser = argparse.ArgumentParser(
        prog="bench_serve.py", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, type=Path, metavar="DIR", help="folder that tools/convert_to_hf.py wrote")
    add("--clients", type=at_least(1, int), default=8, help="that ask at the same time (default 8)")
    add("--seconds", type=at_least(1, float), default=60.0, help="default 60")
    add("--distinct", type=at_least(1, int), default=8, metavar="N", help="different requests of each task (default 8)")
    add("--batch-size", type=at_least(1, int), default=8, metavar="N", help="of the server (default 8)")
    add("--against", type=Path, metavar="DIR", help="another checkout of this project, to compare with")
    add("--rounds", type=at_least(1, int), default=6, help="of --against, each of --seconds for both (default 6)")
    add("--queue", type=at_least(1, int), metavar="N", help="most clients that ask at once")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the load test."""
    args = build_parser().parse_args(arguments)
    from tools.export.folder import check_export, open_export

    check_export(args.model)
    if args.against or args.queue:
        return measure(args)
    from tools.serving.load import Load, make_pool

    pool = make_pool(open_export(args.model, choose_device("cpu")), args.distinct)
    process = started(ROOT, args)
    try:
        url = address_of(process)
        load = Load(url, pool, args.clients)
        load.run(min(5.0, args.seconds))  # warm-up: memory that is allocated once
        load.forget()
        samples: list[int] = []
        watcher = threading.Thread(target=watch_memory, args=(process.pid, samples, load.over), daemon=True)
        watcher.start()
        load.run(args.seconds)
        watcher.join()
        in_hand, code = end_under_load(process, load)
    finally:
        process.kill()
        process.wait()
    report(args, load, samples, in_hand, code)
    if load.wrong or code:
        raise RunFailed(f"exit code {code} of the server, and {len(load.wrong)} wrong answers, as {load.wrong[:1]}")
    return 0


def started(checkout: Path, args: argparse.Namespace, *more: str) -> subprocess.Popen:
    """Start the server of a checkout on a free port."""
    command = [sys.executable, str(checkout / "tools/serve.py"), "--model", str(args.model), "--port", "0"]
    command += ["--chat-format", "plain", "--batch-size", str(args.batch_size), "--device", "cpu", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def measure(args: argparse.Namespace) -> int:
    """Measure --against and --queue."""
    from tools.serving.throughput import compare, queue_table

    checkouts = [ROOT] if args.against is None else [args.against, ROOT]
    servers = [started(checkout, args, "--max-requests", str(max(32, args.queue or 0))) for checkout in checkouts]
    try:
        urls = [address_of(server) for server in servers]
        if args.against:
            rates = compare(urls, args.clients, args.rounds, args.seconds)
            ratios = sorted(new / old for old, new in rates)
            old, new = (median(rate[place] for rate in rates) for place in (0, 1))
            print(f"median {old:.2f} and {new:.2f} pictures a second; median ratio {median(ratios):.2f}")
            print(f"ratio of each round: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
        if args.queue:
            print("\n".join(queue_table(urls[-1], args.queue)))
    except ValueError as error:
        raise RunFailed(str(error)) from None
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait()
    return 0


def address_of(process: subprocess.Popen) -> str:
    """Address that a server prints when it is ready."""
    for line in process.stdout or ():
        if line.startswith("ready: "):
            return line.removeprefix("ready: ").strip()
    raise RunFailed(f"tools/serve.py ended with exit code {process.wait()} before it was ready: see above")


def watch_memory(pid: int, samples: list[int], over: threading.Event) -> None:
    """Append a process's resident bytes four times a second."""
    import psutil

    process = psutil.Process(pid)
    while not over.wait(0.25):
        samples.append(process.memory_info().rss)


def end_under_load(process: subprocess.Popen, load) -> tuple[int, int]:
    """Graceful shutdown under load: SIGTERM while every client waits -> answers that were finished, and the server's
    exit code."""
    before = sum(map(len, load.seconds.values()))
    threads = [threading.Thread(target=load.once, args=(number,)) for number in range(load.clients)]
    for thread in threads:
        thread.start()
    while load.in_hand() < load.clients and any(thread.is_alive() for thread in threads):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    for thread in threads:
        thread.join()
    try:
        code = process.wait(timeout=STOPPING)
    except subprocess.TimeoutExpired:
        raise RunFailed(f"the server has not ended {STOPPING} s after SIGTERM, with every client answered") from None
    return sum(map(len, load.seconds.values())) - before, code


def report(args: argparse.Namespace, load, samples: list[int], in_hand: int, code: int) -> None:
    """Print latencies by task, memory, and the shutdown."""
    print(f"{args.clients} clients, {args.seconds:g} s, batches of up to {args.batch_size}")
    print(f"{'task':<10} {'answers':>8} {'a second':>9} {'median s':>9} {'95 % s':>8} {'longest s':>10}")
    for task, seconds in sorted(load.measured.items()):
        ordered = sorted(seconds)
        late = ordered[int(0.95 * (len(ordered) - 1))]
        print(
            f"{task:<10} {len(ordered):>8} {len(ordered) / args.seconds:>9.2f} {median(ordered):>9.3f} {late:>8.3f} "
            f"{ordered[-1]:>10.3f}"
        )
    print(f"wrong or lost answers: {len(load.wrong)}; malformed requests refused: {load.refused}; left: {load.left}")
    print(f"memory of the server, MiB, {of_memory(samples)}")
    print(f"at SIGTERM: {in_hand} of {args.clients} clients got their answer, exit code {code}")


def of_memory(samples: Sequence[int]) -> str:
    """Bytes at each look, in words: the median of each third, or all of them where there are fewer than three."""
    if len(samples) < 3:
        return "all looks: " + (", ".join(f"{each / 2**20:.1f}" for each in samples) or "none in this time")
    third = len(samples) // 3
    parts = (samples[:third], samples[third : 2 * third], samples[-third:])
    return "median of each third: " + ", ".join(f"{median(part) / 2**20:.1f}" for part in parts)


if __name__ == "__main__":
    run_command(main)
