"""Redis behind sentinels, over TLS: what the URL says is for Redis, and sentinel_kwargs for the sentinels."""

import os
from urllib.parse import parse_qs, urlsplit

from work import application

first = os.environ["CELERY_BROKER_URL"].split(";")[0]
authority = parse_qs(urlsplit(first).query)["ssl_ca_certs"][0]
app = application(
    "sentinels",
    broker_transport_options={
        "master_name": "main",
        "sentinel_kwargs": {"password": "sentinel-pw", "ssl": True, "ssl_ca_certs": authority},
    },
)
