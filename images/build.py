"""Build the images with docker or buildah, push them, and write down their digests: what `make images` runs."""

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[1]
PROFILES = sorted(path.parent.name for path in REPO.glob("images/*/requirements.lock"))
INPUTS = (
    *("components", "pipelines", "images/Dockerfile", "images/build.lock"),
    *("pyproject.toml", "setup.py", "README.md", "LICENSE"),
)
EXAMPLES = """examples:
  python images/build.py steps                                    only look whether it builds
  python images/build.py --registry registry.example/team --lock images.yaml
"""


def revision(profile: str) -> str:
    """Names what an image is made of: the same inputs have the same tag, in any folder."""
    digest = hashlib.sha256()
    paths = [REPO / name for name in (*INPUTS, f"images/{profile}/requirements.lock")]
    files = [path for root in paths for path in ((root,) if root.is_file() else sorted(root.rglob("*")))]
    for path in files:
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(REPO)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


class Builder:
    """docker or buildah, as far as they differ."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.buildah = Path(command).name == "buildah"

    def build(self, profile: str, name: str, tag: str, base: str) -> None:
        arguments = {"PROFILE": profile, "REVISION": tag} | ({"BASE": base} if base else {})
        self._run(
            "build",
            *(("--layers", "--isolation=chroot", "--format=docker") if self.buildah else ()),
            *("--target", profile, "--tag", name, "--file", "images/Dockerfile"),
            *(word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")),
            ".",
        )

    def size(self, name: str) -> str:
        return self._run("images", "--format", "{{.Size}}", name, captured=True).partition("\n")[0]

    def push(self, name: str) -> str:
        """Push, and give the digest that the registry has."""
        if not self.buildah:
            self._run("push", "--quiet", name)
            return self._run("inspect", "--format", "{{index .RepoDigests 0}}", name, captured=True).rpartition("@")[2]
        found = REPO / "build" / "digest"
        found.parent.mkdir(exist_ok=True)
        plain = name.startswith(("127.0.0.1:", "localhost:"))
        self._run("push", "--quiet", f"--tls-verify={str(not plain).lower()}", f"--digestfile={found}", name)
        return found.read_text().strip()

    def _run(self, *arguments: str, captured: bool = False) -> str:
        done = subprocess.run(
            [self.command, *arguments], cwd=REPO, check=True, text=True, stdout=subprocess.PIPE if captured else None
        )
        return (done.stdout or "").strip()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="build.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("profiles", nargs="*", metavar="PROFILE", help=f"of {', '.join(PROFILES)}; all without any")
    parser.add_argument("--registry", default="", help="HOST/PATH to push to; nothing is pushed without")
    parser.add_argument("--lock", type=Path, default=REPO / "build/images.yaml", help="receives the names with digests")
    parser.add_argument("--builder", help="docker or buildah: the first that there is")
    parser.add_argument("--base", default="", help="a Python 3.11 on Debian in place of the Dockerfile's")
    given = parser.parse_args()
    unknown = [name for name in given.profiles if name not in PROFILES]
    if unknown:
        parser.error(f"{', '.join(unknown)} is not an image; there are {', '.join(PROFILES)}")
    command = given.builder or shutil.which("docker") or shutil.which("buildah")
    if not command:
        parser.error("neither docker nor buildah is on the PATH; install one of them")
    builder, digests = Builder(command), {}
    for profile in given.profiles or PROFILES:
        tag = revision(profile)
        name = "/".join(part for part in (given.registry, f"kfp-flywheel-{profile}:{tag}") if part)
        try:
            builder.build(profile, name, tag, given.base)
            print(f"images | {name} is built: {builder.size(name)}", flush=True)
            if given.registry:
                digests[profile] = f"{name.rpartition(':')[0]}@{builder.push(name)}"
        except subprocess.CalledProcessError as error:
            what = " ".join(error.cmd[:2])
            print(f"error: {what} of {name} ended with {error.returncode}, see above", file=sys.stderr)
            return 1
    if digests:
        given.lock.parent.mkdir(parents=True, exist_ok=True)
        given.lock.write_text("".join(f"{profile}: {name}\n" for profile, name in sorted(digests.items())))
        print(f"images | digests are in {given.lock}; a platform file names it: images: {given.lock.name}")
    else:
        print("images | not pushed, so there are no digests; next: give --registry HOST/PATH")
    return 0


if __name__ == "__main__":
    sys.exit(main())
