"""Celery tasks that are part of the transaction. Copy this file.

    send_receipt.enqueue(order.pk)                               # instead of send_receipt.delay(order.pk)
    send_receipt.enqueue_async([order.pk], countdown=60)         # instead of send_receipt.apply_async(...)

A row in aftercommit.outbox takes the place of the message. aftercommit sends it when the transaction has committed, and
workers can see what it wrote; if the transaction rolls back, there is nothing to send.
"""

import uuid
from datetime import timedelta

from celery.contrib.django.task import DjangoTask
from django.db import models
from django.utils import timezone
from kombu.utils.json import dumps


class JsonText(models.TextField):
    """A column of type json that is given text: it reaches the worker as Celery itself would have written it."""

    def db_type(self, connection):
        return "json"


class Outbox(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    task = models.TextField()
    args = JsonText(null=True)
    kwargs = JsonText(null=True)
    key = models.TextField(null=True)
    queue = models.TextField(null=True)
    headers = JsonText(null=True)
    priority = models.SmallIntegerField(null=True)
    run_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(null=True)
    options = JsonText(null=True)

    class Meta:
        managed = False  # `aftercommit init` makes it
        db_table = '"aftercommit"."outbox"'


def enqueue(task, *args, **kwargs):
    """As `task.delay(*args, **kwargs)`, in the open transaction. Returns the task's id."""
    return enqueue_async(task, args, kwargs)


def enqueue_async(task, args=(), kwargs=None, *, task_id=None, countdown=None, eta=None, expires=None, **options):
    """As `task.apply_async(...)`, in the open transaction. Returns the task's id.

    `key`: tasks of one key reach the broker in the order of their commits. `queue`, `priority` and `headers` are Celery's,
    and so are the other options (time_limit, ignore_result, link, ...).
    """
    now = timezone.now()
    if countdown is not None:
        eta = now + timedelta(seconds=countdown)
    if isinstance(expires, (int, float)):
        expires = now + timedelta(seconds=expires)
    columns = {name: options.pop(name, None) for name in ("key", "queue", "priority")}
    headers = options.pop("headers", None)
    row = Outbox.objects.create(
        id=task_id or uuid.uuid4(),
        task=getattr(task, "name", task),
        args=dumps(list(args)),
        kwargs=dumps(kwargs or {}),
        headers=dumps(headers) if headers else None,
        run_at=eta,
        expires_at=expires,
        options=dumps(options) if options else None,
        **columns,
    )
    return str(row.id)


class OutboxTask(DjangoTask):
    """The class of all tasks of an app: `Celery("shop", task_cls="orders.outbox:OutboxTask")`."""

    abstract = True
    enqueue = enqueue
    enqueue_async = enqueue_async
