"""The command `flywheel`. Modules are imported where they are used: `flywheel --help` has to be quick."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from . import remote
from .options import (
    PORT,
    ROOT,
    Config,
    Data,
    Endpoint,
    Json,
    Parameters,
    PlatformFile,
    Port,
    Root,
    platform_of,
    print_json,
)
from .parameters import WithParameters

EXIT_CODES = (
    "Exit codes: 0 done, 1 a step failed or a check did not pass, 2 wrong input, 3 a backend failed or is away, "
    "4 the gate kept the champion, 130 interrupted."
)
app = typer.Typer(
    help="Train, judge, register and serve models, on this machine or on a cluster. " + EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _run(
    pipeline: str, parameters: dict[str, object], root: Path, platform: Path | None, port: int, as_json: bool
) -> NoReturn:
    from . import running

    outcome = running.run(parameters, platform_of(root, platform), root, port, quiet=as_json, pipeline=pipeline)
    if as_json:
        print_json(outcome.document())
    raise typer.Exit(outcome.exit_code)


@app.command(cls=WithParameters)
def run(
    data: Data = "",
    config: Config = None,
    parameter: Parameters = None,
    root: Root = ROOT,
    platform: PlatformFile = None,
    port: Port = PORT,
    as_json: Json = False,
) -> None:
    """Run the whole flywheel on a data set, step by step, and serve what passes the gate.

    A run that was killed goes on where it was: give the same command again.

    \b
    Examples:
      flywheel run --data path/to/data.yaml
      flywheel run --data path/to/data.yaml -p epochs=20 -p image_size=320 --json
    """
    from . import running

    parameters = running.read_parameters(data, config, parameter or [])
    _run("flywheel", parameters, root, platform, port, as_json)


app.command(cls=WithParameters)(remote.submit)
app.add_typer(remote.runs, name="runs")
app.add_typer(remote.schedule, name="schedule")


@app.command()
def compile(
    out: Annotated[Path, typer.Option("--out", help="Folder that receives the YAML files.")] = Path("build/compiled"),
    components: Annotated[
        Path | None, typer.Option("--components", help="Folder that receives the components only, with a page.")
    ] = None,
    root: Root = ROOT,
    platform: PlatformFile = None,
    as_json: Json = False,
) -> None:
    """Compile every pipeline and every component to KFP YAML, with the platform filled in.

    \b
    Examples:
      flywheel compile --platform cluster.yaml --out build/compiled
      flywheel compile --platform cluster.yaml --components build/components
    """
    from . import catalogue

    chosen = platform_of(root, platform)
    made = catalogue.compile_components(chosen, components) if components else catalogue.compile_all(chosen, out)
    paths = [str(path) for path in made]
    if as_json:
        print_json(paths)
    else:
        print(*paths, sep="\n")


@app.command()
def serve(root: Root = ROOT, platform: PlatformFile = None, port: Port = PORT) -> None:
    """Serve all endpoints of this machine until Ctrl-C: a gateway, and one model server a version.

    On a cluster, which serves by itself, keep its endpoints: a canary whose rollout was killed is taken back.

    \b
    Examples:
      flywheel serve
      flywheel serve --port 8700
      flywheel serve --platform cluster.yaml
    """
    chosen = platform_of(root, platform)
    if chosen.serving_namespace:
        from ..components.serving import keeper

        raise typer.Exit(keeper.keep(chosen, lambda line: print(line, flush=True)))
    from ..components.serving import serve as serving

    raise typer.Exit(serving.serve(chosen, port, lambda line: print(line, flush=True)))


@app.command()
def predict(
    image: Annotated[Path, typer.Argument(help="A picture.")],
    endpoint: Endpoint = "detector",
    out: Annotated[Path | None, typer.Option("--out", help="Where the picture with its boxes goes.")] = None,
    root: Root = ROOT,
    platform: PlatformFile = None,
    as_json: Json = False,
) -> None:
    """Ask an endpoint what is on a picture, and draw the boxes.

    \b
    Examples:
      flywheel predict photo.jpg
      flywheel predict photo.jpg --out boxes.jpg --json
    """
    from . import asking

    answer = asking.predict(image, endpoint, out or Path(f"{image.stem}.boxes.jpg"), platform_of(root, platform))
    if as_json:
        print_json(answer)
    else:
        asking.show(answer)


@app.command()
def traffic(
    folder: Annotated[Path, typer.Argument(help="Folder of recorded images, with all below it.")],
    endpoint: Endpoint = "detector",
    rate: Annotated[float, typer.Option("--rate", help="Requests a second, on average.", min=0.001, max=10_000)] = 20.0,
    requests: Annotated[int, typer.Option("--requests", help="Requests at most; 0 is without limit.", min=0)] = 0,
    seconds: Annotated[float, typer.Option("--seconds", help="Seconds at most; 0 is without limit.", min=0)] = 60.0,
    seed: Annotated[int | None, typer.Option("--seed", help="Makes times and order the same again.")] = None,
    root: Root = ROOT,
    platform: PlatformFile = None,
    as_json: Json = False,
) -> None:
    """Send recorded images to an endpoint at random times, and count by version what comes back.

    Ctrl-C ends it with what came back so far.

    \b
    Examples:
      flywheel traffic path/to/images
      flywheel traffic path/to/images --rate 50 --requests 1000 --seed 1 --json
    """
    from . import traffic as driving

    found, interrupted = driving.drive(folder, endpoint, rate, requests, seconds, seed, platform_of(root, platform))
    if as_json:
        print_json(found)
    else:
        driving.show(found)
    raise typer.Exit(130 if interrupted else int(found["failed"] > 0))


@app.command()
def status(
    endpoint: Endpoint = "detector", root: Root = ROOT, platform: PlatformFile = None, as_json: Json = False
) -> None:
    """Show who serves an endpoint, since when, and why.

    \b
    Examples:
      flywheel status
      flywheel status --endpoint detector --json
    """
    from . import asking

    found = asking.status(endpoint, platform_of(root, platform))
    if as_json:
        print_json(found)
    else:
        asking.show_status(found)


@app.command()
def history(
    endpoint: Endpoint = "detector",
    at: Annotated[str, typer.Option("--at", help="A time: who served then? Local, or with a zone.")] = "",
    root: Root = ROOT,
    platform: PlatformFile = None,
    as_json: Json = False,
) -> None:
    """Show who served an endpoint from when to when, why, on which data, and what the gate had said.

    \b
    Examples:
      flywheel history
      flywheel history --at '2026-11-21 10:00' --json
    """
    from . import history as past

    found = past.told(endpoint, at, platform_of(root, platform))
    if as_json:
        print_json(found)
    else:
        past.show(found)


@app.command()
def watch(
    data: Annotated[str, typer.Option("--data", help="Data set whose changes start the flywheel.")] = "",
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file of parameters, of flywheel and of monitor.")
    ] = None,
    every: Annotated[
        float, typer.Option("--every", help="Seconds between two runs of the monitor; 0 is never.", min=0)
    ] = 600.0,
    endpoint: Annotated[str, typer.Option("--endpoint", help="Name of the endpoint, over the one in the file.")] = "",
    once: Annotated[bool, typer.Option("--once", help="Do what is due now, and end.")] = False,
    root: Root = ROOT,
    platform: PlatformFile = None,
    port: Port = PORT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object a line, for scripts.")] = False,
) -> None:
    """Let the flywheel turn by itself until Ctrl-C: serve, look for drift and new data, do what was asked for.

    Killed, it goes on with what was asked for: give the same command again.

    \b
    Examples:
      flywheel watch --data path/to/data.yaml --config small.yaml --every 600
      flywheel watch --once --json
    """
    from . import watch as watching

    given = (data, config, every, endpoint, once)
    raise typer.Exit(watching.watch(*given, platform_of(root, platform), root, port, watching.sayer(as_json)))


@app.command()
def rollout(
    version: Annotated[str, typer.Option("--version", help="Number in the registry; the highest without it.")] = "",
    config: Config = None,
    parameter: Parameters = None,
    endpoint: Endpoint = "detector",
    git: Annotated[
        str, typer.Option("--git", help="Repository that gets what serves, a URL or a path, if it is promoted.")
    ] = "",
    git_branch: Annotated[str, typer.Option("--git-branch", help="Branch of that repository.")] = "main",
    git_path: Annotated[str, typer.Option("--git-path", help="Folder of all endpoints in it.")] = "endpoints",
    root: Root = ROOT,
    platform: PlatformFile = None,
    port: Port = PORT,
    as_json: Json = False,
) -> None:
    """Try a registered release as a canary beside the champion: promoted, taken back or held, by what is counted.

    It needs traffic: users, or `flywheel traffic FOLDER` in another terminal.

    \b
    Examples:
      flywheel rollout --version 3
      flywheel rollout -p canary_steps=5,25,100 -p replays=500 --json
      flywheel rollout --platform cluster.yaml --git https://git.example/team/serving.git
    """
    from . import running

    given = running.gather(config, [*(parameter or []), f"endpoint={endpoint}", f"version={version}"])
    parameters = running.check("rollout", given)
    if not git:
        _run("rollout", parameters, root, platform, port, as_json)
    from . import gitops

    target = gitops.Target(git, git_branch, git_path.rstrip("/"))
    outcome, entered = gitops.roll(parameters, platform_of(root, platform), root, port, as_json, target)
    if as_json:
        print_json(outcome.document() | {"git": vars(entered)})
    else:
        gitops.show(entered)
    raise typer.Exit(outcome.exit_code)


@app.command()
def promote(
    endpoint: Endpoint = "detector", root: Root = ROOT, platform: PlatformFile = None, as_json: Json = False
) -> None:
    """Make the canary of an endpoint its champion, now. A rollout that is at work stops.

    \b
    Examples:
      flywheel promote
    """
    _decide("promote", endpoint, root, platform, as_json)


@app.command()
def rollback(
    endpoint: Endpoint = "detector", root: Root = ROOT, platform: PlatformFile = None, as_json: Json = False
) -> None:
    """Take the canary of an endpoint away; without one, go back to the champion before. A rollout at work stops.

    \b
    Examples:
      flywheel rollback --endpoint detector
    """
    _decide("rollback", endpoint, root, platform, as_json)


def _decide(how: str, endpoint: str, root: Path, platform: Path | None, as_json: bool) -> None:
    from . import deciding

    document = deciding.decide(how, endpoint, platform_of(root, platform))
    if as_json:
        print_json(document)
    else:
        deciding.show(document)


@app.command()
def monitor(
    config: Config = None,
    parameter: Parameters = None,
    endpoint: Endpoint = "detector",
    root: Root = ROOT,
    platform: PlatformFile = None,
    port: Port = PORT,
    as_json: Json = False,
) -> None:
    """Look at the last requests of an endpoint: quiet, drifted, or harmed so that labels are asked for.

    \b
    Examples:
      flywheel monitor
      flywheel monitor --endpoint detector -p window=500 --json
    """
    from . import running

    given = running.gather(config, [*(parameter or []), f"endpoint={endpoint}"])
    _run("monitor", running.check("monitor", given), root, platform, port, as_json)


@app.command()
def batch(
    images: Annotated[str, typer.Option("--images", help="Folder of images, or Parquet: a path, s3:// or gs://.")] = "",
    version: Annotated[
        str, typer.Option("--version", help="Number in the registry; the endpoint's champion without it.")
    ] = "",
    config: Config = None,
    parameter: Parameters = None,
    endpoint: Endpoint = "detector",
    root: Root = ROOT,
    platform: PlatformFile = None,
    as_json: Json = False,
) -> None:
    """Predict every image of a folder, or of Parquet, each once, into Parquet files; no server is asked.

    Killed, it goes on where it was: give the same command again.

    \b
    Examples:
      flywheel batch --images path/to/images
      flywheel batch --images s3://bucket/images.parquet --version 3 -p workers=8 --platform cluster.yaml
    """
    from . import running

    given = running.gather(config, [*(parameter or []), f"endpoint={endpoint}", f"model_version={version}"])
    parameters = running.for_batch(given | ({"images": images} if images else {}))
    _run("batch_predict", parameters, root, platform, PORT, as_json)


@app.command()
def doctor(root: Root = ROOT, platform: PlatformFile = None, port: Port = PORT, as_json: Json = False) -> None:
    """Check that everything a run needs is there; for every ✗ the command that mends it.

    \b
    Examples:
      flywheel doctor
      flywheel doctor --json
    """
    from . import doctor as doctors

    checks = doctors.examine(platform_of(root, platform), root, port)
    if as_json:
        print_json([vars(check) for check in checks])
    else:
        doctors.show(checks)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


@app.command()
def init(
    platform: Annotated[str, typer.Option("--platform", help="Kind of cluster: kind, gke or eks.")],
    out: Annotated[Path, typer.Option("--out", help="The file.")] = Path("cluster.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a platform file for a cluster, every setting with what it means; what is yours to fill in is marked.

    \b
    Examples:
      flywheel init --platform gke
      flywheel init --platform kind --out kind.yaml --force
    """
    from . import init as beginning

    found = beginning.init(platform, out, force)
    if as_json:
        print_json(found)
    else:
        beginning.show(found)


@app.command()
def uninstall(
    platform: Annotated[Path, typer.Option("--platform", help="Platform file of the cluster.")],
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without, only tell.")] = False,
    endpoints: Annotated[bool, typer.Option("--endpoints", help="End the endpoints too.")] = False,
    as_json: Json = False,
) -> None:
    """Tell what of ours is on a cluster, and remove what the manifests made. What holds data stays, and is named.

    \b
    Examples:
      flywheel uninstall --platform cluster.yaml
      flywheel uninstall --platform cluster.yaml --yes --endpoints --json
    """
    import getpass

    from . import uninstall as leaving

    found = leaving.uninstall(platform_of(ROOT, platform), yes, endpoints, getpass.getuser())
    if as_json:
        print_json(found)
    else:
        leaving.show(found)


@app.command()
def demo(
    root: Root = ROOT / "demo",
    port: Annotated[
        int, typer.Option("--port", help="Port of the endpoint; 0 takes a free one.", min=0, max=65535)
    ] = 0,
    as_json: Json = False,
) -> None:
    """Train a detector of handwritten digits on photographs, serve it, ask it 200 times, and write a page about it.

    \b
    Examples:
      flywheel demo
      flywheel demo --root /tmp/demo
    """
    from .demo import demo as demonstration

    outcome = demonstration.play(root, port, quiet=as_json)
    if as_json:
        print_json(outcome)


def main() -> None:
    """Run the command; an error for a person ends with its message, the next command and its exit code."""
    try:
        # Not standalone, it gives the code of typer.Exit back instead of ending with it.
        code = app(standalone_mode=False)
    except KeyboardInterrupt:
        print("interrupted; nothing is left running", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        raise SystemExit(_explain(error)) from (None if hasattr(error, "exit_code") else error)
    raise SystemExit(code)


def _explain(error: Exception) -> int:
    from typer._click.exceptions import ClickException

    from ..components.runtime.errors import FlywheelError

    if isinstance(error, ClickException):
        error.show()
        return 2
    if not isinstance(error, FlywheelError):
        raise error
    print(f"error: {error.message}", file=sys.stderr)
    if error.next:
        print(f"next:  {error.next}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    main()
