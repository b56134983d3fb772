"""Run one trial of a sweep in a process of its own.

    python -m splitrank.studies.trial SETTINGS.toml RUN_DIR

The exit codes are those of ``splitrank run``. A run that was broken off is continued.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from splitrank.config import load_config
from splitrank.errors import InputError, RunError
from splitrank.federation.loop import run
from splitrank.federation.resume import resumed_config
from splitrank.federation.tracking import tracked
from splitrank.logs import show_log

_MAX_MESSAGE = 1000


def run_trial(settings: Path, folder: Path) -> None:
    """Train to the last round, from where an earlier process was broken off.

    Raises:
        InputError, RunError: as :func:`splitrank.run`.
    """
    config = load_config(str(settings))
    begun = (folder / "config.toml").is_file()
    if begun:
        config = resumed_config(folder, config, [])
    for record in tracked(run(config, folder, resume=begun, refuse_unable=False), config.run.tracking, folder):
        print(f"round {record.round}: {100 * record.accuracy:.1f} %", flush=True)


def main() -> None:
    show_log()
    settings, folder = sys.argv[1:]
    try:
        run_trial(Path(settings), Path(folder))
    except (InputError, RunError, OSError) as error:
        print(f"Error: {textwrap.shorten(str(error), _MAX_MESSAGE)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except KeyboardInterrupt:
        print("Error: Interrupted", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
