"""In a TestCase nothing commits, so nothing is sent: look at the outbox to see what would be."""

from django.db import connection
from django.test import TestCase, TransactionTestCase

from .models import Order
from .outbox import Outbox
from .tasks import send_receipt


class PlaceOrder(TestCase):
    def test_an_order_enqueues_its_receipt(self):
        answer = self.client.post("/orders", {"customer": "Ada", "total": "12.50"})
        self.assertEqual(answer.status_code, 201)
        order = Order.objects.get()
        row = Outbox.objects.get(task=send_receipt.name, id=answer.json()["task"])
        self.assertEqual((row.args, row.kwargs), ([order.pk], {}))

    def test_a_wrong_order_enqueues_nothing(self):
        before = Outbox.objects.count()
        answer = self.client.post("/orders", {"customer": "Ada", "total": "much"})
        self.assertEqual(answer.status_code, 400)
        self.assertEqual(Outbox.objects.count(), before)


class Flush(TransactionTestCase):
    def test_an_emptied_outbox(self):
        # The test case empties the tables of the app with TRUNCATE; this does the same to the outbox.
        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE aftercommit.outbox")
        self.assertEqual(Outbox.objects.count(), 0)
