"""A queue that serves higher priorities first, and a worker that takes one task at a time."""

from work import application

app = application(
    "priorities",
    task_default_queue="shop",
    task_queue_max_priority=10,
    worker_prefetch_multiplier=1,
    task_acks_late=True,
)
