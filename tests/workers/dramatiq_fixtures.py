"""Captures what Dramatiq itself writes: python dramatiq_fixtures.py redis://... FOLDER, with an empty private server."""

import json
import os
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker

url, folder = sys.argv[1:]
broker = RedisBroker(url=url)
dramatiq.set_broker(broker)


@dramatiq.actor
def work(*args, **kwargs):
    pass


@dramatiq.actor(queue_name="other")
def elsewhere(*args, **kwargs):
    pass


BIG = 2**80
CASES = [
    ("01_args", dict(args=(2, 3)), {}),
    ("02_kwargs_unicode", dict(kwargs={"who": "Łódź ☃", "n": {"a": [1, None, True]}}), {}),
    ("03_big_integers_and_floats", dict(args=(BIG, -BIG, 0.1, 1e300)), {}),
    ("04_nothing", {}, {}),
    ("05_max_retries", dict(max_retries=3, min_backoff=100, max_backoff=2000), {}),
    ("06_max_retries_none", dict(max_retries=None), {}),
    ("07_time_limit_and_age", dict(time_limit=5000, max_age=60000), {}),
    ("08_callbacks", dict(on_success="work", on_failure="elsewhere"), {}),
    ("09_results", dict(store_results=True, result_ttl=1000, pipe_ignore=True, notify_shutdown=True), {}),
    ("10_own_option", dict(trace_id="abc", tags=["a", 1]), {}),
    ("11_queue", dict(args=(1,)), {"actor": elsewhere}),
    ("12_delay", dict(args=(1,), delay=30000), {}),
    ("13_priority", dict(broker_priority=5), {}),
    ("14_pipeline", None, {}),
]

for case, options, more in CASES:
    broker.client.flushall()
    if options is None:
        (work.message(1) | elsewhere.message(2)).run()
    else:
        more.get("actor", work).send_with_options(**options)
    queues = {}
    for key in sorted(key.decode() for key in broker.client.keys("*")):
        kind = broker.client.type(key).decode()
        if kind == "list":
            queues[key] = [entry.decode() for entry in broker.client.lrange(key, 0, -1)]
        elif kind == "hash":
            queues[key] = {
                field.decode(): json.loads(value) for field, value in broker.client.hgetall(key).items()
            }
    found = {"case": case, "dramatiq": dramatiq.__version__, "broker": "redis", "keys": queues}
    with open(os.path.join(folder, case + ".json"), "w") as file:
        json.dump(found, file, indent=1, ensure_ascii=False)
        file.write("\n")
