"""`flywheel run --help` lists the parameters of the pipeline, from the config sections."""

from typing import Any

from typer.core import TyperCommand


class WithParameters(TyperCommand):
    """A command whose help ends with the parameters. The sections are imported for that help only."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from ..components.runtime import config

        with formatter.section("Parameters (-p NAME=VALUE, or lines NAME: VALUE in the file of --config)"):
            rows = []
            for section in config.SECTIONS:
                for name, field in section.model_fields.items():
                    default = "required: --data" if field.is_required() else f"default: {field.default!r}"
                    rows.append((name, f"{field.description}  [{default}]"))
            formatter.write_dl(rows)
