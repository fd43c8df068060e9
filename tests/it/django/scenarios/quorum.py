"""The scenarios' settings, with quorum queues."""

from scenarios.settings import *  # noqa: F403

CELERY_TASK_DEFAULT_QUEUE_TYPE = "quorum"
