"""What the Celery applications for RabbitMQ have in common: their task tells in the worker's log how it was called."""

import json
import os
import time

from celery import Celery


def application(name, **settings):
    app = Celery(name, broker=os.environ["CELERY_BROKER_URL"])
    app.conf.update(task_ignore_result=True, worker_redirect_stdouts=False, **settings)

    @app.task(bind=True, name="work")
    def work(self, *args):
        request = self.request
        told = {
            "id": request.id,
            "at": time.time(),
            "args": args,
            "priority": request.delivery_info["priority"],
            "exchange": request.delivery_info["exchange"],
            "headers": {name: request.headers.get(name) for name in ("big", "number")} if request.headers else {},
        }
        # One write: processes of the pool share the file.
        os.write(1, f"RAN {json.dumps(told)}\n".encode())

    return app
