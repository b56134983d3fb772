"""The commands. Results go to stdout, progress and messages to stderr; exit codes: 0 done, 1 failed, 2 bad usage or
settings, 3 plan infeasible. Imports stand inside the commands, so that `--help` and `plan` load neither torch nor
transformers."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from splitrank.errors import InfeasibleError, InputError, RunError
from splitrank.logs import show_log
from splitrank.progress import show_bars

app = typer.Typer(
    name="splitrank",
    help="Federated split LoRA fine-tuning under radio, time and energy budgets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
config_app = typer.Typer(help="Show or check the settings of a preset or file.", no_args_is_help=True)
cache_app = typer.Typer(help="List or clear the cached output of frozen trunks.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(cache_app, name="cache")
deploy_app = typer.Typer(help="Put a federation on real machines, through Flower.", no_args_is_help=True)
app.add_typer(deploy_app, name="deploy")

ConfigArgument = Annotated[
    str, typer.Argument(metavar="[CONFIG]", help="A preset (offline, paper, edge) or a TOML file.", show_default=True)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, such as federation.rounds=5. Repeatable."),
]
JobsOption = Annotated[int, typer.Option("--jobs", min=0, help="Processes at a time; 0 = one per core.")]
RayOption = Annotated[
    str | None, typer.Option("--ray", metavar="ADDRESS", help="Run on a Ray cluster instead; its address, or auto.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _fail(message: str, code: int) -> typer.Exit:
    for line in message.splitlines():
        print(f"Error: {line}", file=sys.stderr)
    return typer.Exit(code)


@contextmanager
def _errors_as_exit_codes() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise _fail(str(error), 2) from None
    except InfeasibleError as error:
        raise _fail(str(error), 3) from None
    except RunError as error:
        raise _fail(str(error), 1) from None
    except KeyboardInterrupt:
        raise _fail("Interrupted.", 1) from None
    except BrokenPipeError:  # whoever read our output has gone; Python must not complain about it on leaving
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise _fail(f"The operating system refused{where}: {error.strerror or error}", 1) from None


@contextmanager
def _leave_at_once_when_interrupted() -> Iterator[None]:
    """For the seconds in which large libraries are imported: they turn a Ctrl-C into errors of their own."""

    def leave(*_: object) -> None:
        os.write(2, b"Error: Interrupted; nothing was written\n")
        os._exit(1)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"splitrank {version('splitrank')}")
        raise typer.Exit


@app.callback()
def _main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    show_log()
    show_bars()


@app.command()
def plan(
    config: ConfigArgument = "offline",
    overrides: SetOption = None,
    round: Annotated[int, typer.Option("--round", min=1, help="Round whose channels are drawn.")] = 1,
    as_json: JsonOption = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Also draw the plan into a .png, .pdf or .svg file.")
    ] = None,
) -> None:
    """Say which LoRA rank and which frequencies fit the budgets, without data or weights.

    CONFIG is a preset (offline, paper, edge) or a TOML file. Exit code 3 if no rank fits.
    """
    with _errors_as_exit_codes():
        from splitrank.config import load_config
        from splitrank.federation.plan_report import plan_lines, plan_report

        settings = load_config(config, overrides or [])
        report = plan_report(settings, round)
        if plot:
            from splitrank.studies.plan_plot import plot_plan

            plot_plan(settings, round, plot)
            print(f"Picture: {plot}", file=sys.stderr)
        print(json.dumps(report, indent=2) if as_json else "\n".join(plan_lines(report)))
    if report["status"] == "infeasible":
        raise typer.Exit(3)


@app.command()
def data(config: ConfigArgument = "offline", overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Show what a run would make of its texts, without training: rows, classes, lengths, and what looks wrong.

    CONFIG is a preset (offline, paper, edge) or a TOML file.
    """
    with _errors_as_exit_codes():
        from splitrank.config import load_config

        settings = load_config(config, overrides or [])
        with _leave_at_once_when_interrupted():
            from splitrank.federation.data import data_summary

        summary = data_summary(settings)
        lines = (*summary.reading_lines(), *summary.length_lines(), summary.worth_line())
        print(json.dumps(summary.to_json(), indent=2, ensure_ascii=False) if as_json else "\n".join(lines))


@app.command()
def run(
    config: Annotated[
        str | None,
        typer.Argument(help="A preset (offline, paper, edge) or a TOML file; offline if left out.", show_default=False),
    ] = None,
    overrides: SetOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder; the next free runs/<preset>-<n> if left out.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in --out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train together: plan, train and aggregate round after round on real text.

    CONFIG is a preset (offline, paper, edge) or a TOML file; offline if left out.
    """
    with _errors_as_exit_codes():
        from splitrank.config import load_config

        if resume and out is None:
            raise InputError("--resume needs --out with the folder of the run to go on with")
        settings = None if resume and config is None else load_config(config or "offline", overrides or [])

        with _leave_at_once_when_interrupted():
            from splitrank.federation import run_folder
            from splitrank.federation.export_forms import export_folder
            from splitrank.federation.loop import run as run_rounds
            from splitrank.federation.round_lines import round_lines
            from splitrank.federation.tracking import tracked
            from splitrank.progress import track

        if resume:
            assert out is not None
            settings = run_folder.resumed_config(out, settings, overrides or [])
        assert settings is not None
        with nullcontext(out) if out else run_folder.next_free_folder(Path(config or "offline").stem) as folder:
            done = run_folder.num_recorded(folder) if resume else 0
            rounds = tracked(run_rounds(settings, folder, resume=resume), settings.run.tracking, folder)
            shown = (record.to_json() for record in rounds) if as_json else round_lines(rounds, settings, folder)
            try:
                for line in track(shown, "rounds", total=settings.federation.rounds + 1, done=done):
                    print(line, flush=True)
            except KeyboardInterrupt:
                hint = f"go on with: splitrank run --resume --out {folder}"
                what = hint if (folder / "config.toml").exists() else "nothing was written"
                raise _fail(f"Interrupted; {what}", 1) from None
            except OSError as error:
                if isinstance(error, BrokenPipeError):
                    raise
                what = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
                raise RunError(
                    f"{what}; when that is mended, go on with: splitrank run --resume --out {folder}"
                ) from None
        _write_report_of_run(folder)
        result = export_folder(settings)
        print(f"Run folder: {folder}  ({result}: {folder / result})", file=sys.stderr)
    if not any(record.trained for record in run_folder.read_records(folder)):
        raise typer.Exit(3)


def _write_report_of_run(folder: Path) -> None:
    from splitrank.studies.report import write_report
    from splitrank.studies.run_reader import read_run

    write_report([read_run(folder)], folder / "report.html", folder.name)


@app.command()
def predict(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a finished run.")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to classify.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A CSV, TSV, JSONL or Parquet file of texts.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Classify texts with a finished run's adapter.

    RUN_DIR is the folder of a finished run; TEXT... are the texts, or give --file.
    """
    with _errors_as_exit_codes():
        if bool(texts) == bool(file):
            raise InputError("predict needs texts or --file FILE, one of them")

        with _leave_at_once_when_interrupted():
            from splitrank.federation.export import predict as predict_texts
            from splitrank.federation.export import texts_of_file
            from splitrank.learning.text_rules import checked_texts

        wanted = texts_of_file(run_dir, file) if file else checked_texts(list(texts or []))
        for text, prediction in zip(wanted, predict_texts(run_dir, wanted), strict=True):
            if as_json:
                row: dict[str, Any] = {
                    "label": prediction.label,
                    "probability": prediction.probability,
                    "text": text,
                }
                print(json.dumps(row, ensure_ascii=False))
            else:
                shown = textwrap.shorten(text, 80, placeholder="...")
                print(f"{prediction.label}	{prediction.probability:.3f}	{shown}")


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.toml", help="What varies: [grid] or [[list]], and seeds.")],
    jobs: JobsOption = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; runs/<name of the file> if left out.")] = None,
    ray: RayOption = None,
) -> None:
    """Run every combination of a file's settings; the same command again runs what is missing.

    SWEEP.toml names a base, [set] for what all trials share, [grid] or [[list]] for what varies, and seeds; an
    example stands in docs/studies.md. Leaves results.csv, results.parquet, report.html, and a run folder per trial.
    """
    with _errors_as_exit_codes():
        from splitrank.studies.sweep import read_sweep

        trials = read_sweep(file)
        with _leave_at_once_when_interrupted():
            from splitrank.studies.study import run_sweep

        folder = out or Path("runs") / file.stem
        _print_study(run_sweep(trials, folder, file.stem, jobs=_jobs(jobs), ray_address=ray), folder)
        print(f"Results: {folder / 'results.csv'}  (report: {folder / 'report.html'})", file=sys.stderr)


@app.command()
def reproduce(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT")],
    preset: Annotated[str, typer.Option("--preset", help="small (a laptop), paper (a GPU) or edge.")] = "small",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds, from 0.")] = 3,
    overrides: SetOption = None,
    jobs: JobsOption = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; runs/reproduce-<preset> if left out.", show_default=False)
    ] = None,
    ray: RayOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost here, after 20 s.")] = False,
) -> None:
    """Repeat the paper's experiments: a table, a figure, and a verdict on each thing that the paper expects.

    EXPERIMENT is placement, rank, latency, energy or all; with --preset edge latency, energy, bandwidth, distance or
    all. The same command again runs what is missing.
    """
    with _errors_as_exit_codes():
        from splitrank.config import parse_overrides
        from splitrank.studies.experiments import chosen_experiments, experiment_trials, read_study

        study, changed = read_study(preset), parse_overrides(overrides or [])
        experiments = {
            name: experiment_trials(study, name, changed, range(seeds))
            for name in chosen_experiments(study, experiment)
        }
        if dry_run:
            with _leave_at_once_when_interrupted():
                from splitrank.studies.cost import dry_run as costs

            for line in costs(experiments, _jobs(jobs)):
                print(line, flush=True)
            return
        with _leave_at_once_when_interrupted():
            from splitrank.studies.reproduce import reproduce as repeat

        folder, failed = out or Path("runs") / f"reproduce-{preset}", []
        for name, trials in experiments.items():
            print(f"{name}, {len(trials)} trials", flush=True)
            try:
                lines = repeat(study, name, trials, folder / name, jobs=_jobs(jobs), ray_address=ray)
                _print_study(lines, folder)
            except RunError as error:
                failed.append(str(error))
        if failed:
            raise RunError("\n".join(failed))


def _jobs(jobs: int) -> int:
    return jobs or os.cpu_count() or 1


def _print_study(lines: Iterator[str], folder: Path) -> None:
    try:
        for line in lines:
            print(line, flush=True)
    except KeyboardInterrupt:
        raise _fail(f"Interrupted; the same command goes on with {folder}", 1) from None


@app.command()
def report(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of runs or of sweeps.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File; report.html here, for one run in its folder.", show_default=False),
    ] = None,
) -> None:
    """Draw runs, one or several overlaid, as one HTML file that opens without a network."""
    with _errors_as_exit_codes():
        from splitrank.studies.report import check_same_experiment, read_runs, write_report

        if out is not None and out.suffix != ".html":
            raise InputError(f"--out must be an .html file, got {out}; try --out report.html")
        runs, unreadable = read_runs(run_dirs)
        for problem in unreadable:
            print(f"Error: {problem}", file=sys.stderr)
        if not runs:
            if not unreadable:
                raise InputError(f"RUN_DIR must be a run or a sweep with trials, got {run_dirs[0]} without any")
            raise typer.Exit(2)
        check_same_experiment(runs)
        file = out or (run_dirs[0] / "report.html" if len(run_dirs) == 1 else Path("report.html"))
        write_report(runs, file, ", ".join(path.name for path in run_dirs))
        print(file)
        if unreadable:
            raise typer.Exit(1)


@config_app.command("show")
def config_show(config: ConfigArgument = "offline", overrides: SetOption = None) -> None:
    """Print all settings that have an effect, defaults included, as TOML."""
    with _errors_as_exit_codes():
        from splitrank.config import load_config, to_toml

        print(to_toml(load_config(config, overrides or [])), end="")


@config_app.command("check")
def config_check(config: ConfigArgument = "offline", overrides: SetOption = None) -> None:
    """Check all settings and report every broken rule at once."""
    with _errors_as_exit_codes():
        from splitrank.config import load_config
        from splitrank.federation.sizes import check_if_known

        check_if_known(load_config(config, overrides or []))
        print(f"{config}: all settings are in order")


@config_app.command("explain")
def config_explain(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A setting, such as budget.latency_s, or a table.")],
) -> None:
    """Say what a setting does, which values it may have, its default, and when it is read."""
    with _errors_as_exit_codes():
        from splitrank.config.explain import explain

        print(explain(key))


@app.command()
def methods(config: ConfigArgument = "paper", overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """List adapter methods and aggregation rules: what each trains, its tags, and the bits that it sends.

    Sizes are those of CONFIG's encoder, layers and linears.
    """
    with _errors_as_exit_codes():
        from splitrank.config import load_config
        from splitrank.federation.methods_report import methods_lines, methods_report

        report = methods_report(load_config(config, overrides or []))
        print(json.dumps(report, indent=2) if as_json else "\n".join(methods_lines(report)))


@cache_app.command("list")
def cache_list() -> None:
    """List the cached trunk outputs, the longest unused first."""
    with _errors_as_exit_codes():
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
    with _errors_as_exit_codes():
        from splitrank.learning.trunk import clear_cache

        freed, kept = clear_cache()
        print(f"Freed {freed / 1e6:,.1f} MB; kept {kept} in use.", file=sys.stderr)


@deploy_app.command("init")
def deploy_init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New or empty folder.")],
    server: Annotated[
        str, typer.Option("--server", metavar="HOST", help="Name or address by which clients reach the server.")
    ] = "localhost",
    clients: Annotated[int, typer.Option("--clients", help="How many clients there are to be.")] = 3,
    port: Annotated[int, typer.Option("--port", help="The server's port that clients reach.")] = 9092,
) -> None:
    """Write what a deployment needs: settings, keys' script, proxy, start scripts, containers, ten commands."""
    from splitrank.deployment.init import init

    with _errors_as_exit_codes():
        init(folder, server=server, num_clients=clients, port=port)
        print(f"{folder} is ready; {folder}/README.md has the ten commands from here to a trained adapter.")
