//! What the fuzzers run: every parser of bytes from outside, and what must hold for whatever they read.
//!
//! `make fuzz` runs each target with libFuzzer (`fuzz_targets` has a program for each); a test here replays the corpora in
//! `corpus`, so that an input that once failed never fails again. A target panics if something does not hold.

#![forbid(unsafe_code)]

mod access;
mod error;
mod gateway;
mod jobs;
mod messages;
mod stored;
mod text;

/// What a target gets: any bytes.
pub type Target = fn(&[u8]);

/// All targets by name, each with a folder in `corpus` and a program in `fuzz_targets`.
pub const TARGETS: &[(&str, Target)] = &[
    ("job_request", jobs::job_request),
    ("batch", jobs::batch),
    ("workflow_request", jobs::workflow_request),
    ("cron_request", jobs::cron_request),
    ("cron_expression", jobs::cron_expression),
    ("cloud_event", messages::cloud_event),
    ("cloud_event_headers", messages::cloud_event_headers),
    ("message_item", messages::message_item),
    ("subscription_request", messages::subscription_request),
    ("message_filter", messages::message_filter),
    ("client_frame", gateway::client_frame),
    ("frame_heads", gateway::frame_heads),
    ("channel_pattern", text::channel_pattern),
    ("json_members", text::json_members),
    ("json_repair", text::json_repair),
    ("media_type", text::media_type),
    ("names", text::names),
    ("resume_position", text::resume_position),
    ("time", text::time),
    ("url_template", text::url_template),
    ("api_key", access::api_key),
    ("token_claims", access::token_claims),
    ("issuer_keys", access::issuer_keys),
    ("job_record", stored::job_record),
    ("stored_json", stored::stored_json),
    ("sealed_value", stored::sealed_value),
    ("notification", stored::notification),
];

/// Runs a target.
///
/// # Panics
/// There is no target of that name, or something does not hold.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| target);
    target.expect("a target of that name")(data);
}

/// A moment for what is relative to now: 2026-11-22T13:01:07Z.
const NOW: i64 = 1_795_352_467_000;
/// `gateway.json_depth_limit`.
const DEPTH_LIMIT: usize = 64;

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    fn names_in(folder: &str) -> BTreeSet<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        entries.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect()
    }

    #[test]
    fn every_corpus_is_replayed() {
        for (name, target) in TARGETS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
            let mut inputs = 0;
            for entry in fs::read_dir(folder).expect(name) {
                let path = entry.expect(name).path();
                let data = fs::read(&path).expect(name);
                println!("{}", path.display());
                target(&data);
                // Cut short anywhere, as a broken connection does
                for end in [data.len() / 3, data.len().saturating_sub(1)] {
                    target(&data[..end]);
                }
                inputs += 1;
            }
            assert!(inputs > 0, "corpus/{name} has an input");
        }
    }

    #[test]
    fn every_target_has_a_program_and_a_corpus() {
        let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(targets, names_in("fuzz_targets"));
        assert_eq!(targets, names_in("corpus"));
    }
}
