use std::{collections::BTreeSet, fs, path::Path};

use super::*;

#[test]
fn every_key_has_a_text_in_each_language_and_stands_once() {
    let mut seen = BTreeSet::new();
    for (key, texts) in rows() {
        assert!(seen.insert(key), "{key} stands twice");
        assert!(texts.iter().all(|text| !text.trim().is_empty()), "{key} lacks a text: {texts:?}");
        let holes = |text: &str| -> BTreeSet<String> {
            text.split('{').skip(1).filter_map(|rest| Some(rest.split_once('}')?.0.to_owned())).collect()
        };
        assert_eq!(holes(texts[0]), holes(texts[1]), "{key} has other values in one language");
    }
    assert!(seen.len() > 100, "the table was read");
}

/// The files of a folder below the crate, with their texts.
fn files(folder: &str, end: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if path.is_dir() || !name.ends_with(end) || name.ends_with("_tests.rs") {
            continue;
        }
        found.push((name, fs::read_to_string(&path).expect("text")));
    }
    found
}

/// The texts in quotes behind each of these words.
fn quoted_behind(text: &str, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for word in words {
        for rest in text.split(word).skip(1) {
            let rest = rest.trim_start();
            if let Some(key) = rest.strip_prefix('"').and_then(|rest| rest.split_once('"')) {
                found.push(key.0.to_owned());
            }
        }
    }
    found
}

#[test]
fn every_key_that_a_page_names_exists_and_no_other_does() {
    let mut named = BTreeSet::new();
    for (name, text) in files("templates", ".html") {
        for key in quoted_behind(&text, &["page.t(", "page.f(", "page.f2(", "page.n("]) {
            assert!(Language::has(&key), "{name} names {key}");
            named.insert(key);
        }
    }
    let sources: String = ["src/dashboard", "src/dashboard/live", "src/dashboard/jobs"]
        .iter()
        .filter(|folder| Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).is_dir())
        .flat_map(|folder| files(folder, ".rs"))
        .map(|(_, text)| text)
        .collect();
    for (key, _) in rows() {
        // Some are put together: the first part, and what is behind it
        let is_made = ["state.", "note.", "scope.", "nav.", "error.", "ago.", "long.", "script.", "check.kind."];
        let is_used = named.contains(key)
            || sources.contains(&format!("\"{key}\""))
            || is_made.iter().any(|part| key.starts_with(part));
        assert!(is_used, "nothing uses {key}");
    }
}

#[test]
fn templates_have_no_text_of_their_own() {
    for (name, text) in files("templates", ".html") {
        let visible = without_tags(&without_code(&text));
        let letters: String = visible.chars().filter(|letter| letter.is_alphabetic()).collect();
        assert!(letters.is_empty(), "{name} has text of its own: {visible:?}");
        for attribute in ["aria-label", "title", "placeholder", "alt", "data-label", "data-confirm", "content"] {
            for value in quoted_behind(&text, &[&format!(" {attribute}=")]) {
                let plain = without_code(&value);
                let is_technical =
                    ["width=device-width", "light dark", "5"].iter().any(|known| plain.starts_with(known));
                assert!(
                    is_technical || !plain.chars().any(char::is_alphabetic),
                    "{name}: {attribute} has text of its own: {value}"
                );
            }
        }
        assert!(!text.contains(" style=\"") && !text.contains(" on"), "{name} has what the policy of pages forbids");
    }
}

/// Without `{{ ... }}`, `{% ... %}` and comments.
fn without_code(text: &str) -> String {
    let mut plain = text.to_owned();
    for (open, close) in [("{#", "#}"), ("{%", "%}"), ("{{", "}}")] {
        while let Some(start) = plain.find(open) {
            let end = plain[start..].find(close).map_or(plain.len(), |end| start + end + close.len());
            plain.replace_range(start..end, "");
        }
    }
    plain
}

fn without_tags(text: &str) -> String {
    let mut plain = String::new();
    let mut depth = 0_usize;
    for letter in text.chars() {
        match letter {
            '<' => depth += 1,
            '>' => depth = depth.saturating_sub(1),
            _ if depth == 0 => plain.push(letter),
            _ => {}
        }
    }
    plain.replace("&nbsp;", "").replace("&middot;", "")
}

#[test]
fn the_language_is_the_one_that_the_browser_likes_best() {
    for (asked, language) in [
        ("", None),
        ("de", None),
        ("zh-CN,zh;q=0.9,en;q=0.8", Some(Language::Chinese)),
        ("en-US,en;q=0.9,zh;q=0.8", Some(Language::English)),
        ("de, zh-TW;q=0.3, en;q=0.5", Some(Language::English)),
        ("zh;q=0, en;q=0.1", Some(Language::English)),
        ("zh;q=x", None),
    ] {
        assert_eq!(Language::accepted(asked), language, "{asked}");
    }
}

#[test]
fn a_value_with_braces_stays_as_it_is() {
    assert_eq!(Language::English.fill("ago.minutes", &[&"{0}{1}"]), "{0}{1} min ago");
}
