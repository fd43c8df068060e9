"""Views in the ways in which Django projects write them. `fail` asks for an exception at the end."""

from django.db import transaction
from django.http import JsonResponse

from .models import Entity
from .tasks import look


def create(scenario):
    return look.enqueue(scenario, Entity.objects.create(scenario=scenario).pk)


def answer(request, *task_ids):
    if "fail" in request.GET:
        raise RuntimeError("the view fails")
    return JsonResponse({"tasks": task_ids})


def atomic(request, scenario):
    """ATOMIC_REQUESTS: the view is a transaction."""
    return answer(request, create(scenario))


@transaction.non_atomic_requests
def autocommit(request, scenario):
    return answer(request, create(scenario), create(scenario))


def on_commit(request, scenario):
    """Code written before there was an outbox goes on working."""
    entity = Entity.objects.create(scenario=scenario)
    transaction.on_commit(lambda: look.enqueue(scenario, entity.pk))
    return answer(request)
