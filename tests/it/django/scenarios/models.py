from django.db import models


class Entity(models.Model):
    """What the transactions write and the tasks look for."""

    scenario = models.TextField(db_index=True)
    value = models.IntegerField(default=0)


class Run(models.Model):
    """One attempt of a task, as the worker saw it. Written in autocommit, whatever becomes of the attempt."""

    scenario = models.TextField(db_index=True)
    task_id = models.TextField()
    retries = models.IntegerField()
    at = models.FloatField()
    found = models.BooleanField(null=True)
    details = models.JSONField(null=True)
