from celery import shared_task

from .models import Order, Receipt


@shared_task
def send_receipt(order_id):
    """Finds its order, always: it starts after the order's transaction is visible.

    A task may run twice (a worker that dies gives it back to the broker), so it is written to bear that.
    """
    order = Order.objects.get(pk=order_id)
    Receipt.objects.get_or_create(order=order)
