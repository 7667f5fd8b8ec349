"""Records: frozen, typed, small, and JSON outside. msgspec, because its import costs a step next to nothing."""

from collections.abc import Iterable
from typing import Any, Self, TypeVar, dataclass_transform

import msgspec

from .errors import Corrupt


class _KeywordsOnly(msgspec.StructMeta):
    """Makes a record's arguments keywords by themselves; msgspec wants to be told so at every class."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> Any:
        return super().__new__(cls, name, bases, namespace, **{"kw_only": True} | options)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Record(msgspec.Struct, metaclass=_KeywordsOnly, frozen=True, forbid_unknown_fields=True):
    """Base of all that is written as JSON. Types and limits are checked when it is read; unknown fields are refused."""

    def to_json(self) -> bytes:
        """JSON, indented for people."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    def line(self) -> str:
        """JSON on one line."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, content: bytes | str, where: str) -> Self:
        """Read what `to_json` or `line` wrote.

        Args:
            where: Names the source in the error.

        Raises:
            Corrupt: It is not JSON of this kind and version.
        """
        try:
            return msgspec.json.decode(content, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Corrupt(f"{where} is no {cls.__name__} of this version: {error}.") from error

    def but(self, **changes: Any) -> Self:
        """The same record with some fields changed."""
        return msgspec.structs.replace(self, **changes)

    def plain(self) -> dict[str, Any]:
        """Strings, numbers, lists and dicts, as JSON has them."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        return document


RecordT = TypeVar("RecordT", bound=Record)


def to_lines(records: Iterable[Record]) -> bytes:
    """Encode records as JSON lines, in the order given."""
    return "".join(record.line() + "\n" for record in records).encode()


def from_lines(content: bytes, kind: type[RecordT]) -> list[RecordT]:
    """Decode JSON lines.

    Raises:
        Corrupt: A line is not such a record.
    """
    return [kind.from_json(line, f"line {number}") for number, line in enumerate(content.splitlines(), 1)]
