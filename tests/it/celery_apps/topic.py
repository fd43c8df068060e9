"""A queue that a topic exchange finds by its routing key."""

from kombu import Exchange, Queue
from work import application

app = application(
    "topic",
    task_queues=[Queue("mail", Exchange("shop", type="topic"), routing_key="mail.#")],
    task_default_queue="mail",
)
