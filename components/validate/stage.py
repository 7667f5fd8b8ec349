"""Decode every image, check every label, keep one of each copy; what is unfit goes to quarantine with its reason."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..recipes.detection import labels
from ..recipes.detection.rejected import Rejected
from ..runtime.artifacts import BadItem, CleanBatch, Lineage, RawBatch, RawItem, Sample, content_id
from ..runtime.blobs import get_blob, put_blob
from ..runtime.config import Validate
from ..runtime.errors import DataError
from ..runtime.lines import say
from ..runtime.parallel import each
from ..runtime.ports import Store
from ..runtime.records import from_lines, to_lines
from ..runtime.step import step
from .duplicates import Decoded, single_out
from .page import render


@dataclass(frozen=True)
class Verdict:
    """What was found: samples and quarantine, both sorted by path."""

    good: tuple[Sample, ...]
    bad: tuple[BadItem, ...]

    @property
    def rejected(self) -> dict[str, int]:
        """Quarantined items by reason, the most frequent first."""
        counted = Counter(item.reason for item in self.bad)
        return dict(sorted(counted.items(), key=lambda entry: (-entry[1], entry[0])))


def run(
    batch: str, clean: str, page: str, max_bad_fraction: float, max_megapixels: float, platform: str, run_id: str
) -> None:
    """Check the RawBatch at the path `batch`; write the CleanBatch to `clean` and its HTML page to `page`."""
    with step("validate", platform, run_id) as here:
        config = Validate.of(max_bad_fraction=max_bad_fraction, max_megapixels=max_megapixels)
        raw = RawBatch.read(batch)

        def build() -> CleanBatch:
            say(f"validate: {raw.count} images are to be decoded")
            verdict = examine(here.store, raw, config)
            # Before the judgement: a person wants to see the pictures when the run stops here, too.
            show(here.store, verdict.bad, raw.count, config, Path(page))
            judge(verdict, raw, config)
            return pack(here.store, verdict, raw, here.lineage(raw.id))

        made = here.reuse(CleanBatch, config, (raw.id,), build)
        if here.outcome == "reused":
            show(here.store, from_lines(get_blob(here.store, made.quarantine), BadItem), raw.count, config, Path(page))
        made.write(clean)
        here.sentence = describe(made.count, made.rejected)


def examine(store: Store, raw: RawBatch, config: Validate) -> Verdict:
    """Look at every item of a batch; images that must be stored anew are written to the store."""
    items = from_lines(get_blob(store, raw.index), RawItem)
    looked = list(each(partial(_look, store, len(raw.names), config), items, "validate: decoded"))
    good, copies = single_out(one for one in looked if isinstance(one, Decoded))
    bad = [one for one in looked if isinstance(one, BadItem)] + copies
    return Verdict(tuple(good), tuple(sorted(bad, key=lambda item: (item.path, item.reason, item.detail))))


def _look(store: Store, classes: int, config: Validate, item: RawItem) -> Decoded | BadItem:
    from . import image  # cv2 and Pillow

    content = get_blob(store, item.image)
    try:
        picture = image.read(content, config.max_megapixels)
        boxes = labels.parse(item.label or "", classes)
    except Rejected as error:
        return BadItem(path=item.path, image=item.image, reason=error.reason, detail=error.detail)
    blob = item.image
    if picture.content is not content or not blob.uri.lower().endswith((picture.suffix, _other(picture.suffix))):
        blob = put_blob(store, picture.content, picture.suffix)
    sample = Sample(
        path=item.path,
        image=blob,
        width=picture.width,
        height=picture.height,
        boxes=boxes,
        split=item.split,
        group=blob.sha256,
    )
    return Decoded(sample, picture.pixels)


def _other(suffix: str) -> str:
    return ".jpeg" if suffix == ".jpg" else suffix


def judge(verdict: Verdict, raw: RawBatch, config: Validate) -> None:
    """Stop a run whose data is not fit to be used.

    Raises:
        DataError: Too many bad items, nothing usable, or no labelled box at all.
    """
    share = len(verdict.bad) / raw.count if raw.count else 0.0
    look = "look at the page of validate, mend the files"
    if share > config.max_bad_fraction:
        raise DataError(
            f"{share:.1%} of {raw.count} images are bad, and max_bad_fraction is {config.max_bad_fraction:.1%}; "
            f"most often: {frequent(verdict)}.",
            f"{look} or raise max_bad_fraction",
        )
    if not verdict.good:
        raise DataError(
            f"none of {raw.count} images can be used; most often: {frequent(verdict) or 'there are none'}.", look
        )
    if not any(sample.boxes for sample in verdict.good):
        raise DataError(
            f"no labels: none of the {len(verdict.good)} usable images of {raw.source} has a box.",
            "put a .txt file for each image into labels/ beside images/, or beside the image",
        )


def frequent(verdict: Verdict) -> str:
    """The three most frequent reasons, each with its count and its first example."""
    first = {item.reason: item for item in reversed(verdict.bad)}
    most = list(verdict.rejected.items())[:3]
    return "; ".join(f"{count}x {reason} ({first[reason].path}: {first[reason].detail})" for reason, count in most)


def pack(store: Store, verdict: Verdict, raw: RawBatch, lineage: Lineage) -> CleanBatch:
    """Write both lists and give the batch."""
    good = [(s.path, s.image.sha256, s.boxes, s.split) for s in verdict.good]
    bad = [(b.path, b.image.sha256 if b.image else None, b.reason) for b in verdict.bad]
    return CleanBatch(
        id=content_id(["clean-batch.v1", raw.names, good, bad]),
        lineage=lineage,
        names=raw.names,
        count=len(verdict.good),
        index=put_blob(store, to_lines(verdict.good), ".jsonl"),
        rejected=verdict.rejected,
        quarantine=put_blob(store, to_lines(verdict.bad), ".jsonl"),
    )


def show(store: Store, bad: Sequence[BadItem], total: int, config: Validate, target: Path) -> None:
    """Write the page."""
    from . import image

    def draw(item: BadItem) -> bytes | None:
        return image.thumbnail(get_blob(store, item.image), config.max_megapixels) if item.image else None

    rejected = Counter(item.reason for item in bad)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(render(total, rejected, bad, draw), encoding="utf-8")


def describe(count: int, rejected: dict[str, int]) -> str:
    """One sentence for a person."""
    bad = sum(rejected.values())
    why = ", ".join(f"{number}x {reason}" for reason, number in rejected.items())
    return f"{count} of {count + bad} images are fit to be used" + (f"; {bad} in quarantine: {why}." if bad else ".")
