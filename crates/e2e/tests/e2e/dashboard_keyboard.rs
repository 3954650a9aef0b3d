//! The dashboard without a mouse, and for somebody who hears it.

use fantoccini::key::Key;
use serde_json::{Value, json};
use testkit::eventually;

use crate::{
    chromium::{Browser, BrowserOptions},
    dashboard_browser::fail,
    kit::GalleyKit,
};

/// The most stops of a page.
const MAX_STOPS: usize = 200;

async fn press(browser: &Browser, key: Key) {
    let active = browser.client.active_element().await.expect("something has the focus");
    active.send_keys(&key.to_string()).await.expect("a key");
}

/// What has the focus, as people read or hear it.
async fn focused(browser: &Browser) -> String {
    let script = "const at = document.activeElement;
        return at.getAttribute('aria-label') || at.innerText.trim() || at.id || at.name || at.localName";
    browser.run(script).await.as_str().unwrap_or_default().to_owned()
}

/// Goes on with Tab until something has the focus.
async fn tab_to(browser: &Browser, wanted: &str) {
    let mut seen = Vec::new();
    for _ in 0..MAX_STOPS {
        press(browser, Key::Tab).await;
        let now = focused(browser).await;
        if now.starts_with(wanted) {
            return;
        }
        seen.push(now);
    }
    panic!("Tab does not lead to {wanted}, but to {seen:?}");
}

#[tokio::test]
async fn the_main_paths_need_no_mouse_and_the_focus_is_always_seen() {
    let kit =
        GalleyKit::start_with(testkit::RedisServer::start(), &[("GALLEY__JOBS__ON_EXHAUSTION", "dead_letter")]).await;
    let job = |kind: &str| json!({ "type": kind, "args": [], "options": { "queue": "mails" } });
    let dead = fail(&kit, "mails", &job("invoice.send"), "timed out").await;
    let running = kit.enqueue(&job("long")).await;
    kit.fetch("mails").await.expect("the job");
    let Some(browser) = Browser::start(&kit.gateway.url(""), BrowserOptions::default()).await else { return };

    // The first stop leads over the navigation
    browser.open("/ui/dead-letters").await;
    press(&browser, Key::Tab).await;
    assert_eq!(focused(&browser).await, "Skip to the content");
    press(&browser, Key::Enter).await;
    tab_to(&browser, "Retry 1").await;
    press(&browser, Key::Enter).await;
    browser.wait_for("1 jobs are tried again").await;
    assert_eq!(kit.job(&dead).await["state"], "available");

    browser.open(&format!("/ui/jobs/{running}")).await;
    tab_to(&browser, "Cancel the job").await;
    press(&browser, Key::Enter).await;
    tab_to(&browser, "Cancel the job").await;
    press(&browser, Key::Enter).await;
    browser.wait_for("The job was cancelled").await;

    // What can be undone has the focus on Undo
    browser.hold_timers().await;
    tab_to(&browser, "Delete").await;
    press(&browser, Key::Enter).await;
    tab_to(&browser, "Delete").await;
    press(&browser, Key::Enter).await;
    browser.wait_for("Undo").await;
    assert_eq!(focused(&browser).await, "Undo");
    press(&browser, Key::Enter).await;
    browser.wait_for("Nothing was changed").await;
    assert_eq!(kit.job(&running).await["state"], "cancelled");

    browser.open("/ui/queues").await;
    tab_to(&browser, "Pause: mails").await;
    press(&browser, Key::Enter).await;
    browser.wait_for("mails is paused").await;
    // Escape closes a menu
    tab_to(&browser, "More: mails").await;
    press(&browser, Key::Enter).await;
    browser.wait_for("Delete mails").await;
    press(&browser, Key::Escape).await;
    assert!(!browser.text().await.contains("Delete mails"));

    for path in ["/", "/ui/jobs", "/ui/queues", "/ui/dead-letters", "/ui/workers", "/ui/keys", "/ui/try"] {
        browser.open(path).await;
        let mut stops = 0;
        loop {
            press(&browser, Key::Tab).await;
            let script = "const at = document.activeElement;
                if (at === document.body) return null;
                const style = getComputedStyle(at), place = at.getBoundingClientRect();
                return style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2 && place.width > 0";
            let is_seen = browser.run(script).await;
            stops += 1;
            if is_seen.is_null() || stops == MAX_STOPS {
                break;
            }
            assert_eq!(is_seen, true, "{path}: the focus is not seen on {}", focused(&browser).await);
        }
        assert!(stops > 15, "{path} has {stops} stops");
    }
    browser.close().await;
}

#[tokio::test]
async fn what_moves_leaves_focus_and_menus_alone_and_says_only_what_is_new() {
    let kit = GalleyKit::start().await;
    let id = kit.enqueue(&json!({ "type": "long", "args": [], "options": { "queue": "mails" } })).await;
    let Some(browser) = Browser::start(&kit.gateway.url(""), BrowserOptions::default()).await else { return };
    browser.open("/").await;
    let watch = "window.said = 0;
        for (const box of document.querySelectorAll('[role=status], [aria-live]'))
            new MutationObserver(() => window.said++).observe(box, { childList: true, characterData: true, subtree: true });
        document.querySelector('[data-live=numbers] a').focus();
        window.first = document.activeElement";
    browser.run(watch).await;
    let looks = "return Number(document.querySelector('[data-follow]').dataset.moved || 0)";
    let before = browser.run(looks).await.as_u64().unwrap_or_default();
    for number in 0..30 {
        kit.enqueue(&json!({ "type": "more", "args": [number], "options": { "queue": "mails" } })).await;
    }
    let moved = || async {
        let has_moved = browser.run(looks).await.as_u64().unwrap_or_default() > before + 1;
        let shows = browser.run("return document.querySelector('[data-live=numbers] a').textContent").await == "31";
        (has_moved && shows).then_some(())
    };
    eventually("the numbers move", moved).await;
    assert_eq!(browser.run("return document.activeElement === window.first").await, true, "the focus stays");
    let said = browser.run("return window.said").await.as_u64().unwrap_or(u64::MAX);
    assert!(said <= 1, "a screen reader hears of a problem once, and of numbers never: {said}");

    // A menu stays open, and means the same, while its job goes on
    browser.open(&format!("/ui/jobs/{id}")).await;
    browser.click_text("Cancel the job").await;
    let token = kit.fetch("mails").await.expect("the job")["token"].clone();
    let progress = json!({ "progress": 0.4, "token": token });
    assert_eq!(kit.post(&format!("/ojs/v1/jobs/{id}/progress"), &progress).await.status(), 200);
    let shows = || async {
        let text = browser.run("return document.querySelector('[data-live=side]').textContent").await;
        text.as_str().is_some_and(|text| text.contains("attempt 1 started")).then_some(())
    };
    eventually("the timeline moves", shows).await;
    assert_eq!(browser.run("return document.querySelectorAll('details.confirm[open]').length").await, 1);
    browser.click(".confirm[open] button.danger").await;
    browser.wait_for("The job was cancelled").await;
    assert_eq!(kit.job(&id).await["state"], Value::from("cancelled"));
    browser.close().await;
}
