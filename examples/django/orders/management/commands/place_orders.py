import json

from django.core.management.base import BaseCommand
from django.db import transaction

from orders.models import Order
from orders.tasks import send_receipt


class Changed(Exception):
    """The customer changed their mind."""


class Command(BaseCommand):
    help = "Places orders, each in a transaction of its own; every tenth one is rolled back. Prints the counts."

    def add_arguments(self, parser):
        parser.add_argument("--count", type=int, default=100)
        parser.add_argument(
            "--direct", action="store_true", help="for comparison: send_receipt.delay() inside of the transaction"
        )

    def handle(self, *, count, direct, **options):
        send = send_receipt.delay if direct else send_receipt.enqueue
        placed, rolled_back = 0, 0
        for number in range(1, count + 1):
            try:
                with transaction.atomic():
                    order = Order.objects.create(customer=f"customer {number}", total=number)
                    send(order.pk)
                    if number % 10 == 0:
                        raise Changed
                placed += 1
            except Changed:
                rolled_back += 1
        self.stdout.write(json.dumps({"placed": placed, "rolled_back": rolled_back}))
