"""The example's settings, with what the scenarios add."""

from shop.settings import *  # noqa: F403

INSTALLED_APPS = ["orders", "scenarios"]
ROOT_URLCONF = "scenarios.urls"
