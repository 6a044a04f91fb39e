"""Put texts into the records of rows that have ids only."""

from typing import TYPE_CHECKING, Any

from tdro.data.fields import Fault, identifier_of, passage_fields

if TYPE_CHECKING:
    from tdro.data.texts_by_id import TextsById

PASSAGE_IDS = ("docid", "_id", "id")
"""Where a passage may have its id; the first that is there counts."""
QUERY_IDS = ("query_id", "_id", "id")
"""Where a query may have its id."""


class Lookup:
    """The texts behind ids; without any, records stay as they are.

    Args:
        queries: Texts of the queries; open.
        passages: Texts of the passages; open.
    """

    def __init__(self, queries: "TextsById | None" = None, passages: "TextsById | None" = None) -> None:
        self._queries, self._passages = queries, passages

    def query(self, record: dict[str, Any], column: str) -> dict[str, Any]:
        """Return a record of a row with its query: its own, or that of its `query_id`.

        Raises:
            Fault: The id is missing or unknown.
        """
        if self._queries is None or record.get(column) is not None:
            return record
        identifier = identifier_of(record.get("query_id"), ":query_id")
        if identifier is None:
            raise Fault("row with neither query nor query_id", ":query_id", record, "give it one of the two")
        found = self._queries.get(identifier)
        if found is None:
            raise _unknown("query", ":query_id", identifier, self._queries)
        return record | {column: found.get("text", found.get("query"))}

    def passage(self, item: Any) -> Any:
        """Return a passage of a row with its text: an object that has one is left as it is, a bare value is an id.

        Raises:
            Fault: The id is missing or unknown.
        """
        if self._passages is None or (isinstance(item, dict) and item.get("text") is not None):
            return item
        given = item if isinstance(item, dict) else {"docid": item}
        field = next((name for name in PASSAGE_IDS if given.get(name) is not None), PASSAGE_IDS[0])
        where = f".{field}" if isinstance(item, dict) else ""
        identifier = identifier_of(given.get(field), where)
        if identifier is None:
            raise Fault("passage with neither text nor id", where, item, "give it one of the two, or remove it")
        found = self._passages.get(identifier)
        if found is None:
            raise _unknown("passage", where, identifier, self._passages)
        own = {key: value for key, value in given.items() if value not in (None, "")}
        return passage_fields(found) | own | {"docid": identifier}


def _unknown(what: str, field: str, identifier: str, texts: "TextsById") -> Fault:
    """Say that an id stands for nothing."""
    do = f"add it there, or remove it here; where this is the {what} itself, the dataset needs no such file"
    return Fault(f"{what} without text: {texts.file} has no such id", field, identifier, do)
