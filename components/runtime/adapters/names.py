"""Names of runs, which people type and adapters make files and labels of."""

import re

from ..errors import UserError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def checked(name: str) -> str:
    """The same name.

    Raises:
        UserError: It is none.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r} is no name of a run.", "use letters, digits, dots and hyphens, 128 at most")
    return name
