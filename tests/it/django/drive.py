"""Plays one scenario as a Django application, waits until the workers are done, and prints what happened as JSON.

    python drive.py A01

`sent`: ids of the tasks whose transactions committed. `runs`: what the workers ran, in order of time. Beside them, what
else the scenario wants to be looked at. The judgement is the Rust test's.
"""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import django

django.setup()

from django.db import OperationalError, connection, connections, transaction  # noqa: E402
from django.test import Client  # noqa: E402
from django.utils import timezone  # noqa: E402
from kombu.utils.json import dumps  # noqa: E402
from orders.outbox import Outbox  # noqa: E402
from scenarios.models import Entity, Run  # noqa: E402
from scenarios.tasks import fails_always, fails_twice, look, note  # noqa: E402

PATIENCE = 90  # seconds in which nothing moves; it only runs out when something is wrong


def until(what, condition):
    deadline = time.monotonic() + PATIENCE
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"still waiting after {PATIENCE} s: {what}")
        time.sleep(0.02)
    return answer


def runs_of(scenario):
    return Run.objects.filter(scenario=scenario)


def more_runs(scenario, before):
    runs = runs_of(scenario).count()
    return runs if runs > before else None


def sentinel(scenario):
    """Returns when a task that is committed now has run: what was wrongly sent before it would have run too."""
    name = f"{scenario}/sentinel"
    for _ in range(2):
        task_id = note.enqueue(name)
        until("the sentinel", Run.objects.filter(scenario=name, task_id=task_id).exists)


def report(scenario, sent, attempts=None, **more):
    """Waits until as many attempts have run as must, and then for those that must not."""
    attempts = len(sent) if attempts is None else attempts
    runs = 0
    while runs < attempts:
        before = runs
        runs = until(f"{attempts} runs of {scenario}, {before} so far", lambda: more_runs(scenario, before))
    sentinel(scenario)
    fields = ("task_id", "retries", "at", "found", "details")
    runs = list(runs_of(scenario).order_by("at").values(*fields))
    return {"sent": sent, "runs": runs, "entities": Entity.objects.filter(scenario=scenario).count(), **more}


def in_threads(count, work):
    """Runs work(number) in threads that have a connection each; returns the results."""

    def run(number):
        try:
            return work(number)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


class Session:
    """A connection of its own, and a transaction that is led step by step."""

    def __init__(self):
        self.thread = ThreadPoolExecutor(1)

    def do(self, step, *args, **kwargs):
        return self.begin_doing(step, *args, **kwargs).result(PATIENCE)

    def begin_doing(self, step, *args, **kwargs):
        return self.thread.submit(step, *args, **kwargs)

    def begin(self, isolation="READ COMMITTED"):
        self.transaction = transaction.atomic()
        self.do(self.transaction.__enter__)
        self.do(execute, f"SET TRANSACTION ISOLATION LEVEL {isolation}")

    def commit(self):
        self.do(self.transaction.__exit__, None, None, None)

    def roll_back(self, error):
        self.do(self.transaction.__exit__, type(error), error, None)

    def close(self):
        self.do(connections.close_all)
        self.thread.shutdown()


def execute(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)


def create(scenario):
    """A row and the task that looks for it."""
    return look.enqueue(scenario, Entity.objects.create(scenario=scenario).pk)


def requests(path, count, query=""):
    """Calls a view so many times from five threads; returns the answers' statuses and task ids."""

    def call(number):
        client = Client(raise_request_exception=False)
        return [client.get(f"/{path}{query}") for _ in range(count // 5)]

    answers = [answer for some in in_threads(5, call) for answer in some]
    tasks = [task for answer in answers if answer.status_code == 200 for task in answer.json()["tasks"]]
    return [answer.status_code for answer in answers], tasks


def a01():
    statuses, sent = requests("atomic/A01", 50)
    return report("A01", sent, statuses=statuses)


def a02():
    statuses, sent = requests("atomic/A02", 20, "?fail")
    return report("A02", sent, statuses=statuses)


def a03():
    statuses, _ = requests("autocommit/A03", 10, "?fail")
    return report("A03", [], attempts=20, statuses=statuses)


def a04():
    statuses, _ = requests("on_commit/A04", 20)
    return report("A04", [], attempts=20, statuses=statuses)


def b01():
    def work(number):
        with transaction.atomic():
            sent = create("B01")
            time.sleep(1)
            before_commit = time.time()
        return sent, before_commit

    work = in_threads(4, work)
    return report("B01", [sent for sent, _ in work], before_commit=dict(work))


def b02():
    client = Client(raise_request_exception=False)
    status = client.get("/autocommit/B02?fail").status_code
    return report("B02", [], attempts=2, statuses=[status])


def b03():
    before = time.time()
    sent = [look.enqueue_async(["B03", Entity.objects.create(scenario="B03").pk], countdown=2) for _ in range(3)]
    return report("B03", sent, not_before=before + 2)


def b04():
    with transaction.atomic():
        entity = Entity.objects.create(scenario="B04")
        sent = look.enqueue_async(["B04", entity.pk], countdown=1)
        time.sleep(2)
        before_commit = time.time()
    return report("B04", [sent], before_commit={sent: before_commit})


def b05():
    sent = fails_twice.enqueue("B05")
    result = report("B05", [sent], attempts=3)
    values = list(Entity.objects.filter(scenario="B05").values_list("value", flat=True))
    until("the next task", runs_of("B05/next").exists)
    sentinel("B05")
    return {**result, "values": values, "next": runs_of("B05/next").count()}


def b06():
    return report("B06", [fails_always.enqueue("B06")], attempts=6)


def b07():
    entity = Entity.objects.create(scenario="B07")
    now = timezone.now()
    expired = look.enqueue_async(["B07", entity.pk], expires=now - timedelta(seconds=60))
    live = look.enqueue_async(["B07", entity.pk], expires=now + timedelta(hours=1))
    return report("B07", [live], expired=expired)


def b08():
    arguments = [
        ([], {}),
        (["żółć ☃ \" \\ \n", "\U0001f407", ""], {"naïve": "ß"}),
        ([None, True, False, 0, -1, 1.5, 2**53 + 1, 10**40], {"none": None}),
        ([[1, [2, [3, []]]], {"a": {"b": [{"c": None}]}}], {"z": 1, "a": 2, "nested": {"list": [1, None, "x"]}}),
    ]
    calls = [
        {
            "id": note.enqueue_async(
                ["B08", *args],
                kwargs,
                task_id=f"0000000{number}-0000-4000-8000-00000000b008",
                priority=priority,
                headers={"tenant": "Łódź", "number": number},
                time_limit=300,
                soft_time_limit=200,
            ),
            "args": args,
            "kwargs": kwargs,
            "priority": priority,
            "number": number,
        }
        for number, (priority, (args, kwargs)) in enumerate(zip([0, 3, 6, 9], arguments))
    ]
    return report("B08", [call["id"] for call in calls], calls=calls)


def c01():
    with transaction.atomic():
        sent = [create("C01")]
        try:
            with transaction.atomic():
                create("C01")
                raise RuntimeError("the savepoint is rolled back")
        except RuntimeError:
            sent.append(create("C01"))
    return report("C01", sent)


def c02():
    with transaction.atomic():
        sent = [create("C02")]
        with transaction.atomic():
            sent.append(create("C02"))
            with transaction.atomic():
                sent.append(create("C02"))
        try:
            with transaction.atomic():
                with transaction.atomic():
                    create("C02")  # released into one that is rolled back
                raise RuntimeError("the outer savepoint is rolled back")
        except RuntimeError:
            pass
        sent.append(create("C02"))
    return report("C02", sent)


def d01():
    """Begun in one order, committed in the reverse one. A second task each goes to a queue that nobody reads."""
    sessions = [Session() for _ in range(6)]
    sent, queued = [], []
    for session in sessions:
        session.begin()
        sent.append(session.do(create, "D01"))
        queued.append(session.do(note.enqueue_async, ["D01/order"], queue="d01"))
    for session in reversed(sessions):
        session.commit()
        session.close()
    return report("D01", sent, commit_order=list(reversed(queued)))


def one_loses(scenario, isolation, conflict):
    """Two transactions at once: `conflict` leads them to where the second must fail. It is tried again once."""
    first, second = Session(), Session()
    rows = [Entity.objects.create(scenario=f"{scenario}/row") for _ in range(2)]
    for session in (first, second):
        session.begin(isolation)
    winner, loser = (session.do(create, scenario) for session in (first, second))
    try:
        conflict(first, second, rows)
        failed = None
    except OperationalError as error:
        failed = error.__cause__.sqlstate
        if second.do(lambda: connection.in_atomic_block):  # a failed COMMIT has ended it already
            second.roll_back(error)
    second.begin(isolation)
    again = second.do(create, scenario)
    second.commit()
    first.close()
    second.close()
    return report(scenario, [winner, again], loser=loser, sqlstate=failed)


def add_sum(rows, to):
    total = sum(Entity.objects.filter(pk__in=[row.pk for row in rows]).values_list("value", flat=True))
    Entity.objects.filter(pk=to.pk).update(value=total + 1)


def d02():
    """Write skew: each reads both rows and writes one of them. Only SERIALIZABLE notices, at the second's COMMIT."""

    def conflict(first, second, rows):
        first.do(add_sum, rows, rows[0])
        second.do(add_sum, rows, rows[1])
        first.commit()
        second.commit()

    return one_loses("D02", "SERIALIZABLE", conflict)


def d03():
    """Both write the same row: REPEATABLE READ lets the first committer win."""

    def conflict(first, second, rows):
        first.do(add_sum, rows, rows[0])
        waiting = second.begin_doing(add_sum, rows, rows[0])
        first.commit()
        waiting.result(PATIENCE)

    return one_loses("D03", "REPEATABLE READ", conflict)


def d04():
    """Two lock two rows, each in the other's order. The victim tries again when the other one is done."""
    rows = [Entity.objects.create(scenario="D04/row") for _ in range(2)]
    locked, won = threading.Barrier(2), threading.Event()
    deadlocks = []

    def work(number):
        order = rows if number == 0 else rows[::-1]
        attempts = []
        while True:
            try:
                with transaction.atomic():
                    attempts.append(create("D04"))
                    Entity.objects.filter(pk=order[0].pk).update(value=number)
                    if len(attempts) == 1:
                        locked.wait(PATIENCE)
                    Entity.objects.filter(pk=order[1].pk).update(value=number)
                won.set()
                return attempts
            except OperationalError as error:
                deadlocks.append(error.__cause__.sqlstate)
                won.wait(PATIENCE)

    attempts = in_threads(2, work)
    sent = [ids[-1] for ids in attempts]
    losers = [task_id for ids in attempts for task_id in ids[:-1]]
    return report("D04", sent, losers=losers, sqlstates=deadlocks)


def d05():
    counter = Entity.objects.create(scenario="D05/counter")

    def work(number):
        with transaction.atomic():
            row = Entity.objects.select_for_update().get(pk=counter.pk)
            row.value += 1
            row.save()
            return look.enqueue("D05", row.pk)

    sent = in_threads(10, work)
    counter.refresh_from_db()
    return report("D05", sent, counter=counter.value)


def e01():
    """In a queue of its own, which the worker reads in turn with the other: other scenarios need not wait behind it."""
    with transaction.atomic():
        entity = Entity.objects.create(scenario="E01")
        args = dumps(["E01", entity.pk])
        rows = [Outbox(task=look.name, args=args, kwargs="{}", queue="e01") for _ in range(5000)]
        Outbox.objects.bulk_create(rows, batch_size=1000)
        # Others' tasks go by while this transaction is open.
        in_threads(1, lambda _: sentinel("E01"))
        early = in_threads(1, lambda _: runs_of("E01").count())[0]
    return report("E01", [str(row.id) for row in rows], early=early)


def e03():
    """Two-phase commit, as a transaction manager does it."""
    execute("BEGIN")
    sent = create("E03")
    execute("PREPARE TRANSACTION 'e03'")
    execute("BEGIN")
    create("E03")
    execute("PREPARE TRANSACTION 'e03 rolled back'")
    sentinel("E03")
    early = runs_of("E03").count()
    execute("ROLLBACK PREPARED 'e03 rolled back'")
    execute("COMMIT PREPARED 'e03'")
    return report("E03", [sent], early=early)


def x01():
    """Forty commits from four threads; each waits for the synchronous standby."""

    def work(number):
        sent = []
        for _ in range(10):
            with transaction.atomic():
                sent.append(create(scenario))
        return sent

    scenario = sys.argv[2]
    return report(scenario, sum(in_threads(4, work), []))


print(json.dumps(globals()[sys.argv[1].lower()]()))
