"""A Dramatiq application: what its actors are given goes to the file RECORD, one JSON object a line."""

import json
import os

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker

url = os.environ["BROKER_URL"]
if url.startswith("amqp"):
    broker = RabbitmqBroker(url=url, max_priority=int(os.environ.get("MAX_PRIORITY", "0")) or None)
else:
    broker = RedisBroker(url=url, namespace=os.environ.get("NAMESPACE", "dramatiq"))
dramatiq.set_broker(broker)


def note(actor, args, kwargs):
    message = dramatiq.middleware.CurrentMessage.get_current_message()
    line = json.dumps({"actor": actor, "args": args, "kwargs": kwargs, "message": message.asdict()})
    with open(os.environ["RECORD"], "ab", buffering=0) as record:
        record.write(line.encode() + b"\n")


broker.add_middleware(dramatiq.middleware.CurrentMessage())


@dramatiq.actor
def work(*args, **kwargs):
    note("work", args, kwargs)


@dramatiq.actor(queue_name="other")
def elsewhere(*args, **kwargs):
    note("elsewhere", args, kwargs)


@dramatiq.actor(min_backoff=10, max_backoff=10)
def flaky(*args, **kwargs):
    note("flaky", args, kwargs)
    message = dramatiq.middleware.CurrentMessage.get_current_message()
    if message.options.get("retries", 0) < 2:
        raise RuntimeError("not yet")
