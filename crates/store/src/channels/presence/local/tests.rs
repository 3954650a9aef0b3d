//! What is written and told follows from what a gateway has.

use std::time::Duration;

use super::*;
use crate::{channels::presence::stored_info::StoredInfos, sealing::Sealer};

fn channel() -> ChannelName {
    "c".parse().expect("a name")
}

fn id(text: &str) -> MemberId {
    text.parse().expect("an id")
}

fn info(text: &str) -> MemberInfo {
    MemberInfo::from_stored(text)
}

fn member(text: &str, about: &str) -> ChannelMember {
    ChannelMember { id: id(text), since: 7, info: info(about) }
}

fn present(text: &str, about: &str) -> MemberChange {
    MemberChange::Present(member(text, about))
}

fn joins(members: &[(&str, &str)]) -> SyncPlan {
    SyncPlan::Join(members.iter().map(|(member, about)| (id(member), info(about))).collect())
}

fn told(receiver: &mut mpsc::Receiver<PresenceEvent>) -> Vec<String> {
    std::iter::from_fn(|| receiver.try_recv().ok()).map(|event| format!("{} {}", event.kind, event.json)).collect()
}

/// Does what the plan says, as Redis would with that much room.
fn write(local: &mut LocalPresence, now: Instant, room: usize) -> usize {
    let mut writes = 0;
    loop {
        match local.plan(now) {
            SyncPlan::Join(members) => {
                let answers = (0..members.len()).map(|n| n < room);
                local.joined(&members, answers, true);
            }
            SyncPlan::Leave(members) => local.left(&members),
            SyncPlan::Nothing => return writes,
        }
        writes += 1;
    }
}

#[test]
fn connections_of_a_member_count_once_and_it_leaves_a_grace_after_the_last() {
    let (mut local, now) = (LocalPresence::default(), Instant::now());
    let later = now + Duration::from_secs(5);
    local.connect(&id("a"), info("1"));
    local.connect(&id("a"), info("1"));
    assert_eq!(local.plan(now), joins(&[("a", "1")]));
    assert_eq!(write(&mut local, now, 9), 1);
    local.connect(&id("a"), info("2"));
    assert_eq!(local.plan(now), joins(&[("a", "2")]), "its newest info counts");
    write(&mut local, now, 9);
    assert_eq!([0, 1, 2].map(|_| local.disconnect(&id("a"), later)), [false, false, true]);
    assert_eq!(local.plan(now), SyncPlan::Nothing);
    // It comes back in time, and goes for good
    local.connect(&id("a"), info("2"));
    assert_eq!(local.plan(later), SyncPlan::Nothing);
    assert!(local.disconnect(&id("a"), later) && !local.is_idle());
    assert_eq!(local.plan(later), SyncPlan::Leave(vec![id("a")]));
    write(&mut local, later, 9);
    assert!(local.is_idle());
}

#[test]
fn a_lost_lease_writes_all_members_again_and_a_refused_one_is_tried_with_each_renewal() {
    let (mut local, now) = (LocalPresence::default(), Instant::now());
    for name in ["a", "b"] {
        local.connect(&id(name), info(""));
    }
    write(&mut local, now, 1);
    assert!(local.is_refused(&id("b")) && !local.is_refused(&id("a")) && local.has_stored_members());
    assert!(!local.renewed(true, 0, &channel()));
    assert_eq!(local.plan(now), joins(&[("b", "")]));
    write(&mut local, now, 1);
    assert!(!local.renewed(false, 0, &channel()) && !local.has_stored_members());
    assert_eq!(local.plan(now), joins(&[("a", ""), ("b", "")]));
    // The lease had ended when one more came
    local.connect(&id("c"), info(""));
    local.joined(&[(id("c"), info(""))], [true].into_iter(), false);
    assert_eq!(local.plan(now), joins(&[("a", ""), ("b", "")]));
    // A refused one that goes is not written
    let mut local = LocalPresence::default();
    local.connect(&id("x"), info(""));
    write(&mut local, now, 0);
    local.disconnect(&id("x"), now);
    assert_eq!(local.plan(now), SyncPlan::Nothing);
    assert!(local.is_idle());
}

#[test]
fn many_members_are_written_in_parts() {
    let (mut local, now) = (LocalPresence::default(), Instant::now());
    for n in 0..=MEMBERS_PER_CALL {
        local.connect(&id(&n.to_string()), info(""));
    }
    assert_eq!(write(&mut local, now, usize::MAX), 2);
    for n in 0..=MEMBERS_PER_CALL {
        local.disconnect(&id(&n.to_string()), now);
    }
    assert_eq!(write(&mut local, now, usize::MAX), 2);
    assert!(local.is_idle());
}

#[test]
fn a_watcher_has_all_members_first_then_each_change_once() {
    let mut local = LocalPresence::default();
    let (sender, mut receiver) = mpsc::channel(9);
    let watcher = local.add_watcher(sender, &channel());
    assert!(local.begin_load() && !local.begin_load());
    assert!(local.hear(&channel(), 4, present("a", "")), "it is read with the others");
    assert!(!local.accept(&channel(), 3, vec![]), "the event was newer");
    assert!(local.accept(&channel(), 4, vec![member("a", "1")]));
    assert!(local.hear(&channel(), 4, present("a", "1")) && local.hear(&channel(), 5, present("b", "")));
    assert!(local.hear(&channel(), 6, present("b", "")) && local.hear(&channel(), 7, present("b", "2")));
    assert!(local.hear(&channel(), 8, MemberChange::Left(id("a"))));
    let of = |name: &str, rest: &str| {
        format!(r#""channel":"c","member":"{name}","since":"1970-01-01T00:00:00.007Z"{rest}}}"#)
    };
    let expected = [
        r#"members {"channel":"c","members":[{"member":"a","since":"1970-01-01T00:00:00.007Z","info":1}]}"#.to_owned(),
        format!("join {{{}", of("b", "")),
        format!("update {{{}", of("b", r#","info":2"#)),
        format!("leave {{{}", of("a", r#","info":1"#)),
    ];
    assert_eq!(told(&mut receiver), expected);
    // One is missing: what changed is found when all are read again
    assert!(!local.hear(&channel(), 10, present("d", "")));
    assert!(local.begin_load() && local.accept(&channel(), 10, vec![member("c", ""), member("d", "")]));
    let kinds: Vec<String> = told(&mut receiver).iter().map(|event| event[..4].to_owned()).collect();
    assert_eq!(kinds, ["leav", "join", "join"]);
    assert!(!local.renewed(true, 10, &channel()) && local.renewed(true, 11, &channel()));
    assert!(local.renewed(true, 0, &channel()), "redis has lost them");
    assert!(local.remove_watcher(watcher) && local.is_idle());
}

#[test]
fn a_watcher_that_reads_too_slowly_gets_all_members_again() {
    let mut local = LocalPresence::default();
    let (slow, mut receiver) = mpsc::channel(2);
    let (gone, _) = mpsc::channel(1);
    local.add_watcher(slow, &channel());
    local.add_watcher(gone, &channel());
    assert!(local.begin_load() && local.accept(&channel(), 1, vec![]));
    for version in 2..6 {
        local.hear(&channel(), version, present(&version.to_string(), ""));
    }
    assert_eq!(told(&mut receiver).len(), 2);
    local.renewed(true, 5, &channel());
    let all = told(&mut receiver);
    assert!(all.len() == 1 && all[0].starts_with("members ") && all[0].contains("\"5\""), "{all:?}");
    local.hear(&channel(), 6, MemberChange::Left(id("2")));
    assert!(told(&mut receiver)[0].starts_with("leave "));
}

#[test]
fn an_event_is_read_and_anything_else_ignored() {
    let (sealer, channel) = (Sealer::default(), channel());
    let infos = StoredInfos { sealer: &sealer, channel: &channel };
    let read = |text: &str| MemberChange::parse(&infos, text.as_bytes());
    assert_eq!(read("5 join a 7 {\"x\": 1}"), Some((5, present("a", "{\"x\": 1}"))));
    assert_eq!(read("5 update a 7 "), Some((5, present("a", ""))));
    assert_eq!(read("5 leave a "), Some((5, MemberChange::Left(id("a")))));
    for noise in ["", "5", "5 join a", "5 join a 7", "x join a 7 ", "5 stay a 7 ", "5 leave é "] {
        assert_eq!(read(noise), None, "{noise}");
    }
}
