from decimal import Decimal, InvalidOperation

from django.http import HttpResponseBadRequest, JsonResponse
from django.views.decorators.http import require_POST

from .models import Order
from .tasks import send_receipt


@require_POST
def place_order(request):
    """One transaction (ATOMIC_REQUESTS): the order and its task commit together."""
    try:
        customer, total = request.POST["customer"], Decimal(request.POST["total"])
    except (KeyError, InvalidOperation):
        return HttpResponseBadRequest("customer and total, please")
    order = Order.objects.create(customer=customer, total=total)
    task_id = send_receipt.enqueue(order.pk)
    return JsonResponse({"order": order.pk, "task": task_id}, status=201)
