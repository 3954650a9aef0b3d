//! Operators alert on log events: docs/reference/log-events.md lists each one of the source, and no other.

use std::{collections::BTreeSet, fs, path::Path};

fn add_source_events(folder: &Path, events: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            add_source_events(&path, events);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = fs::read_to_string(&path).expect("text");
            let after_each = source.split("event = \"").skip(1);
            let names = after_each.filter_map(|rest| rest.split_once('"')).map(|(name, _)| name.to_owned());
            events.extend(names.filter(|name| name.contains('.')));
        }
    }
}

#[test]
fn each_log_event_of_the_source_is_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut in_source = BTreeSet::new();
    for name in ["common", "store", "delivery", "worker", "gateway", "queue-worker", "pubsub-worker"] {
        add_source_events(&root.join("crates").join(name).join("src"), &mut in_source);
    }
    let page = fs::read_to_string(root.join("docs/reference/log-events.md")).expect("the page");
    let first_cells = page.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('|').nth(1));
    let documented: BTreeSet<String> =
        first_cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(ToOwned::to_owned).collect();
    assert_eq!(in_source, documented);
}
