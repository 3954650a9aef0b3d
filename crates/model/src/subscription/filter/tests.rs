//! What a filter says of messages, stored or as clients see them.

use super::*;
use crate::message::Position;
use common::trace_context::TraceContext;

fn message(content_type: Option<&str>, attributes: Option<&str>, body: &str) -> StoredMessage {
    StoredMessage {
        position: Position { epoch: 1, sequence: 0 },
        published_at: 0,
        content_type: content_type.map(ToOwned::to_owned),
        attributes: attributes.map(ToOwned::to_owned),
        body: body.as_bytes().to_vec(),
        trace: TraceContext::default(),
    }
}

/// Whether it fits, which is the same of a message as clients see it.
fn fits_of(filter: &MessageFilter, message: &StoredMessage) -> bool {
    let verdict = filter.matches(message);
    let fits = verdict == FilterVerdict::Matches;
    let shown = message.to_json(&"c".parse().expect("a name"));
    let verdict_of_shown = filter.matches_shown(&shown);
    assert_eq!(verdict_of_shown == FilterVerdict::Matches, fits, "{shown}: {verdict:?} {verdict_of_shown:?}");
    fits
}

fn filter(json: &str) -> MessageFilter {
    let filter: MessageFilter = serde_json::from_str(json).expect(json);
    filter.check().expect(json);
    filter
}

#[test]
fn all_conditions_must_hold_on_attributes() {
    let event = message(None, Some(r#"{"type":"order.paid","source":"/shop/7","n":5}"#), "");
    for (conditions, fits) in [
        (r#"{"type":"order.paid"}"#, true),
        (r#"{"type":"order"}"#, false),
        (r#"{"type":{"prefix":"order."},"source":{"prefix":"/shop"}}"#, true),
        (r#"{"type":{"prefix":"order."},"source":{"prefix":"/other"}}"#, false),
        (r#"{"type":{"any_of":["a","order.paid"]}}"#, true),
        (r#"{"type":{"any_of":["a"]}}"#, false),
        (r#"{"n":5}"#, true),
        (r#"{"n":"5"}"#, true),
        (r#"{"n":5.0}"#, true),
        (r#"{"n":{"prefix":"5"}}"#, true),
        (r#"{"n":6}"#, false),
        (r#"{"missing":null}"#, false),
        (r#"{"missing":{"exists":false},"n":{"exists":true}}"#, true),
        (r#"{"missing":{"exists":true}}"#, false),
        (r#"{"n":{"exists":false}}"#, false),
        (r#"{"n":{"gte":5,"lt":5.5}}"#, true),
        (r#"{"n":{"gt":5}}"#, false),
        (r#"{"n":{"lte":4.99}}"#, false),
        (r#"{"type":{"gt":0}}"#, false),
    ] {
        assert_eq!(fits_of(&filter(&format!(r#"{{"attributes":{conditions}}}"#)), &event), fits, "{conditions}");
    }
    assert!(!fits_of(&filter(r#"{"attributes":{"type":"x"}}"#), &message(None, None, "{}")), "it is no event");
    assert!(fits_of(&filter(r#"{"attributes":{"type":{"exists":false}}}"#), &message(None, None, "{}")));
    assert!(fits_of(&MessageFilter::default(), &message(None, None, "\u{0}")));
}

#[test]
fn data_is_compared_where_the_pointer_points() {
    let json = r#"{"order":{"id":7,"paid":true,"tags":["a","b"],"total":7.5},"":1,"a/b":2,"n":null}"#;
    for (conditions, fits) in [
        (r#"{"/order/id":7}"#, true),
        (r#"{"/order/id":7.0}"#, true),
        (r#"{"/order/id":"7"}"#, false),
        (r#"{"/order/id":{"any_of":[6,7]}}"#, true),
        (r#"{"/order/paid":true,"/order/tags/1":{"prefix":"b"}}"#, true),
        (r#"{"/order/tags/2":"c"}"#, false),
        (r#"{"/order/id":{"prefix":"7"}}"#, false),
        (r#"{"/":1,"/a~1b":2,"/n":null}"#, true),
        (r#"{"/none":null}"#, false),
        (r#"{"/none":{"exists":false},"/order":{"exists":true},"/n":{"exists":true}}"#, true),
        (r#"{"/order":{"exists":false}}"#, false),
        (r#"{"/order/total":{"gt":7,"lt":8}}"#, true),
        (r#"{"/order/total":{"gt":7.5}}"#, false),
        (r#"{"/order/paid":{"gt":0}}"#, false),
    ] {
        let filter = filter(&format!(r#"{{"data":{conditions}}}"#));
        assert_eq!(fits_of(&filter, &message(Some("application/json"), None, json)), fits, "{conditions}");
        assert_eq!(fits_of(&filter, &message(None, None, json)), fits, "{conditions}, not said to be JSON");
        assert!(!fits_of(&filter, &message(Some("text/plain"), None, json)), "{conditions}, said to be text");
        let event = format!(r#"{{"specversion":"1.0","data":{json}}}"#);
        let event = message(Some(cloud_event::STRUCTURED_MEDIA_TYPE), None, &event);
        assert_eq!(fits_of(&filter, &event), fits, "{conditions}, in an event");
    }
    for odd in ["", "{", "[1", "\u{1}", &"[".repeat(200)] {
        assert!(!fits_of(&filter(r#"{"data":{"/a":1}}"#), &message(None, None, odd)), "{odd}");
    }
}

#[test]
fn numbers_are_compared_exactly() {
    for (wanted, given, fits) in [
        ("9007199254740993", "9007199254740993", true),
        ("9007199254740993", "9007199254740992", false),
        ("9007199254740993", "9007199254740993.0", true),
        ("18446744073709551617", "18446744073709551616", false),
        ("0.1", "0.1000000000000000055", false),
        ("1e400", "10e399", true),
    ] {
        let filter = filter(&format!(r#"{{"data":{{"/id":{wanted}}}}}"#));
        let message = message(Some("application/json"), None, &format!(r#"{{"id":{given}}}"#));
        assert_eq!(fits_of(&filter, &message), fits, "{wanted} {given}");
    }
}

#[test]
fn whatever_is_published_as_json_is_read() {
    let filter = filter(r#"{"data":{"/kind":"a"}}"#);
    let deep = format!(r#"{{"x":{}{},"kind":"a"}}"#, "[".repeat(5000), "]".repeat(5000));
    for body in [
        deep.as_str(),
        r#"{"x":1e999,"kind":"a"}"#,
        r#"{"x":"\ud800","kind":"a"}"#,
        r#"{"\udfff":1,"kind":"\u0061"}"#,
        r#"{"kind":"b","kind":"a"}"#,
        "\u{feff} {\"kind\":\"a\"}",
    ] {
        for content_type in [None, Some("application/json"), Some("Application/Vnd.Shop+JSON; charset=utf-8")] {
            assert!(fits_of(&filter, &message(content_type, None, body)), "{content_type:?} {body:.40}");
        }
    }
}

#[test]
fn what_says_that_it_is_json_and_is_not_is_not_excluded() {
    let filter = filter(r#"{"attributes":{"type":"t"},"data":{"/kind":"a"}}"#);
    let verdict = |attributes: &str, content_type, body: &[u8]| {
        let message = message(Some(content_type), Some(attributes), "");
        filter.matches(&StoredMessage { body: body.to_vec(), ..message })
    };
    for body in [&b"{\"kind\":\"a\""[..], b"", b"\xff", b"{} {}"] {
        let unreadable = verdict(r#"{"type":"t"}"#, "application/json", body);
        assert!(matches!(unreadable, FilterVerdict::Unreadable(_)), "{body:?}");
        assert_eq!(verdict(r#"{"type":"u"}"#, "application/json", body), FilterVerdict::Excluded, "{body:?}");
        assert_eq!(verdict(r#"{"type":"t"}"#, "text/plain", body), FilterVerdict::Excluded, "{body:?}");
    }
}

#[test]
fn an_event_matches_the_same_in_every_mode() {
    // As header, as JSON, and how the data is sent in each mode
    let binary = |attributes: &str, content_type, body: &str| message(content_type, Some(attributes), body);
    let structured = |attributes: &str, more: &str| {
        let members = attributes.trim_matches(['{', '}']);
        let body = format!("{{{members},{more}}}");
        message(Some("application/CloudEvents+JSON"), Some(attributes), &body)
    };
    let json = r#"{"specversion":"1.0","type":"t","n":7,"is":true,"zero":-0}"#;
    let text = r#"{"specversion":"1.0","type":"t","n":"7","is":"true","zero":"0"}"#;
    let typed = r#"{"specversion":"1.0","type":"t","n":7,"is":true,"zero":-0,"datacontenttype":"Application/JSON"}"#;
    let modes = [
        binary(text, Some("application/json"), r#"{"id":7}"#),
        binary(text, Some("APPLICATION/JSON"), r#"{"id":7}"#),
        structured(json, r#""data":{"id":7}"#),
        structured(typed, r#""datacontenttype":"Application/JSON","data":{"id":7}"#),
        structured(json, r#""data_base64":"eyJpZCI6N30=""#),
    ];
    for (conditions, fits) in [
        (r#"{"attributes":{"n":7}}"#, true),
        (r#"{"attributes":{"n":"7","is":true,"zero":0}}"#, true),
        (r#"{"attributes":{"n":8}}"#, false),
        (r#"{"attributes":{"is":false}}"#, false),
        (r#"{"attributes":{"datacontenttype":"application/Json"}}"#, true),
        (r#"{"attributes":{"datacontenttype":{"prefix":"application/"}}}"#, true),
        (r#"{"attributes":{"datacontenttype":"text/xml"}}"#, false),
        (r#"{"data":{"/id":7}}"#, true),
        (r#"{"data":{"/id":8}}"#, false),
    ] {
        for message in &modes {
            assert_eq!(fits_of(&filter(conditions), message), fits, "{conditions} {message:?}");
        }
    }
    let xml = r#"{"specversion":"1.0","type":"t","datacontenttype":"text/xml"}"#;
    for message in [
        binary(r#"{"specversion":"1.0","type":"t"}"#, Some("text/xml"), "\"a\""),
        structured(xml, r#""data":"a""#),
        structured(xml, r#""data_base64":"ImEi""#),
    ] {
        assert!(!fits_of(&filter(r#"{"data":{"":"a"}}"#), &message), "{message:?}");
        assert!(fits_of(&filter(r#"{"attributes":{"datacontenttype":"Text/XML"}}"#), &message), "{message:?}");
    }
}

#[test]
fn what_could_never_fit_is_refused() {
    for (json, said) in [
        (r#"{"attributes":{"type":[1]}}"#, "expected a string"),
        (r#"{"attributes":{"type":{"prefix":1}}}"#, "expected a string"),
        (r#"{"attributes":{"type":{"any_of":[[1]]}}}"#, "expected a string"),
        (r#"{"attributes":{"type":{"prefix":"a","any_of":["b"]}}}"#, "expected a string"),
        (r#"{"attributes":{"type":{"suffix":"a"}}}"#, "expected a string"),
        (r#"{"attributes":{"type":{"gt":"a"}}}"#, "expected a string"),
        (r#"{"attributes":{"type":{"gt":1,"exists":true}}}"#, "expected a string"),
        (r#"{"attributes":{"type":{"exists":1}}}"#, "expected a string"),
        (r#"{"attributes":{"type":{}}}"#, "expected a string"),
        (r#"{"header":{}}"#, "unknown field"),
        (r#"{"attributes":{"Type":"a"}}"#, "names of a-z and 0-9"),
        (r#"{"attributes":{"type":{"any_of":[]}}}"#, "1 to 100 values"),
        (r#"{"data":{"order.id":7}}"#, "JSON pointers"),
        (r#"{"data":{"/a~2":7}}"#, "JSON pointers"),
    ] {
        let refused = match serde_json::from_str::<MessageFilter>(json) {
            Err(error) => error.to_string(),
            Ok(filter) => filter.check().expect_err(json),
        };
        assert!(refused.contains(said), "{json}: {refused}");
    }
    let long = format!(r#"{{"data":{{"/a":"{}"}}}}"#, "x".repeat(257));
    let long: MessageFilter = serde_json::from_str(&long).expect("JSON");
    assert!(long.check().expect_err("long").contains("at most 256 characters"));
    let many: BTreeMap<String, u8> = (0..33).map(|n| (format!("/{n}"), 1)).collect();
    let many: MessageFilter = serde_json::from_value(serde_json::json!({ "data": many })).expect("JSON");
    assert!(many.check().expect_err("many").contains("at most 32 conditions"));
}

#[test]
fn it_is_written_as_it_was_read() {
    let json = r#"{"attributes":{"n":{"gte":1.0,"lt":2},"type":{"prefix":"order."}},"data":{"/a":7.10e400,"/b":{"any_of":["x",null]},"/c":{"exists":false}}}"#;
    assert_eq!(serde_json::to_string(&filter(json)).expect("JSON"), json);
}
