import functools
import time

from celery import shared_task
from django.db import transaction

from .models import Entity, Run


def record(task, scenario, **fields):
    request = task.request
    Run.objects.create(scenario=scenario, task_id=request.id, retries=request.retries, **{"at": time.time()} | fields)


@shared_task(bind=True)
def look(self, scenario, entity_id):
    """What nearly every task does first: looks for the row that it is about."""
    at = time.time()
    found = Entity.objects.filter(pk=entity_id).exists()
    record(self, scenario, at=at, found=found)


@shared_task(bind=True)
def note(self, scenario, *args, **kwargs):
    """Writes down how it was called."""
    request = self.request
    details = {
        "args": args,
        "kwargs": kwargs,
        "priority": request.delivery_info.get("priority"),
        "headers": request.headers,
        "timelimit": request.timelimit,
    }
    record(self, scenario, details=details)


def atomic_task(**options):
    """A decorator as many projects have one: the task is a transaction, and tried again when it fails."""

    def decorate(body):
        @shared_task(bind=True, **options)
        @functools.wraps(body)
        def task(self, scenario, *args, **kwargs):
            record(self, scenario)
            try:
                with transaction.atomic():
                    return body(self, scenario, *args, **kwargs)
            except Exception as error:
                raise self.retry(exc=error)

        return task

    return decorate


@atomic_task(max_retries=5, default_retry_delay=0)
def fails_twice(self, scenario):
    Entity.objects.create(scenario=scenario, value=self.request.retries)
    note.enqueue(f"{scenario}/next")
    if self.request.retries < 2:
        raise RuntimeError("not yet")


@atomic_task(max_retries=5, default_retry_delay=0)
def fails_always(self, scenario):
    Entity.objects.create(scenario=scenario)
    raise RuntimeError("never")
