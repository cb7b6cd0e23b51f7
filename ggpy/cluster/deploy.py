"""A server's models as applications of Ray Serve, which last as long as a server of theirs runs."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ggpy.cluster.connect import absolute, most_replicas, on_its_machine, resources, takes_machine
from ggpy.cluster.replica import Replica
from ggpy.cluster.router import ConversationRouter
from ggpy.llm import LLM
from ggpy.server.models import ModelSpec
from ggpy.server.settings import Settings

_PREFIX = "ggpy-"  # of the names of applications


@contextmanager
def deployed(
    specs: Sequence[ModelSpec],
    open_model: Callable[[ModelSpec], LLM],
    settings: Settings,
    replicas: tuple[int, int | None],
    drain: int,
) -> Iterator[Mapping[str, DeploymentHandle]]:
    """Within the block Ray Serve runs the models; yields each one's handle by its name. Servers of the same models
    share them, and the last one ends them. Raises GGPYError.

    settings: its max_queue is 1 or more, as Ray has it. replicas: least and most of a model; None: as many as the
    cluster's machines take. drain: seconds that a replica
    which is no longer needed has for the requests that it answers.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    # Of the server's settings, those that a replica follows. The keys stay here.
    settings = Settings(max_queue=settings.max_queue, max_prompt_tokens=settings.max_prompt_tokens)
    specs = [replace(spec, source=absolute(spec.source), options=on_its_machine(spec.options)) for spec in specs]
    apps = {spec.name: _app_name(spec, settings, replicas) for spec in specs}
    targets = {
        apps[spec.name]: _deployment(spec, settings, replicas, drain).bind(spec, open_model, settings) for spec in specs
    }
    serve.start(proxy_location="Disabled")  # HTTP is the server's
    mark = _mark(apps.values())
    try:
        _delete_unused()
        missing = [serve.RunTarget(targets[app], app, None) for app in targets if app not in _running()]
        if missing:
            serve.run_many(missing, wait_for_applications_running=False)
        yield {name: serve.get_app_handle(app) for name, app in apps.items()}
    finally:
        ray.kill(mark)
        _delete_unused()


class _Mark:
    """An actor with nothing but a name, which says what the server that made it uses; it dies with it."""


def _mark(apps: Iterable[str]) -> Any:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    name = " ".join((uuid.uuid4().hex, *apps))
    return ray.remote(num_cpus=0)(_Mark).options(name=name, scheduling_strategy=here).remote()


def _delete_unused() -> None:
    """Delete the applications of servers that are no more."""
    used = {app for mark in ray.util.list_named_actors() for app in mark.split()}
    for app in _running():
        if app.startswith(_PREFIX) and app not in used:
            serve.delete(app)


def _running() -> set[str]:
    over = (ApplicationStatus.DELETING, ApplicationStatus.DEPLOY_FAILED)
    return {name for name, app in serve.status().applications.items() if app.status not in over}


def _app_name(spec: ModelSpec, settings: Settings, replicas: tuple[int, int | None]) -> str:
    """The same for the same model with the same settings."""
    digest = sha256(repr((spec, settings, replicas)).encode()).hexdigest()
    return f"{_PREFIX}{re.sub(r'[^A-Za-z0-9_.-]+', '-', spec.name)}-{digest[:12]}"


def _deployment(spec: ModelSpec, settings: Settings, replicas: tuple[int, int | None], drain: int) -> serve.Deployment:
    least, room, n = replicas[0], most_replicas(spec.options), spec.n_parallel
    most = replicas[1] or max(least, room)
    scaling: dict[str, Any] = {"num_replicas": least}
    if most > least:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=least, max_replicas=most, target_ongoing_requests=n, upscale_delay_s=10
            )
        }
    if takes_machine(spec.options):
        scaling["max_replicas_per_node"] = 1
    return serve.deployment(
        Replica,
        name="model",
        ray_actor_options=resources(spec.options),
        # Some wait in the replica itself, so that no slot is idle while the next one is on its way.
        max_ongoing_requests=n + (n + 1) // 2,
        max_queued_requests=settings.max_queue,
        graceful_shutdown_timeout_s=drain,
        request_router_config=RequestRouterConfig(request_router_class=ConversationRouter, max_backoff_s=0.1),
        **scaling,
    )
