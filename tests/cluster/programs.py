"""The programs of the cluster, each built once from its Go module and kept by its version."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .places import Places

GO = "1.25.8"
KUBERNETES, KUBERNETES_STAGING = "v1.34.3", "v0.34.3"
STAGED = (
    "api apiextensions-apiserver apimachinery apiserver cli-runtime client-go cloud-provider "
    "cluster-bootstrap code-generator component-base component-helpers controller-manager cri-api "
    "cri-client csi-translation-lib dynamic-resource-allocation endpointslice externaljwt kms "
    "kube-aggregator kube-controller-manager kube-proxy kube-scheduler kubectl kubelet metrics "
    "mount-utils pod-security-admission sample-apiserver "
)


@dataclass(frozen=True)
class Module:
    """A Go module and what is built of it.

    Args:
        programs: Package of each program, by the name that it gets here.
        replace: What its own go.mod replaces; Go does not inherit that. `module: "version"` or `"other version"`.
        linked: Values for the linker's -X.
    """

    path: str
    version: str
    programs: Mapping[str, str] = field(default_factory=dict)
    replace: Mapping[str, str] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    linked: Mapping[str, str] = field(default_factory=dict)


def _at(version: str, *modules: str) -> dict[str, str]:
    return {f"k8s.io/{module}": version for module in modules}


KSERVE = Module(
    "github.com/kserve/kserve",
    "v0.20.0",
    {"kserve": "github.com/kserve/kserve/cmd/manager"},
    {
        "sigs.k8s.io/controller-runtime": "v0.22.5",
        "github.com/expr-lang/expr": "v1.17.7",
        "google.golang.org/grpc": "v1.79.3",
        "github.com/lyft/protoc-gen-validate": "github.com/envoyproxy/protoc-gen-validate v1.0.4",
        **_at("v0.34.5", "api", "apimachinery", "client-go"),
        **_at(
            "v0.34.3", "apiextensions-apiserver", "apiserver", "code-generator", "component-base", "component-helpers"
        ),
    },
    ("google.golang.org/grpc/stats/opentelemetry v0.0.0-00010101000000-000000000000",),
)
KUBERAY = Module(
    "github.com/ray-project/kuberay/ray-operator", "v1.4.2", {"kuberay": "github.com/ray-project/kuberay/ray-operator"}
)
TRAEFIK = Module(
    "github.com/traefik/traefik/v3",
    "v3.5.3",
    {"traefik": "github.com/traefik/traefik/v3/cmd/traefik"},
    {
        "github.com/abbot/go-http-auth": "github.com/containous/go-http-auth v0.4.1-0.20200324110947-a37a7636d23e",
        "github.com/gorilla/mux": "github.com/containous/mux v0.0.0-20250523120546-41b6ec3aed59",
        "github.com/mailgun/minheap": "github.com/containous/minheap v0.0.0-20190809180810-6e71eb837595",
    },
)
KNATIVE = Module("knative.dev/serving", "v0.48.1", {"knative": "knative.dev/serving/cmd/controller"})
"""Every cluster has its definitions: KServe looks for them when it starts. The program is built when asked for."""
KNATIVE_NETWORKING = Module("knative.dev/networking", "v0.0.0-20260120131110-a7cdca238a0d")
KNATIVE_CACHING = Module("knative.dev/caching", "v0.0.0-20260120130310-f1fc03b7f5ee")
PROMETHEUS_OPERATOR = Module("github.com/prometheus-operator/prometheus-operator", "v0.85.0")
GATEWAY_API = Module("sigs.k8s.io/gateway-api", "v1.4.0")
ARGO = Module("github.com/argoproj/argo-workflows/v3", "v3.7.3")
CONTROL_PLANE = (
    Module(
        "k8s.io/kubernetes",
        KUBERNETES,
        {
            name: f"k8s.io/kubernetes/cmd/{name}"
            for name in (
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kubelet",
                "kube-proxy",
                "kubectl",
            )
        },
        _at(KUBERNETES_STAGING, *STAGED.split()),
        linked={
            "k8s.io/component-base/version.gitVersion": KUBERNETES,
            "k8s.io/component-base/version.gitMajor": "1",
            "k8s.io/component-base/version.gitMinor": "34",
        },
    ),
    Module("go.etcd.io/etcd/server/v3", "v3.6.6", {"etcd": "go.etcd.io/etcd/server/v3"}),
    KUBERAY,
    KSERVE,
    TRAEFIK,
)
COREDNS = Module("github.com/coredns/coredns", "v1.13.1")
PAUSE = Module("", KUBERNETES)
FAKE_GCS = Module(
    "github.com/fsouza/fake-gcs-server", "v1.56.1", {"fake-gcs-server": "github.com/fsouza/fake-gcs-server"}
)
KUBECONFORM = Module(
    "github.com/yannh/kubeconform", "v0.8.0", {"kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform"}
)
KUBE_SCORE = Module(
    "github.com/zegl/kube-score", "v1.20.0", {"kube-score": "github.com/zegl/kube-score/cmd/kube-score"}
)
_VERSIONS = {
    name: module.version
    for module in (*CONTROL_PLANE, FAKE_GCS, KNATIVE, KUBECONFORM, KUBE_SCORE)
    for name in module.programs
} | {
    "coredns": COREDNS.version,
    "pause": PAUSE.version,
    "knative-valid": KNATIVE.version,
}
COREDNS_MAIN = """package main

import (
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"

	"github.com/coredns/coredns/coremain"
)

func main() { coremain.Run() }
"""
# What Knative's webhook would say of a Knative Service.
KNATIVE_VALID_MAIN = """package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	v1 "knative.dev/serving/pkg/apis/serving/v1"
)

func main() {
	var service v1.Service
	if err := json.NewDecoder(os.Stdin).Decode(&service); err != nil {
		panic(err)
	}
	service.Status = v1.ServiceStatus{}
	service.SetDefaults(context.Background())
	if err := service.Validate(context.Background()); err != nil {
		fmt.Print(err.Error())
	}
}
"""
# In every pod: waits, and reaps what loses its parent.
PAUSE_MAIN = """package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	asked := make(chan os.Signal, 8)
	signal.Notify(asked, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for what := range asked {
		if what != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}
"""


def build(places: Places, say: Callable[[str], None]) -> None:
    """Build what is missing: a quarter of an hour on two cores when nothing is cached, else nothing."""
    if not shutil.which("go"):
        raise RuntimeError(f"go is not on the PATH; next: install Go {GO} or newer")
    for module in (*CONTROL_PLANE, FAKE_GCS):
        build_one(places, module, say)
    _program(places, "coredns", COREDNS, COREDNS_MAIN, ".", say)
    _program(places, "pause", PAUSE, PAUSE_MAIN, ".", say)


def build_knative(places: Places, say: Callable[[str], None]) -> None:
    """Build Knative's controller, and its judgement of Knative Services, if they are missing."""
    build_one(places, KNATIVE, say)
    _program(places, "knative-valid", KNATIVE, KNATIVE_VALID_MAIN, ".", say)


def build_one(places: Places, module: Module, say: Callable[[str], None]) -> None:
    """Build the programs of one module, if they are missing."""
    tools = "".join(f'import _ "{package}"\n' for package in module.programs.values())
    for name, package in module.programs.items():
        _program(places, name, module, f"//go:build tools\n\npackage tools\n\n{tools}", package, say)


def path(places: Places, name: str) -> Path:
    """A program that was built."""
    return places.programs / f"{name}-{_VERSIONS[name]}"


def folder_of(module: Module) -> Path:
    """Where Go keeps the source of a module; it is brought here if it is not yet."""
    done = _go(["mod", "download", "-json", f"{module.path}@{module.version}"], Path("/"))
    return Path(json.loads(done)["Dir"])


def _program(places: Places, name: str, module: Module, source: str, package: str, say: Callable[[str], None]) -> None:
    target = path(places, name)
    if target.exists():
        return
    say(f"builds {name} {module.version}")
    folder = places.sources / (module.path.replace("/", "_") or name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.go").write_text(source)
    (folder / "go.mod").write_text(_go_mod(module))
    _go(["mod", "tidy"], folder)
    linked = " ".join(["-s", "-w", *(f"-X {key}={value}" for key, value in module.linked.items())])
    built = target.with_suffix(".new")
    _go(["build", "-mod=mod", "-ldflags", linked, "-o", str(built), package], folder)
    built.rename(target)


def _go_mod(module: Module) -> str:
    lines = ["module build", f"go {GO}"]
    if module.path:
        lines.append(f"require {module.path} {module.version}")
    for path, target in module.replace.items():
        lines.append(f"replace {path} => {target if ' ' in target else f'{path} {target}'}")
    lines += [f"exclude {what}" for what in module.exclude]
    return "\n".join(lines) + "\n"


def _go(arguments: list[str], folder: Path) -> str:
    done = subprocess.run(
        ["go", *arguments], cwd=folder, env=os.environ | {"CGO_ENABLED": "0"}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"go {' '.join(arguments)} in {folder} failed:\n{done.stderr[-4000:]}")
    return done.stdout
