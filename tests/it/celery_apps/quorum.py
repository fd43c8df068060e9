"""Quorum queues on a topic exchange, as Celery's documentation asks for with native delayed delivery."""

from work import application

app = application(
    "quorum",
    task_default_queue="shop",
    task_default_queue_type="quorum",
    task_default_exchange="shop",
    task_default_exchange_type="topic",
    task_default_routing_key="shop",
)
