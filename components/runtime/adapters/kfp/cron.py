"""Five-field cron, as people know it, for Kubeflow Pipelines, whose cron has six fields, the first one seconds.

It takes five fields too, and reads them as something else.
"""

from datetime import UTC, datetime

from cronsim import CronSim, CronSimError

from ...errors import UserError

HINT = "minute hour day month weekday, as in --cron '0 3 * * *': every day at 03:00 UTC"


def parsed(cron: str) -> CronSim:
    """A cron expression of five fields.

    Raises:
        UserError: It is none, or Kubeflow's cron cannot express it.
    """
    fields = cron.split()
    if len(fields) != 5:
        raise UserError(f"{cron!r} has {len(fields)} fields, and cron has five.", HINT)
    if foreign := sorted(set("#?@W") & set(cron.upper().replace("WED", ""))):
        raise UserError(f"{cron!r} has {foreign[0]}, which Kubeflow's cron does not know.", HINT)
    if any(part.strip("0123456789").upper() in ("L", "LW") for field in fields for part in field.split(",")):
        raise UserError(f"{cron!r} has L, which Kubeflow's cron does not know.", HINT)
    try:
        return CronSim(cron, datetime.now(UTC))
    except CronSimError as error:
        raise UserError(f"{cron!r} is not cron: {str(error)[0].lower()}{str(error)[1:]}.", HINT) from error


def six_fields(cron: str) -> str:
    """The same for Kubeflow: with seconds, and with Sunday as 0 only.

    Raises:
        UserError: It is no cron expression.
    """
    weekdays = parsed(cron).weekdays
    minute, hour, day, month, weekday = cron.split()
    if "*" in weekday and "," in weekday:
        raise UserError(f"{cron!r} names days of the week beside *.", HINT)
    if not weekday.startswith("*"):
        weekday = ",".join(map(str, sorted({number % 7 for number in weekdays if isinstance(number, int)})))
    return " ".join(("0", minute, hour, day, month.upper(), weekday))


def five_fields(cron: str) -> str:
    """What a schedule of Kubeflow was made of; the same text, if it has other seconds than 0."""
    second, _, rest = cron.partition(" ")
    return rest if second == "0" and len(rest.split()) == 5 else cron


def explained(cron: str) -> str:
    """What it means, for a person: "at 03:00 every day (UTC)"."""
    try:
        said = parsed(cron).explain()
    except UserError:
        return cron  # made by somebody else, with seconds
    return f"{said[0].lower()}{said[1:]} (UTC)"
