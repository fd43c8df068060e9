import django.db.models.deletion
import orders.outbox
import uuid
from django.db import migrations, models


class Migration(migrations.Migration):

    initial = True

    dependencies = [
    ]

    operations = [
        migrations.CreateModel(
            name='Outbox',
            fields=[
                ('id', models.UUIDField(default=uuid.uuid4, primary_key=True, serialize=False)),
                ('task', models.TextField()),
                ('args', orders.outbox.JsonText(null=True)),
                ('kwargs', orders.outbox.JsonText(null=True)),
                ('key', models.TextField(null=True)),
                ('queue', models.TextField(null=True)),
                ('headers', orders.outbox.JsonText(null=True)),
                ('priority', models.SmallIntegerField(null=True)),
                ('run_at', models.DateTimeField(null=True)),
                ('expires_at', models.DateTimeField(null=True)),
                ('options', orders.outbox.JsonText(null=True)),
            ],
            options={
                'db_table': '"aftercommit"."outbox"',
                'managed': False,
            },
        ),
        migrations.CreateModel(
            name='Order',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('customer', models.TextField()),
                ('total', models.DecimalField(decimal_places=2, max_digits=10)),
                ('placed_at', models.DateTimeField(auto_now_add=True)),
            ],
        ),
        migrations.CreateModel(
            name='Receipt',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('sent_at', models.DateTimeField(auto_now_add=True)),
                ('order', models.OneToOneField(on_delete=django.db.models.deletion.CASCADE, to='orders.order')),
            ],
        ),
    ]
