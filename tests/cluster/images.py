"""Images made on this machine, where no registry of images may be reached: a base of Debian with this machine's Python
3.11, the pause image, and the project's own ones. For tests only: the base trusts what this machine trusts."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml

from . import programs
from .places import Places

BASE, PAUSE = "docker.io/library/python:3.11-slim", "registry.k8s.io/pause:3.10"
REGISTRY = "127.0.0.1:5000"
DEBIAN = "bookworm"
REPO = Path(__file__).parents[2]
# What CPython's own extensions are linked to; KubeRay's probes call wget.
INCLUDED = (
    "ca-certificates wget libssl3 libffi8 libsqlite3-0 libreadline8 libbz2-1.0 liblzma5 libncursesw6 "
    "zlib1g libuuid1 libgomp1 libstdc++6"
)
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def load(places: Places, ctr: Callable[..., str], say: Callable[[str], None]) -> None:
    """Make the images that are missing, and hand them to containerd."""
    known = ctr("images", "ls", "-q").split()
    for name, make in ((PAUSE, _pause), (BASE, base)):
        if name not in known:
            ctr("images", "import", str(make(places, say)))


def base(places: Places, say: Callable[[str], None]) -> Path:
    """The archive of the base image: half a minute the first time."""
    archive = places.images / "base.tar"
    if not archive.exists():
        say("makes the base image")
        root = places.images / "base"
        shutil.rmtree(root, ignore_errors=True)
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={','.join(INCLUDED.split())}", DEBIAN, str(root)],
            check=True,
            capture_output=True,
        )
        _python(root)
        (root / "root").chmod(0o755)  # a test's pods may find this machine's environment mounted below it
        shutil.copyfile(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
        (root / "etc/pip.conf").write_text(f"[global]\ncert = {CERTIFICATES}\n")
        for litter in (*root.glob("var/cache/apt/archives/*.deb"), *root.glob("var/lib/apt/lists/*_*")):
            litter.unlink()
        env = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]
        _pack(archive, BASE, root, {"Env": [*env, f"SSL_CERT_FILE={CERTIFICATES}"], "Cmd": ["python3"]})
    return archive


def built(places: Places, profile: str) -> str:
    """Build one of images/, push it to the cluster's registry, and give its name with the digest."""
    lock = places.run / f"{profile}.yaml"
    how = (f"--registry={REGISTRY}", f"--lock={lock}", "--builder=buildah", f"--base={BASE}")
    _run(places, sys.executable, "images/build.py", profile, *how)
    return str(yaml.safe_load(lock.read_text())[profile])


def mounted(places: Places, env: Mapping[str, str]) -> str:
    """Push an image with nothing but the base and an environment, whose files pods find on their host."""
    name, digest, folder = f"{REGISTRY}/mounted", places.run / "digest", places.run / "mounted"
    folder.mkdir(exist_ok=True)
    lines = [f"FROM {BASE}", *(f'ENV {key}="{value}"' for key, value in env.items()), "USER 1000:1000"]
    (folder / "Dockerfile").write_text("\n".join(lines))
    _run(places, "buildah", "build", "--layers", "--tag", name, str(folder))
    _run(places, "buildah", "push", "--tls-verify=false", "--digestfile", str(digest), name)
    return f"{name}@{digest.read_text().strip()}"


def _run(places: Places, *command: str) -> None:
    """Run a builder of images, with a storage of its own that knows the base."""
    storage = places.run / "storage.conf"
    root, run = places.images / "buildah", places.run / "buildah"
    storage.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{root}"\nrunroot = "{run}"\n')
    env = os.environ | {"CONTAINERS_STORAGE_CONF": str(storage)}

    def call(*command: str) -> None:
        done = subprocess.run(command, cwd=REPO, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[:4])} ended with {done.returncode}:\n{done.stdout[-3000:]}")

    call("buildah", "pull", "--quiet", f"docker-archive:{base(places, print)}")
    call(*command)


def _pause(places: Places, say: Callable[[str], None]) -> Path:
    archive, root = places.images / "pause.tar", places.images / "pause"
    root.mkdir(exist_ok=True)
    shutil.copy(programs.path(places, "pause"), root / "pause")
    _pack(archive, PAUSE, root, {"Entrypoint": ["/pause"]})
    return archive


def _python(root: Path) -> None:
    """This machine's interpreter, without its packages."""
    source, target = Path(sys.base_prefix), root / "usr/local"
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    unwanted = shutil.ignore_patterns("test", "__pycache__", "*.a", "site-packages")
    shutil.copytree(source / "lib" / name, target / "lib" / name, symlinks=True, ignore=unwanted)
    shutil.copytree(source / "include", target / "include", dirs_exist_ok=True)
    for library in source.glob("lib/libpython*"):
        shutil.copy2(library, target / "lib" / library.name, follow_symlinks=False)
    shutil.copy2(source / "bin" / name, target / "bin" / name)
    for link in ("python3", "python"):
        (target / "bin" / link).symlink_to(name)
    for command in (["ldconfig"], [name, "-c", "import ssl, sqlite3, ctypes, bz2, lzma"], [name, "-m", "ensurepip"]):
        subprocess.run(["chroot", str(root), *command], check=True, capture_output=True)


def _pack(archive: Path, name: str, root: Path, config: dict[str, object]) -> None:
    """One layer, in the form that docker and containerd load."""
    layer = archive.with_suffix(".layer")
    subprocess.run(["tar", "--numeric-owner", "-C", str(root), "-cf", str(layer), "."], check=True)
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    made = "2026-01-01T00:00:00Z"  # of any time, but always the same: builders compare it before they reuse a layer
    image = {
        "created": made,
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created": made, "created_by": "kfp-flywheel's tests"}],
    }
    described = json.dumps(image).encode()
    file_name = f"{hashlib.sha256(described).hexdigest()}.json"
    manifest = json.dumps([{"Config": file_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    new = archive.with_suffix(".new")
    with tarfile.open(new, "w") as packed:
        for member, content in ((file_name, described), ("manifest.json", manifest)):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
        packed.add(layer, "layer.tar")
    layer.unlink()
    new.rename(archive)
