"""The commands that have others work: submit, runs, schedule. They only parse."""

import sys
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from .options import ROOT, Config, Data, Json, Parameters, PlatformFile, Root, platform_of, print_json

if TYPE_CHECKING:
    from ..components.runtime.config import Platform
    from ..components.runtime.ports import RunState

runs = typer.Typer(help="See, follow and end the runs that others work off.", no_args_is_help=True)
schedule = typer.Typer(help="Have Kubeflow Pipelines start runs at their times.", no_args_is_help=True)

Pipeline = Annotated[str, typer.Argument(help="flywheel, monitor, rollout …: as flywheel compile names them.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name or id of the run.")]
ScheduleName = Annotated[str, typer.Argument(metavar="SCHEDULE", help="Name of the schedule.")]


def submit(
    pipeline: Pipeline = "flywheel",
    data: Data = "",
    config: Config = None,
    parameter: Parameters = None,
    name: Annotated[str, typer.Option("--name", help="Name of the run: given again, the same run is followed.")] = "",
    detach: Annotated[bool, typer.Option("--detach", help="Start it, and do not wait.")] = False,
    root: Root = ROOT,
    platform: PlatformFile = None,
    as_json: Json = False,
) -> None:
    """Start a run of a pipeline on Kubeflow Pipelines, and follow it to its end. Ctrl-C lets it go on.

    The pipeline is uploaded, if this very version of it is not there yet.

    \b
    Examples:
      flywheel submit --platform cluster.yaml --data s3://bucket/pets --config small.yaml
      flywheel submit monitor --platform cluster.yaml -p endpoint=detector --detach
      flywheel submit batch_predict --platform cluster.yaml --data s3://bucket/new-images
    """
    from . import running, submitting

    chosen = platform_of(root, platform)
    given = running.parameters_for(pipeline, data, config, parameter or [])
    state = submitting.submit(pipeline, given, name, chosen)
    if not detach:
        _follow(state, chosen, as_json)
    if as_json:
        print_json(submitting.tell(state, [], chosen).document())
    else:
        print(f"{state.request.name} is {state.state}: {state.url}\nflywheel runs show {state.request.name} --follow")


@runs.command("list")
def list_runs(
    limit: Annotated[int, typer.Option("--limit", help="Runs at most.", min=1, max=10_000)] = 20,
    root: Root = ROOT,
    platform: PlatformFile = None,
    as_json: Json = False,
) -> None:
    """List runs, the newest first: those that were submitted, scheduled or asked for by a monitor.

    \b
    Examples:
      flywheel runs list --platform cluster.yaml
      flywheel runs list --platform cluster.yaml --limit 100 --json
    """
    from . import submitting

    found = submitting.listed(limit, platform_of(root, platform))
    if as_json:
        print_json([state.plain() for state in found])
    else:
        submitting.show_list(found)


@runs.command()
def show(
    run: RunName,
    follow: Annotated[bool, typer.Option("--follow", help="Go on showing it to its end.")] = False,
    root: Root = ROOT,
    platform: PlatformFile = None,
    as_json: Json = False,
) -> None:
    """Show the steps of a run, what each said, and why it failed if it did; the exit code is the run's.

    \b
    Examples:
      flywheel runs show flywheel-20261122-030000 --platform cluster.yaml
      flywheel runs show flywheel-20261122-030000 --platform cluster.yaml --follow
    """
    from . import submitting

    chosen = platform_of(root, platform)
    state = submitting.found(run, chosen)
    if follow:
        _follow(state, chosen, as_json)
    told = submitting.looked_at(state, chosen)
    if as_json:
        print_json(told.document())
    else:
        submitting.show(told)
    raise typer.Exit(told.exit_code)


@runs.command()
def cancel(run: RunName, root: Root = ROOT, platform: PlatformFile = None) -> None:
    """End a run. What it started ends with it: its RayJob first.

    \b
    Examples:
      flywheel runs cancel flywheel-20261122-030000 --platform cluster.yaml
    """
    from . import submitting

    state = submitting.cancelled(run, platform_of(root, platform))
    print(f"{state.request.name} {f'is {state.state}' if state.over else 'is being ended'}")


@runs.command()
def logs(
    run: RunName,
    step: Annotated[str, typer.Option("--step", help="Of this step only.")] = "",
    root: Root = ROOT,
    platform: PlatformFile = None,
) -> None:
    """Print what the steps of a run have printed so far.

    \b
    Examples:
      flywheel runs logs flywheel-20261122-030000 --platform cluster.yaml --step train
    """
    from . import submitting

    for line in submitting.printed(run, step, platform_of(root, platform)):
        sys.stdout.write(line)


@schedule.command()
def create(
    schedule: ScheduleName,
    cron: Annotated[str, typer.Option("--cron", help="Minute hour day month weekday, in UTC.")],
    pipeline: Annotated[str, typer.Option("--pipeline", help="What is run: flywheel, monitor …")] = "flywheel",
    data: Data = "",
    config: Config = None,
    parameter: Parameters = None,
    root: Root = ROOT,
    platform: PlatformFile = None,
    as_json: Json = False,
) -> None:
    """Have a pipeline run at its times, never twice at once. Given again, the schedule is as it is wanted now.

    A schedule keeps the version of the pipeline that it was made with: give the command again after an upgrade.

    \b
    Examples:
      flywheel schedule create nightly --cron '0 3 * * *' --platform cluster.yaml --data s3://bucket/pets
      flywheel schedule create watch --cron '0 * * * *' --pipeline monitor --platform cluster.yaml
    """
    from . import running, scheduling

    given = running.parameters_for(pipeline, data, config, parameter or [])
    made, how = scheduling.create(schedule, pipeline, given, cron, platform_of(root, platform))
    if as_json:
        print_json(made.plain() | {"outcome": how})
    else:
        print(f"{made.name} {how}: {made.pipeline} {made.says}{'; it is paused' if made.paused else ''}")


@schedule.command("list")
def list_schedules(root: Root = ROOT, platform: PlatformFile = None, as_json: Json = False) -> None:
    """List schedules, and what their cron means.

    \b
    Examples:
      flywheel schedule list --platform cluster.yaml
    """
    from . import scheduling

    found = scheduling.listed(platform_of(root, platform))
    if as_json:
        print_json([each.plain() for each in found])
    else:
        scheduling.show(found)


@schedule.command()
def pause(schedule: ScheduleName, root: Root = ROOT, platform: PlatformFile = None) -> None:
    """Start no more runs of a schedule. One that is at work goes on.

    \b
    Examples:
      flywheel schedule pause nightly --platform cluster.yaml
    """
    from ..components.runtime.wiring import connect

    connect(platform_of(root, platform)).schedules.pause(schedule)
    print(f"{schedule} is paused; flywheel schedule resume {schedule}")


@schedule.command()
def resume(schedule: ScheduleName, root: Root = ROOT, platform: PlatformFile = None) -> None:
    """Start runs of a schedule again, from its next time on.

    \b
    Examples:
      flywheel schedule resume nightly --platform cluster.yaml
    """
    from ..components.runtime.wiring import connect

    connect(platform_of(root, platform)).schedules.resume(schedule)
    print(f"{schedule} is at work")


@schedule.command()
def delete(schedule: ScheduleName, root: Root = ROOT, platform: PlatformFile = None) -> None:
    """Delete a schedule. A run of it that is at work is waited for; Ctrl-C leaves the schedule paused.

    \b
    Examples:
      flywheel schedule delete nightly --platform cluster.yaml
    """
    from . import scheduling

    scheduling.delete(schedule, platform_of(root, platform))
    print(f"{schedule} is deleted")


def _follow(state: "RunState", chosen: "Platform", as_json: bool) -> NoReturn:
    from . import submitting

    told = submitting.followed(state, chosen, quiet=as_json)
    if as_json:
        print_json(told.document())
    raise typer.Exit(told.exit_code)
