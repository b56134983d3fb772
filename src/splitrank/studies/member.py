"""One member of a sweep in a process of its own.

    python -m splitrank.studies.member SETTINGS.toml RUN_DIR [full-fine-tuning]

The exit codes are those of ``splitrank run``. A run that was broken off is continued, the baseline begins anew.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from pathlib import Path

from splitrank.config import load_config
from splitrank.errors import InputError, RunError
from splitrank.federation import run_folder
from splitrank.federation.loop import run
from splitrank.files import try_lock
from splitrank.studies.full_fine_tuning import run_full_fine_tuning

_LONGEST_MESSAGE = 1000


def run_member(settings: Path, folder: Path, baseline: str = "") -> None:
    """Train to the last round, from where an earlier process was broken off.

    Raises:
        InputError, RunError: as :func:`splitrank.run`.
    """
    config = load_config(str(settings))
    begun = (folder / "config.toml").is_file()
    if baseline != "full-fine-tuning":
        if begun:
            config = run_folder.resumed_config(folder, config, [])
        records = run(config, folder, resume=begun)
    else:
        if begun:
            lock = try_lock(folder / ".lock")
            if lock is None:
                raise InputError(f"{folder} must not be in use, but another process holds it; wait for it or stop it")
            with lock:
                shutil.rmtree(folder)
        records = run_full_fine_tuning(config, folder)
    for record in records:
        print(f"round {record.round}: {100 * record.accuracy:.1f} %", flush=True)


def main() -> None:
    settings, folder, *baseline = sys.argv[1:]
    try:
        run_member(Path(settings), Path(folder), *baseline)
    except (InputError, RunError, OSError) as error:
        print(f"Error: {textwrap.shorten(str(error), _LONGEST_MESSAGE)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except KeyboardInterrupt:
        print("Error: Interrupted", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
