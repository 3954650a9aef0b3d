//! The page that the `docs_url` of an error leads to: every code, what it means and what to do.

use std::fmt::Write;

use actix_web::HttpResponse;

use crate::{code::ErrorCodeRow, error::ErrorCode};

pub(super) async fn page() -> HttpResponse {
    HttpResponse::Ok().content_type("text/html; charset=utf-8").body(html())
}

/// Codes and hints are texts of this program without characters that HTML reserves.
fn html() -> String {
    let mut page = String::from(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>Galley: errors</title></head>\n\
         <body>\n<h1>Errors</h1>\n",
    );
    let mut known = Vec::new();
    for code in ErrorCode::every() {
        let ErrorCodeRow(name, kind, status, retryable, hint) = code.row();
        // Two rows of one code differ in their status
        let id = if known.contains(&name) { String::new() } else { format!(" id=\"{name}\"") };
        known.push(name);
        let again = if retryable { "the same request may succeed later" } else { "the same request fails again" };
        let _ = writeln!(page, "<h2{id}>{name}</h2>\n<p>{} ({kind}); {again}. Hint: {hint}.</p>", status.as_u16());
    }
    page.push_str("</body>\n</html>\n");
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_one_anchor_and_no_text_needs_an_escape() {
        let page = html();
        for (code, _) in ErrorCode::all() {
            assert_eq!(page.matches(&format!(" id=\"{code}\"")).count(), 1, "{code}");
        }
        for code in ErrorCode::every() {
            assert!(!code.row().4.contains(['<', '>', '&']), "{}", code.row().0);
        }
    }
}
