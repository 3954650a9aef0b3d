//! The list of the workflows that run.

use std::collections::BTreeSet;

use store::workflows::WorkflowCursor;

use crate::{
    kit::StoreKit,
    workflows::{chain, group, pull, start, state, succeed},
};

#[tokio::test]
async fn running_workflows_are_listed_and_those_that_are_over_are_not() {
    let kit = StoreKit::start();
    let (first, second) = (start(&kit, &chain(1)).await, start(&kit, &group(2)).await);
    let list = || async { kit.workflows.running_workflows(None, 10, None).await.expect("redis runs").workflows };
    assert_eq!(list().await.len(), 2);
    assert_eq!(kit.workflows.running_workflows(None, 1, None).await.expect("redis runs").workflows.len(), 1);
    succeed(&kit, &pull(&kit, "default").await.expect("a step"), "1").await;
    assert_eq!(list().await.iter().map(|view| view.id).collect::<Vec<_>>(), [second]);
    assert_eq!(state(&kit, first).await, "completed");
}

#[tokio::test]
async fn running_workflows_are_listed_in_pages_each_once_even_if_all_are_checked_at_one_moment() {
    let kit = StoreKit::start();
    let mut started = BTreeSet::new();
    for _ in 0..7 {
        started.insert(start(&kit, &chain(1)).await);
    }
    // More than the list reads of its index at a time have one score, and some of it leads nowhere
    let mut write = redis::pipe();
    for id in &started {
        write.zadd("galley:workflows", id.to_string(), 1000);
    }
    for n in 0..300 {
        write.zadd("galley:workflows", format!("019539a4-b68c-7def-8000-{n:012x}"), 1000);
    }
    write.zadd("galley:workflows", "no id", 1000);
    write.exec_async(&mut kit.redis.clone()).await.expect("redis runs");

    let (mut listed, mut after, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = kit.workflows.running_workflows(after, 2, None).await.expect("redis runs");
        assert!(page.workflows.len() <= 2);
        listed.extend(page.workflows.into_iter().map(|view| view.id));
        pages += 1;
        let Some(next) = page.next else { break };
        // What it is written as is read back
        after = Some(next.to_string().parse().expect("a cursor"));
    }
    assert_eq!((listed.len(), listed.into_iter().collect()), (7, started));
    assert_eq!(pages, 4);
    for garbage in ["", ".", "1", "1.x", "-1.019539a4-b68c-7def-8000-1a2b3c4d5e6f", "9999999999999999.a"] {
        assert!(garbage.parse::<WorkflowCursor>().is_err(), "{garbage}");
    }
}
