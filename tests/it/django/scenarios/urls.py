from django.urls import path

from . import views

urlpatterns = [
    path("atomic/<scenario>", views.atomic),
    path("autocommit/<scenario>", views.autocommit),
    path("on_commit/<scenario>", views.on_commit),
]
