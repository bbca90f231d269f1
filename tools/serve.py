"""OpenAI-compatible HTTP server of an exported Uni-X model, with a page to chat, generate and edit in a browser."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import os
from dataclasses import replace

from pretrain.system.errors import UserError, run_command
from pretrain.system.threads import settle_threads
from tools.generation.arguments import at_least, choose_device, share
from tools.generation.prompts import Sampling
from tools.serving.limits import Limits

EPILOG = """\
examples:
  python tools/serve.py --model work/demo/model
  python tools/serve.py --model work/demo/model --port 8080 --batch-size 16 --max-requests 64 --timeout 300

It says "ready: http://127.0.0.1:8000" once it answers. There is the page, and under /v1 the OpenAI API:
chat/completions, responses, completions, images/generations, images/edits, models; /api describes it, /health and
/metrics are for monitors. docs/serving.md has examples, and a set-up behind a proxy.

Without --api-key it refuses pages of other sites (but --allow-origin) and names not its own (but --allow-host).
SIGTERM and SIGINT end it: requests that it has taken are finished, new ones get 503, and the exit code is 0.
Exit codes: 0 done, 1 failed, 2 wrong usage or input.
"""

LOCAL = ("localhost",)  # and any IP address
SKILLS = ("draw", "edit", "caption", "chat")
KEY_VARIABLE = "UNI_X_API_KEY"


def what_it_can(
    recorded: Sequence[str] | None, chat_format: str | None, asked: Sequence[str] | None
) -> tuple[bool, Sequence[str]]:
    """Whether conversations are sent as turns, and the skills that the page offers: as requested, else those that the
    export's training data taught, of texts alone nothing, else everything that the format supports."""
    known = [skill for skill in SKILLS if skill in (recorded or ())]
    if unknown := [skill for skill in recorded or () if skill not in SKILLS]:
        listed = f"{', '.join(map(repr, unknown))}, which this release does not know: not offered"
        print(f"warning: config.json: skills has {listed} ({', '.join(SKILLS)} are known)", file=sys.stderr)
    turns = chat_format == "turns" if chat_format else recorded is None or "chat" in known
    everything = SKILLS if turns else ("draw", "caption")
    return turns, asked or (everything if recorded is None else known)


def build_parser() -> argparse.ArgumentParser:
    """Command-line parser."""
    limits = Limits()
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, type=Path, metavar="DIR", help="folder that tools/convert_to_hf.py wrote")
    add(
        "--name",
        action="append",
        metavar="NAME",
        help="what requests call the model; repeatable, and answers say the first (default: the name of its folder, "
        "after its parent's where that is 'model')",
    )
    add("--host", default="127.0.0.1", help="address to bind to (default 127.0.0.1: this machine only)")
    add("--port", type=at_least(0, int), default=8000, help="default 8000; 0 for any that is free")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that this server may be called by, beside --host and localhost; repeatable; * for any",
    )
    add(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a site whose pages may ask, as https://chat.example.org; repeatable; * for any",
    )
    add(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help=f"asked of every request under /v1 and to /metrics; repeatable; or set {KEY_VARIABLE}",
    )
    add("--api-key-file", type=Path, metavar="FILE", help="the same from a file, a key a line")
    add(
        "--skills",
        nargs="+",
        choices=SKILLS,
        metavar="SKILL",
        help="what the model learned, which the page offers and /v1/models tells: draw, edit, caption, chat "
        "(default: what the data of its training taught, by config.json; where that does not say, all, or draw and caption with "
        "--chat-format plain)",
    )
    add(
        "--chat-format",
        choices=("turns", "plain"),
        help="turns: as models that learned conversations expect; plain: a caption, or a text that goes on "
        "(default: plain where config.json lists skills without chat, else turns)",
    )
    add(
        "--guidance",
        type=at_least(0, float),
        default=4.0,
        metavar="SCALE",
        help="of the text, where a request for pictures does not say (default 4)",
    )
    add(
        "--image-guidance",
        type=at_least(0, float),
        default=1.5,
        metavar="SCALE",
        help="of the source picture of an edit, likewise (default 1.5)",
    )
    add("--temperature", type=at_least(0, float), default=0.99, help="of the codes, likewise (default 0.99)")
    add("--top-k", type=at_least(0, int), default=4096, help="likeliest codes kept, likewise (default 4096)")
    add("--top-p", type=share, default=0.96, help="probability mass kept, likewise (default 0.96)")
    add(
        "--batch-size",
        type=at_least(1, int),
        default=limits.batch_size,
        metavar="N",
        help=f"results that the model makes at a time (default {limits.batch_size})",
    )
    add(
        "--max-requests",
        type=at_least(1, int),
        default=limits.requests,
        metavar="N",
        help=f"requests at once, waiting ones included; one more gets 429 (default {limits.requests})",
    )
    add(
        "--max-images",
        type=at_least(1, int),
        default=limits.samples,
        metavar="N",
        help=f"most pictures that a request may ask for (default {limits.samples})",
    )
    add(
        "--max-tokens",
        type=at_least(1, int),
        default=limits.max_tokens,
        metavar="N",
        help=f"longest text answer (default {limits.max_tokens})",
    )
    add(
        "--max-characters",
        type=at_least(1, int),
        default=limits.prompt_characters,
        metavar="N",
        help=f"longest prompt, all messages together (default {limits.prompt_characters})",
    )
    add(
        "--max-body",
        type=at_least(1, int),
        default=limits.body_bytes,
        metavar="BYTES",
        help=f"largest request (default {limits.body_bytes})",
    )
    add(
        "--max-pixels",
        type=at_least(1, int),
        default=limits.pixels,
        metavar="N",
        help=f"largest picture in a request (default {limits.pixels})",
    )
    add(
        "--timeout",
        type=at_least(0, float),
        default=limits.seconds,
        metavar="SECONDS",
        help=f"for an answer, waiting included (default {limits.seconds:g})",
    )
    add(
        "--grace",
        type=at_least(0, float),
        default=limits.grace_seconds,
        metavar="SECONDS",
        help=f"for unfinished answers once the server is told to end (default {limits.grace_seconds:g})",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto: the GPU if there is one")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Load the model and serve it until a signal."""
    args = build_parser().parse_args(arguments)
    from tools.export.folder import check_export, open_export

    check_export(args.model)  # before the seconds that it takes to import torch
    from tools.serving.shutdown import bind, serve

    bound = bind(args.host, args.port)  # before the minutes that it takes to load a large model
    keys = keys_of(args)
    threads = settle_threads()
    device = choose_device(args.device)
    threads.use()
    export = open_export(args.model, device)
    from tools.serving.admission import Callers
    from tools.serving.app import build_app
    from tools.serving.jobs import JobQueue
    from tools.serving.metrics import ServerMetrics
    from tools.serving.service import Service
    from tools.serving.worker import Worker

    # A cache of all prompts would grow with every request.
    export = replace(export, encode=getattr(export.encode, "__wrapped__", export.encode))
    queue, metrics = JobQueue(), ServerMetrics()
    limits = limits_of(args)
    worker = Worker(export, queue, limits.batch_size, metrics)
    worker.start()
    turns, skills = what_it_can(getattr(export.model.config, "skills", None), args.chat_format, args.skills)
    examples = getattr(export.model.config, "sample_prompts", None) or ()
    service = Service(export, names_of(args), queue, limits, sampling_of(args), turns, skills, examples)
    hosts = None if "*" in args.allow_host else {name.lower() for name in (*LOCAL, args.host, *args.allow_host)}
    callers = Callers(hosts, [origin.rstrip("/").lower() for origin in args.allow_origin], keys)
    app, admission = build_app(service, worker, callers, metrics)
    serve(app, admission, queue, bound, limits.grace_seconds)
    return 0


def names_of(args: argparse.Namespace) -> list[str]:
    """Names of the model: many folders are called `model`, which says nothing."""
    folder = args.model.resolve()
    own = f"{folder.parent.name}-{folder.name}".lstrip("-") if folder.name == "model" else folder.name
    return args.name or [own]


def keys_of(args: argparse.Namespace) -> list[str]:
    """API keys of the command line, of a file and of the environment. Raises UserError."""
    keys = [*args.api_key, *filter(None, [os.environ.get(KEY_VARIABLE)])]
    if args.api_key_file:
        try:
            lines = args.api_key_file.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--api-key-file {args.api_key_file} cannot be read ({error}): give a text file") from None
        if not lines:
            raise UserError(f"--api-key-file {args.api_key_file} is empty: write a key on a line")
        keys += lines
    for key in keys:
        if not key.isascii() or not key.strip() or any(letter.isspace() for letter in key):
            raise UserError("--api-key: a key is empty, has spaces or is not ASCII: no client can send it")
    return keys


def limits_of(args: argparse.Namespace) -> Limits:
    """Limits of the server from the command line."""
    return Limits(
        batch_size=args.batch_size,
        requests=args.max_requests,
        samples=args.max_images,
        body_bytes=args.max_body,
        pixels=args.max_pixels,
        prompt_characters=args.max_characters,
        max_tokens=args.max_tokens,
        seconds=args.timeout,
        grace_seconds=args.grace,
    )


def sampling_of(args: argparse.Namespace) -> Sampling:
    """Default image settings of requests."""
    return Sampling(args.guidance, args.temperature, args.top_k, args.top_p, 0, args.image_guidance)


if __name__ == "__main__":
    run_command(main)
