"""What `flywheel doctor` looks at on a cluster, by what the platform file wants of it."""

from collections.abc import Iterator
from functools import partial

import httpx

from ..components.runtime.config import Gateway
from ..components.runtime.errors import FlywheelError
from ..components.runtime.wiring import World
from .checks import Check, Probe

STEPS = "kubectl -n {} create rolebinding flywheel-steps-of-kubeflow --role=flywheel-steps --serviceaccount={}"
RIGHTS = "kubectl apply -n {} -f manifests/base/steps.yaml, and bind the role flywheel-steps to whoever runs the steps"
WANTED = {
    "kuberay": (
        {("ray.io", "v1"): {"rayjobs", "rayclusters"}},
        "install KubeRay 1.4 or later: helm install kuberay-operator kuberay/kuberay-operator",
    ),
    "kserve": (
        {
            ("serving.kserve.io", "v1beta1"): {"inferenceservices"},
            ("serving.kserve.io", "v1alpha1"): {"servingruntimes"},
        },
        "install KServe 0.20 or later: helm install kserve-crd and kserve, of oci://ghcr.io/kserve/charts",
    ),
    "gateway api": (
        {("gateway.networking.k8s.io", "v1"): {"gateways", "httproutes"}},
        "install the Gateway API 1.2 or later, and a gateway",
    ),
    "knative": (
        {("serving.knative.dev", "v1"): {"services", "revisions"}},
        "install Knative Serving, or take mode: knative out of the platform file",
    ),
}
"""Kinds that must be there, and what brings them."""


def probes(world: World) -> Iterator[tuple[str, Probe]]:
    """The checks of a platform's cluster; if it is away, that is the only one."""
    platform, pods = world.platform, world.platform.pods
    try:
        found = Check("cluster", True, f"{world.cluster.url}, Kubernetes {world.cluster.version()}")
    except FlywheelError as error:
        found = Check("cluster", False, error.message, error.next or "kubectl cluster-info")
    yield "cluster", lambda: found
    if not found.ok:
        return
    yield "images", lambda: _images(world)
    jobs, serving, home = platform.jobs_namespace, platform.serving_namespace, platform.steps_namespace
    wanted = dict[str, str]()
    if jobs:
        yield "kuberay", lambda: _kinds(world, "kuberay")
        yield "rights", lambda: _rights(world, "training", "rayjob", jobs)
        wanted["rayjob"] = jobs
        yield "gpus", lambda: _gpus(world)
    if platform.gateway:
        gateway, mode = platform.gateway, platform.gateway.mode
        yield "kserve", lambda: _kinds(world, "kserve")
        if mode == "knative":
            yield "knative", lambda: _kinds(world, "knative")
        else:
            yield "gateway", lambda: _gateway(world, gateway, serving)
        yield "rights", lambda: _rights(world, "serving", mode, serving)
        wanted[mode] = serving
        if pods.scales:
            yield "scaling", lambda: _scaling(world)
    for name in platform.namespaces:
        yield "account", partial(_account, world, name)
    for name in sorted({*platform.namespaces, home} - {""}):
        for secret, keys in pods.secrets.items():
            yield "secret", partial(_secret, world, name, secret, set(keys))
    if home:
        yield "rights", lambda: _rights_of_steps(world, wanted)


def _kinds(world: World, what: str) -> Check:
    wanted, remedy = WANTED[what]
    for (group, version), plurals in wanted.items():
        missing = sorted(plurals - world.cluster.resources(group, version))
        if missing:
            found = f"the cluster has no {missing[0]}.{group} in version {version}"
            return Check(what, False, found, remedy)
    return Check(what, True, ", ".join(f"{group}/{version}" for group, version in wanted))


def _images(world: World) -> Check:
    platform, images = world.platform, world.platform.images
    wanted = {
        "steps": platform.steps_namespace,
        "train": platform.jobs_namespace,
        "serve": platform.gateway,
    }
    needed = {profile for profile, is_needed in wanted.items() if is_needed}
    remedy = "make images REGISTRY=HOST/PATH, and images: build/images.yaml in the platform file"
    if missing := sorted(needed - set(images)):
        return Check("images", False, f"no image of {', '.join(missing)} is named", remedy)
    if loose := sorted(name for name in needed if "@sha256:" not in images[name]):
        return Check("images", False, f"images.{loose[0]} is {images[loose[0]]}: a tag, not a digest", remedy)
    return Check("images", True, f"{', '.join(sorted(needed))}, by digest")


def _rights(world: World, what: str, wanted: str, namespace: str) -> Check:
    if denied := world.cluster.denied(namespace, wanted):
        found = f"for {what} in {namespace} we may not {', '.join(denied)}"
        return Check("rights", False, found, RIGHTS.format(namespace))
    return Check("rights", True, f"all that {what} needs in {namespace}")


def _rights_of_steps(world: World, wanted: dict[str, str]) -> Check:
    """Whether Kubeflow's pods may do what we may: they have an account of its own."""
    account = world.platform.steps_account
    for name, namespace in wanted.items():
        denied = world.cluster.denied(namespace, name, account)
        if denied is None:
            return Check("rights", True, f"of Kubeflow's steps, {account}: unknown, rights of others may not be read")
        if denied:
            found = f"Kubeflow's steps, {account}, may not {', '.join(denied)} in {namespace}"
            return Check("rights", False, found, STEPS.format(namespace, account))
    return Check("rights", True, f"all that Kubeflow's steps need, {account}")


def _gpus(world: World) -> Check:
    found = world.cluster.gpus()
    if found is None:
        return Check("gpus", True, "unknown: nodes may not be listed")
    return Check("gpus", True, f"{found} on its nodes" if found else "none: gpus_per_worker has to be 0")


def _gateway(world: World, gateway: Gateway, namespace: str) -> Check:
    kinds = _kinds(world, "gateway api")
    if not kinds.ok:
        return Check("gateway", False, kinds.found, kinds.next)
    home, _, name = gateway.name.partition("/")
    found = world.cluster.gateway(home, name)
    if found is None:
        return Check(
            "gateway", False, f"there is no Gateway {gateway.name}", "kubectl get gateways -A, and correct gateway.name"
        )
    conditions = {each["type"]: each for each in found.get("status", {}).get("conditions", [])}
    if conditions.get("Programmed", {}).get("status") != "True":
        why = conditions.get("Programmed", {}).get("message", "no controller has taken it")
        return Check(
            "gateway", False, f"{gateway.name} is not programmed: {why}", f"kubectl -n {home} describe gateway {name}"
        )
    listeners = found["spec"]["listeners"]
    open_to = {each.get("allowedRoutes", {}).get("namespaces", {}).get("from", "Same") for each in listeners}
    if home != namespace and open_to == {"Same"}:
        remedy = f"kubectl -n {home} edit gateway {name}: allowedRoutes.namespaces.from: All"
        return Check(
            "gateway", False, f"{gateway.name} takes routes of its own namespace only, not of {namespace}", remedy
        )
    try:
        httpx.get(gateway.address, timeout=5)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = str(error) or type(error).__name__
        return Check(
            "gateway",
            False,
            f"{gateway.address} does not answer: {why}",
            f"kubectl get gateway -n {home} {name}, and correct gateway.address",
        )
    return Check("gateway", True, f"{gateway.name} is programmed, and {gateway.address} answers")


def _scaling(world: World) -> Check:
    pods = world.platform.pods
    if "pods" in world.cluster.resources("metrics.k8s.io", "v1beta1"):
        return Check("scaling", True, f"{pods.min_replicas} to {pods.most_replicas} pods a version")
    return Check(
        "scaling",
        False,
        "the cluster has no metrics API (metrics.k8s.io): no version gets more pods under load",
        "install metrics-server, or take max_replicas out of the platform file",
    )


def _account(world: World, namespace: str) -> Check:
    name = world.platform.pods.service_account
    there = world.cluster.has_account(namespace, name)
    if there is None:
        return Check("account", True, f"{name} in {namespace}: unknown, accounts may not be read")
    remedy = f"kubectl apply -n {namespace} -f manifests/base/steps.yaml"
    return Check("account", there, f"service account {name} {'is' if there else 'is not'} in {namespace}", remedy)


def _secret(world: World, namespace: str, name: str, keys: set[str]) -> Check:
    there = world.cluster.secret_keys(namespace, name)
    if there is None:
        return Check("secret", True, f"{name} in {namespace}: unknown, secrets may not be read")
    if missing := sorted(keys - there):
        literals = " ".join(f"--from-literal={key}=…" for key in sorted(keys))
        found = f"secret {name} in {namespace} has no {', '.join(missing)}"
        return Check("secret", False, found, f"kubectl -n {namespace} create secret generic {name} {literals}")
    return Check("secret", True, f"{name} in {namespace} has {', '.join(sorted(keys))}")
