"""`flywheel run --help` lists the parameters of the pipeline, from the config sections."""

from typing import Any

from typer.core import TyperCommand


class WithParameters(TyperCommand):
    """A command whose help ends with the parameters. The sections are imported for that help only."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from ..components.runtime import config

        with formatter.section("Parameters (-p NAME=VALUE, or lines NAME: VALUE in the file of --config)"):
            rows = []
            for section in config.FLYWHEEL:
                for given in config.parameters_of(section):
                    default = "required: --data" if given.default is config.REQUIRED else f"default: {given.default!r}"
                    rows.append((given.name, f"{given.description}  [{default}]"))
            formatter.write_dl(rows)
