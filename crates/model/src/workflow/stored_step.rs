//! A step that is a workflow, as its workflow stores it.

use common::json::{Object, ObjectWriter};

/// A step that is a workflow, as its workflow stores it. A version that knows no such steps does not take it for a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredStep {
    /// The index of the step whose result has the elements, if there is a job for each.
    pub for_each: Option<usize>,
    /// The workflow; or what runs for each element, a job or a workflow.
    pub(super) json: String,
}

impl StoredStep {
    pub(super) fn new(for_each: Option<usize>, json: &str) -> Self {
        Self { for_each, json: json.to_owned() }
    }

    /// What is stored.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = ObjectWriter::default();
        match self.for_each {
            Some(source) => {
                out.number("for_each", i128::try_from(source).unwrap_or_default()).raw("each", &self.json);
            }
            None => {
                out.raw("workflow", &self.json);
            }
        }
        out.finish()
    }

    /// Reads what [`Self::to_text`] wrote.
    ///
    /// # Errors
    /// It is damaged.
    pub fn parse(text: &str) -> Result<Self, String> {
        let body = Object::of_stored(text).map_err(|error| error.to_string())?;
        let of = |name: &str| body.get(name).map(|raw| raw.get().to_owned());
        let for_each =
            of("for_each").map(|text| text.parse::<usize>().map_err(|_| "for_each is no index")).transpose()?;
        let json = if for_each.is_some() { of("each") } else { of("workflow") };
        json.map(|json| Self { for_each, json }).ok_or_else(|| "it is neither a job nor a workflow".to_owned())
    }

    /// How many bytes the step has: each element gets a copy.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.json.len()
    }
}
