"""Why an item is not fit to be used."""


class Rejected(Exception):
    """One image or label file is unfit: a short code that is counted, and the sentence for a person."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
