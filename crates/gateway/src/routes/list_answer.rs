//! The one shape of Galley's own lists: `{"items": [...], "next": cursor or null}`. A list that the Open Job Spec
//! describes has the shape of the specification instead. A test of the document of the interface knows which those are.

use common::json::ObjectWriter;

/// A list, to which a route may add members. A client passes `next` as `after`; without it there are no more items now.
pub(crate) fn list_answer(items: &[String], next: Option<&str>) -> ObjectWriter {
    let items = items.join(",");
    let mut answer = ObjectWriter::with_capacity(items.len() + 128);
    answer.raw("items", &["[", &items, "]"].concat());
    match next {
        Some(next) => answer.text("next", next),
        None => answer.raw("next", "null"),
    };
    answer
}
