"""Settings, methods, the cache, and what a deployment needs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from splitrank.cli.common import (
    CONFIG_HELP,
    ConfigArgument,
    JsonOption,
    SetOption,
    app,
    cache_app,
    config_app,
    deploy_app,
    errors_as_exit_codes,
)


@config_app.command("show", epilog=CONFIG_HELP)
def config_show(config: ConfigArgument = "offline", overrides: SetOption = None) -> None:
    """Print all settings that have an effect, defaults included, as TOML."""
    with errors_as_exit_codes():
        from splitrank.config import load_config, to_toml

        print(to_toml(load_config(config, overrides or [])), end="")


@config_app.command("check", epilog=CONFIG_HELP)
def config_check(config: ConfigArgument = "offline", overrides: SetOption = None) -> None:
    """Check all settings and report every broken rule at once."""
    with errors_as_exit_codes():
        from splitrank.config import load_config
        from splitrank.federation.sizes import check_if_known

        check_if_known(load_config(config, overrides or []))
        print(f"{config}: all settings are in order")


@config_app.command("explain")
def config_explain(
    key: Annotated[str, typer.Argument(metavar="KEY")],
) -> None:
    """Say what a setting does, which values it may have, its default, and when it is read.

    KEY is a setting, such as budget.latency_s, or a whole table, such as budget.
    """
    with errors_as_exit_codes():
        from splitrank.config.explain import explain

        print(explain(key))


@app.command(epilog=CONFIG_HELP)
def methods(config: ConfigArgument = "paper", overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """List adapter methods and aggregation rules: what each trains, its tags, and the bits that it sends.

    Sizes are those of CONFIG's encoder, layers and linears.
    """
    with errors_as_exit_codes():
        from splitrank.config import load_config
        from splitrank.federation.methods_report import methods_lines, methods_report

        report = methods_report(load_config(config, overrides or []))
        print(json.dumps(report, indent=2) if as_json else "\n".join(methods_lines(report)))


@cache_app.command("list")
def cache_list() -> None:
    """List the cached trunk outputs, the longest unused first."""
    with errors_as_exit_codes():
        import time

        from splitrank.learning.trunk import cache_folder, list_cache

        entries = list_cache()
        for entry in entries:
            about = entry.about
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used_at_s))
            print(
                f"{entry.key[:12]}  {entry.size_bytes / 1e6:10,.1f} MB  {used}  {about['texts']:>9,} texts  "
                f"layer {about['cut_layer']}  {about['precision']}  {about['model']}"
            )
        total = sum(entry.size_bytes for entry in entries)
        print(f"{len(entries)} cached, {total / 1e6:,.1f} MB in {cache_folder()}", file=sys.stderr)


@cache_app.command("clear")
def cache_clear() -> None:
    """Delete the cached trunk outputs that no run uses right now."""
    with errors_as_exit_codes():
        from splitrank.learning.trunk import clear_cache

        freed, kept = clear_cache()
        print(f"Freed {freed / 1e6:,.1f} MB; kept {kept} in use.", file=sys.stderr)


@deploy_app.command("init")
def deploy_init(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    server: Annotated[
        str, typer.Option("--server", metavar="HOST", help="Name or IPv4 address by which clients reach the server.")
    ] = "localhost",
    clients: Annotated[int, typer.Option("--clients", help="Number of clients.")] = 3,
    port: Annotated[int, typer.Option("--port", help="Port of the server that clients connect to.")] = 9092,
) -> None:
    """Write a folder for a deployment: settings, scripts that make keys and start machines, containers, a README.

    DIR is the folder, new or empty.
    """
    from splitrank.deployment.init import init

    with errors_as_exit_codes():
        init(folder, server=server, num_clients=clients, port=port)
        print(f"{folder} is ready; {folder}/README.md has the ten commands from here to a trained adapter.")
