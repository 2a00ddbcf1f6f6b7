"""Seconds until something happens, each in a process of its own: python speed/startup.py

`import llmdiff`, `llmdiff --help`, and a cold `llmdiff generate`, which loads everything anew (the files are in the
system's page cache). The other side is Python that starts and does nothing. Where the seconds go is asked of
`python -X importtime`: each package's own imports, and what is left, which is loading and drawing.
"""

import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import Aim, Record, command_seconds, finish, interleaved, parser, record

_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)")
_CLI = "import sys; sys.argv[0] = 'llmdiff'; from llmdiff.cli.main import app; app()"


def command(*arguments: str, trace: bool = False) -> list[str]:
    """Return the command line of a verb, with this Python and its path."""
    return [sys.executable, *(["-X", "importtime"] if trace else []), "-c", _CLI, *arguments]


def import_seconds(line: Sequence[str]) -> dict[str, float]:
    """Return the seconds that importing each package takes by itself, the most expensive first, ten of them."""
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    own: Counter[str] = Counter()
    for microseconds, module in _LINE.findall(done.stderr):
        own[module.partition(".")[0]] += int(microseconds)
    return {name: total / 1e6 for name, total in own.most_common(10)}


def main(arguments: Sequence[str] | None = None) -> list[Record]:
    options_of = parser(__doc__)
    options_of.add_argument("--steps", type=int, default=20, help="of the picture that `generate` draws")
    options = options_of.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        picture = str(Path(folder) / "cat.png")
        draw = (
            "generate",
            "a cat",
            "--out",
            picture,
            "--steps",
            str(options.steps),
            "--device",
            options.device,
        )
        lines: dict[str, list[str]] = {
            "nothing": [sys.executable, "-c", "pass"],
            "import llmdiff": [sys.executable, "-c", "import llmdiff"],
            "llmdiff --help": command("--help"),
        }
        if not options.quick:
            lines["llmdiff generate, cold"] = command(*draw)
        acts: Any = {name: lambda line=line: command_seconds(line) for name, line in lines.items()}
        seconds = interleaved(acts, repeats=options.repeats)
        aims = {
            "llmdiff --help": Aim(of="ours", value=0.6),
            "llmdiff generate, cold": Aim(of="ours", value=12),
        }
        traced = {"llmdiff --help": command("--help", trace=True)}
        if not options.quick:
            traced["llmdiff generate, cold"] = command(*draw, trace=True)
        records = []
        for name in lines:
            if name == "nothing":
                continue
            more: dict[str, Any] = {}
            if name in traced:
                imports = import_seconds(traced[name])
                more = {"import_s": imports}
                most = ", ".join(f"{package} {took:.1f} s" for package, took in list(imports.items())[:3])
                more["bound"] = f"imports take {sum(imports.values()):.1f} s of it as traced ({most})"
            records.append(
                record(
                    name,
                    ours=seconds[name],
                    other=seconds["nothing"],
                    unit="s",
                    device=options.device,
                    aim=aims.get(name),
                    **more,
                )
            )
    return finish(records, options)


if __name__ == "__main__":
    main()
