"""A branch of a Git repository, and commits on it that change the given files and no other. By the program git.

There is no work tree: a commit's tree is the branch's own with the given files in it. So a large repository costs no
checkout, and none of its symbolic links, filters and hooks acts on this machine.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..components.runtime.errors import PlatformError, UserError

ATTEMPTS = 6
"""Pushes until it is given up: each is on the branch as it was just before."""
PAUSE_S = 0.1
TIMEOUT_S = 120.0
NO_BRANCH = 2
"""What `git ls-remote --exit-code` ends with."""
ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE")
"""Variables that would lead git to another repository: a hook that starts us has them."""
QUIETLY = ("-c", "gc.auto=0", "-c", "maintenance.auto=false")
"""Nothing is tidied in the background, in a folder that is about to go."""


@dataclass(frozen=True)
class Done:
    """A git command that ended: its exit code, what it gave, and what it said."""

    code: int
    given: str
    said: str


class Clone:
    """The head of one branch, without its past.

    Args:
        url: A URL or a path, as `git clone` takes it; it may hold a password, which no message shows.
        folder: Empty; becomes a bare repository.
    """

    def __init__(self, url: str, branch: str, folder: Path) -> None:
        self.url, self.branch = url, branch
        self.shown = without_password(url)
        self._ref = f"refs/heads/{branch}"
        self._environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE} | {
            "GIT_DIR": str(folder),
            "GIT_INDEX_FILE": str(folder / "flywheel-index"),
            "GIT_TERMINAL_PROMPT": "0",
            "LC_ALL": "C",
        }
        self._must("init", "--quiet", "--bare", "--template=", str(folder))

    def check(self, paths: list[str]) -> None:
        """See that files could be committed and pushed, without doing so.

        Args:
            paths: Of the files that will be committed.

        Raises:
            UserError: There is no such branch, or git does not know who commits.
            PlatformError: The repository cannot be read or written, or has something else at these paths.
        """
        if self._git("ls-remote", "--exit-code", "--", self.url, self._ref).code == NO_BRANCH:
            raise UserError(
                f"{self.shown} has no branch {self.branch}.", f"git ls-remote --heads {self.shown} shows those it has"
            )
        head = self._head()
        self._tree(head, dict.fromkeys(paths, ""))
        for who in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT"):
            if self._git("var", who).code:
                raise UserError(
                    "git does not know who commits.",
                    "git config --global user.name NAME; git config --global user.email ADDRESS",
                )
        tried = self._push(head, "--dry-run")
        if tried:
            raise PlatformError(f"{self.shown} cannot be pushed to: {tried}", f"git push --dry-run {self.shown}")

    def commit(self, files: Mapping[str, str], message: str) -> str | None:
        """Commit files on the branch as it is now, and push; on whatever others push meanwhile, again.

        Args:
            files: Text by path.

        Returns:
            The commit's id; none if the branch has all of it.

        Raises:
            PlatformError: The repository cannot be read, or refuses the push.
        """
        mine, refused = "", ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(random.uniform(0, PAUSE_S * 2**attempt))
            head = self._head()
            if head == mine:  # it arrived, and only the answer did not
                return mine
            tree = self._tree(head, files)
            if tree == self._must("rev-parse", f"{head}^{{tree}}"):
                return None
            mine = self._must("commit-tree", tree, "-p", head, given=message)
            refused = self._push(mine)
            if not refused:
                return mine
            if "declined" in refused:  # by a hook: it would say the same again
                break
        raise PlatformError(
            f"{self.shown} refused the push to {self.branch}: {refused}", f"git push --dry-run {self.shown}"
        )

    def _head(self) -> str:
        """Bring the branch's head here, and give its id."""
        self._must("fetch", "--quiet", "--no-tags", "--depth=1", "--", self.url, self._ref)
        return self._must("rev-parse", "--verify", "FETCH_HEAD^{commit}")

    def _tree(self, head: str, files: Mapping[str, str]) -> str:
        """Id of the tree of a commit with files in it."""
        self._must("read-tree", head)
        entries: list[str] = []
        for path, text in files.items():
            blob = self._must("hash-object", "-w", "--stdin", given=text)
            entries += ["--cacheinfo", f"100644,{blob},{path}"]
        self._must("update-index", "--add", *entries)
        return self._must("write-tree")

    def _push(self, commit: str, *options: str) -> str:
        """Push a commit that the branch's head is the parent of; why it was refused, or nothing."""
        done = self._git("push", "--porcelain", *options, "--", self.url, f"{commit}:{self._ref}")
        if not done.code:
            return ""
        reasons = [line.rpartition("\t")[2] for line in done.given.splitlines() if line.startswith("!")]
        return " ".join([*reasons, done.said]).strip() or f"git push ended with {done.code}"

    def _must(self, *arguments: str, given: str = "") -> str:
        """What a git command gives.

        Raises:
            PlatformError: It failed.
        """
        done = self._git(*arguments, given=given)
        if done.code:
            raise PlatformError(
                f"git {arguments[0]} failed for {self.shown}: {done.said}", f"git ls-remote --heads {self.shown}"
            )
        return done.given.strip()

    def _git(self, *arguments: str, given: str = "") -> Done:
        """Run git without a terminal: a password that nobody is there to type would be waited for.

        Raises:
            PlatformError: It did not end in time.
        """
        process = subprocess.Popen(
            ["git", *QUIETLY, *arguments],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        try:
            found, said = process.communicate(given, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise PlatformError(
                f"git {arguments[0]} did not end within {TIMEOUT_S:.0f} s for {self.shown}.",
                f"git ls-remote --heads {self.shown}",
            ) from error
        finally:
            if process.poll() is None:  # with all that it started: they write into a folder that is about to go
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        return Done(process.returncode, found, self._told(said))

    def _told(self, said: str) -> str:
        """What git and the other side said, on one line, without passwords and without what moves a cursor."""
        lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("hint:")]
        text = without_password(" ".join(lines).replace(self.url, self.shown))
        return "".join(letter for letter in text if letter.isprintable())


@contextmanager
def cloned(url: str, branch: str) -> Iterator[Clone]:
    """A clone in a folder of its own, which goes however this ends.

    Raises:
        UserError: There is no git.
    """
    if shutil.which("git") is None:
        raise UserError("git is not on the PATH, and --git needs it.", "install git with your package manager")
    with tempfile.TemporaryDirectory(prefix="flywheel-git-") as folder:
        yield Clone(url, branch, Path(folder))


def without_password(text: str) -> str:
    """A text whose URLs have no user and no password."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)
