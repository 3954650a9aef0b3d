//! Pages of lists as the Open Job Spec has them: `page`, `per_page`, and `pagination` in the answer.

use serde_json::{Value, json};

use crate::{error::ApiError, routes::parse_bounded};

/// Items on a page: the default, and the most.
const DEFAULT_SIZE: usize = 20;
const MAX_SIZE: usize = 100;

/// A page that a client asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct ListPage {
    number: usize,
    pub(super) size: usize,
}

impl ListPage {
    pub(super) fn parse(page: Option<&str>, per_page: Option<&str>) -> Result<Self, ApiError> {
        let number = parse_bounded("page", page, 1, 1_000_000)?;
        Ok(Self { number, size: parse_bounded("per_page", per_page, DEFAULT_SIZE, MAX_SIZE)? })
    }

    /// How many items come before it.
    pub(super) fn start(self) -> usize {
        (self.number - 1) * self.size
    }

    /// How many items there are up to its end.
    pub(super) fn end(self) -> usize {
        self.number * self.size
    }

    /// The items of the page.
    pub(super) fn of<T>(self, items: Vec<T>) -> Vec<T> {
        items.into_iter().skip(self.start()).take(self.size).collect()
    }

    pub(super) fn to_json(self, total: u64) -> Value {
        json!({ "total": total, "page": self.number, "per_page": self.size })
    }
}
