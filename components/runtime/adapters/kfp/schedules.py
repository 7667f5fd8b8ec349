"""Recurring runs of Kubeflow Pipelines: by name, one of each, never two runs of one at once."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import kfp_server_api as api

from ...compiling import compiled
from ...config import Platform
from ...errors import UserError
from ...ports import Schedule
from ..names import checked
from .cron import explained as in_words
from .cron import five_fields, six_fields
from .runs import OVER
from .server import Server, explained

LOOK_S = 2.0


class KfpSchedules:
    """Schedules of one API server. A schedule pins a version: made again by newer code, it is another one."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self.server = Server(platform.runs)

    def put(self, schedule: Schedule, say: Callable[[str], None]) -> str:
        cron = six_fields(schedule.cron)
        former = self._named(checked(schedule.name))
        reference = self.server.upload(schedule.pipeline, compiled(schedule.pipeline, self._platform))
        wanted = api.V2beta1RecurringRun(
            experiment_id=self.server.experiment,
            display_name=schedule.name,
            description=f"{schedule.pipeline} {in_words(schedule.cron)}",
            mode=api.RecurringRunMode.DISABLE if schedule.paused else api.RecurringRunMode.ENABLE,
            trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=cron)),
            max_concurrency=1,
            no_catchup=True,
            pipeline_version_reference=reference,
            runtime_config=api.V2beta1RuntimeConfig(parameters=dict(schedule.parameters)),
        )
        same = [each for each in former if _content(each) == _content(wanted)]
        for other in former:
            if other not in same[:1]:
                self._delete(other, say)
        if same:
            return "unchanged"
        with explained(f"schedule {schedule.name} cannot be made"):
            self.server.recurring.recurring_run_service_create_recurring_run(wanted)
        return "replaced" if former else "created"

    def pause(self, name: str) -> None:
        for found in self._there(name):
            with explained(f"schedule {name} cannot be paused"):
                self.server.recurring.recurring_run_service_disable_recurring_run(found.recurring_run_id)

    def resume(self, name: str) -> None:
        for found in self._there(name):
            with explained(f"schedule {name} cannot be resumed"):
                self.server.recurring.recurring_run_service_enable_recurring_run(found.recurring_run_id)

    def delete(self, name: str, say: Callable[[str], None]) -> None:
        for found in self._there(name):
            self._delete(found, say)

    def _delete(self, found: api.V2beta1RecurringRun, say: Callable[[str], None]) -> None:
        """Pause it, wait for its run, delete it: by itself Kubeflow would kill the run, and show it as running on."""
        name, id = found.display_name, found.recurring_run_id
        with explained(f"schedule {name} cannot be deleted"):
            self.server.recurring.recurring_run_service_disable_recurring_run(id)
            said = ""
            while working := [
                run.display_name for run in self.server.our_runs(recurring_run_id=id) if run.state not in OVER
            ]:
                if said != working[0]:
                    said = working[0]
                    say(
                        f"schedule {name} is paused; its run {said} is waited for (flywheel runs cancel {said} ends it)"
                    )
                time.sleep(LOOK_S)
            self.server.recurring.recurring_run_service_delete_recurring_run(id)

    def _there(self, name: str) -> list[api.V2beta1RecurringRun]:
        found = self._named(checked(name))
        if not found:
            raise UserError(f"there is no schedule {name}.", "flywheel schedule list")
        return found

    def _named(self, name: str) -> list[api.V2beta1RecurringRun]:
        with explained(f"schedule {name} cannot be looked for"):
            return list(self._listed(display_name=name))

    def _listed(self, **equal: str) -> Any:
        listing = partial(
            self.server.recurring.recurring_run_service_list_recurring_runs, experiment_id=self.server.experiment
        )
        return self.server.listed(listing, "recurring_runs", **equal)

    def _schedule(self, found: api.V2beta1RecurringRun) -> Schedule:
        pipeline, parameters = self.server.asked_for(found)
        cron = _cron(found)
        return Schedule(
            name=found.display_name,
            pipeline=pipeline,
            parameters=parameters,
            cron=five_fields(cron),
            paused=found.status != "ENABLED",
            says=in_words(five_fields(cron)) if cron else f"every {found.trigger.periodic_schedule.interval_second} s",
        )

    def list(self) -> list[Schedule]:
        with explained("the schedules cannot be listed"):
            return [self._schedule(found) for found in self._listed()]


def _cron(found: api.V2beta1RecurringRun) -> str:
    schedule = found.trigger.cron_schedule
    return str(schedule.cron) if schedule else ""


def _content(found: api.V2beta1RecurringRun) -> tuple[object, ...]:
    """What makes it the schedule that it is. Whether it is paused is a person's to say."""
    reference, config = found.pipeline_version_reference, found.runtime_config
    return (
        _cron(found),
        reference and reference.pipeline_version_id,
        (config.parameters if config else None) or {},
        found.max_concurrency in (1, "1"),
        found.no_catchup,
    )
