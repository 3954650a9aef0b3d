//! What is found in deliveries, and what is not.

use super::*;

const DEADLINE: Duration = Duration::from_millis(100);

fn at(sequence: u64) -> CheckedPosition {
    CheckedPosition { epoch: 5, sequence }
}

fn mark(number: u64) -> MessageTag {
    MessageTag { publisher: 1, number }
}

/// Numbers 0 to 4 at positions 5-0 to 5-4.
fn history() -> Vec<(CheckedPosition, MessageTag)> {
    (0..5).map(|number| (at(number), mark(number))).collect()
}

/// Times count from one moment.
struct CheckClock(Instant);

impl CheckClock {
    fn new() -> Self {
        Self(Instant::now())
    }

    fn ms(&self, ms: u64) -> Instant {
        self.0 + Duration::from_millis(ms)
    }

    /// A delivery that takes ten milliseconds.
    fn delivery(&self, ms: u64, number: u64, response: CheckedResponse) -> CheckedDelivery {
        let (began, ended) = (self.ms(ms), self.ms(ms + 10));
        CheckedDelivery {
            position: at(number),
            tag: mark(number),
            attempt: 1,
            worker: 0,
            started_at: began,
            ended_at: ended,
            response,
        }
    }

    /// All of them, accepted, 20 ms apart.
    fn all_deliveries(&self) -> Vec<CheckedDelivery> {
        (0..5).map(|number| self.delivery(number * 20, number, CheckedResponse::Accepted)).collect()
    }

    fn strike(&self, fault: Fault, worker: Option<usize>, from: u64, to: u64) -> FaultWindow {
        FaultWindow { fault, worker, from: self.ms(from), to: self.ms(to) }
    }
}

fn check(deliveries: &[CheckedDelivery], strikes: &[FaultWindow]) -> DeliveryTally {
    check_deliveries(&history(), deliveries, strikes, DEADLINE)
}

#[test]
fn everything_once_is_right() {
    let all = CheckClock::new().all_deliveries();
    assert_eq!(check(&all, &[]), DeliveryTally { accepted: 5, ..DeliveryTally::default() });
    assert_eq!(check_order(&history(), &all), Vec::<String>::new());
}

#[test]
fn what_never_came_and_what_was_never_accepted_is_lost() {
    let clock = CheckClock::new();
    let mut all = clock.all_deliveries();
    all.remove(2);
    assert_eq!(check(&all, &[]).findings, ["publisher 1 number 2 at 5-2 was never delivered"]);
    for response in [CheckedResponse::Refused, CheckedResponse::ConnectionClosed, CheckedResponse::ClientGone] {
        let mut all = clock.all_deliveries();
        all[4].response = response;
        let tally = check(&all, &[]);
        assert!(tally.findings[0].contains("given up after") && tally.accepted == 4, "{tally:?}");
    }
}

#[test]
fn what_the_history_does_not_have_or_has_otherwise_is_found() {
    let clock = CheckClock::new();
    let mut all = clock.all_deliveries();
    all.push(clock.delivery(200, 9, CheckedResponse::Accepted));
    assert!(check(&all, &[]).findings[0].contains("where the history has nothing"));
    let mut all = clock.all_deliveries();
    all[1].tag = mark(3);
    let findings = check(&all, &[]).findings;
    assert!(findings.iter().any(|text| text.contains("where the history has publisher 1 number 1")), "{findings:?}");
}

#[test]
fn what_comes_again_after_no_success_is_explained_by_that() {
    for response in [CheckedResponse::Refused, CheckedResponse::ConnectionClosed, CheckedResponse::ClientGone] {
        let clock = CheckClock::new();
        let mut all = clock.all_deliveries();
        all[4].response = response;
        all.push(clock.delivery(500, 4, CheckedResponse::Accepted));
        let tally = check(&all, &[]);
        assert_eq!(
            (tally.redeliveries, tally.findings),
            (BTreeMap::from([(RedeliveryCause::NotAccepted, 1)]), vec![]),
            "{response:?}"
        );
    }
}

#[test]
fn the_retry_of_what_failed_is_explained_even_if_it_was_handed_out_and_accepted_meanwhile() {
    let clock = CheckClock::new();
    let mut all = clock.all_deliveries();
    all[4].response = CheckedResponse::Refused;
    all.push(clock.delivery(200, 4, CheckedResponse::Accepted));
    let retry = |attempt| CheckedDelivery { attempt, ..clock.delivery(500, 4, CheckedResponse::Accepted) };
    let again = |attempt| check(&[all.clone(), vec![retry(attempt)]].concat(), &[]).redeliveries;
    assert_eq!(again(2), BTreeMap::from([(RedeliveryCause::NotAccepted, 2)]));
    for attempt in [1, 3] {
        assert_eq!(
            again(attempt),
            BTreeMap::from([(RedeliveryCause::NotAccepted, 1), (RedeliveryCause::Unexplained, 1)]),
            "{attempt}"
        );
    }
}

#[test]
fn what_is_handed_out_anew_though_its_retry_was_accepted_is_explained_by_what_broke_a_client_that_had_it_first() {
    let clock = CheckClock::new();
    let mut all = clock.all_deliveries();
    // It fails at worker 0, goes on as a job, passes at worker 1, and comes again as if nothing had been
    all[4].response = CheckedResponse::Refused;
    all.push(CheckedDelivery { attempt: 2, worker: 1, ..clock.delivery(300, 4, CheckedResponse::Accepted) });
    all.push(clock.delivery(500, 4, CheckedResponse::Accepted));
    let again = |worker| check(&all, &[clock.strike(Fault::KillWorker, Some(worker), 100, 120)]).redeliveries;
    assert_eq!(
        again(0),
        BTreeMap::from([(RedeliveryCause::NotAccepted, 1), (RedeliveryCause::DuringFault(Fault::KillWorker), 1)])
    );
    assert_eq!(
        again(1),
        BTreeMap::from([(RedeliveryCause::NotAccepted, 1), (RedeliveryCause::Unexplained, 1)]),
        "of its own it had none"
    );
}

#[test]
fn what_comes_again_after_success_is_explained_by_what_broke_its_worker_then_and_by_nothing_else() {
    let clock = CheckClock::new();
    let mut all = clock.all_deliveries();
    // Accepted at 90 ms, and again at 500 ms
    all.push(clock.delivery(500, 4, CheckedResponse::Accepted));
    let cause = |strike: FaultWindow| {
        let tally = check(&all, &[strike]);
        assert_eq!((tally.redeliveries.len(), tally.accepted, tally.findings.len()), (1, 5, 0));
        tally.redeliveries.into_keys().next().expect("one")
    };
    for (fault, worker, from, to) in [
        (Fault::KillWorker, Some(0), 85, 120),
        (Fault::StopWorker, Some(0), 20, 81),
        (Fault::KillRedis, None, 189, 400),
        (Fault::CutCommands, None, 90, 90),
    ] {
        assert_eq!(cause(clock.strike(fault, worker, from, to)), RedeliveryCause::DuringFault(fault));
    }
    for (fault, worker, from, to) in [
        (Fault::KillWorker, Some(1), 85, 120),
        (Fault::KillWorker, Some(0), 10, 70),
        (Fault::KillRedis, None, 191, 400),
        (Fault::KillGateway, None, 85, 120),
        (Fault::CutReaders, None, 85, 120),
    ] {
        assert_eq!(cause(clock.strike(fault, worker, from, to)), RedeliveryCause::Unexplained, "{fault:?} {from}");
    }
    let text = check(&all, &[]).unexplained.join("\n");
    assert!(text.contains("number 4 at 5-4 was accepted from worker 0") && text.contains("410ms later"), "{text}");
}

#[test]
fn what_a_worker_sent_that_stops_may_be_read_after_another_has_delivered_it() {
    let clock = CheckClock::new();
    let mut all = clock.all_deliveries();
    all.push(CheckedDelivery { worker: 1, ..clock.delivery(95, 4, CheckedResponse::Accepted) });
    let causes = |fault, worker| {
        let tally = check(&all, &[clock.strike(fault, Some(worker), 20, 120)]);
        tally.redeliveries.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(causes(Fault::StopWorker, 1), [RedeliveryCause::DuringFault(Fault::StopWorker)]);
    assert_eq!(causes(Fault::StopWorker, 2), [RedeliveryCause::Unexplained]);
    assert_eq!(causes(Fault::KillWorker, 1), [RedeliveryCause::Unexplained], "others have to wait for its lease");
}

#[test]
fn in_order_a_message_may_come_again_until_the_next_one_is_accepted() {
    let clock = CheckClock::new();
    let mut all =
        vec![clock.delivery(0, 0, CheckedResponse::Refused), clock.delivery(20, 0, CheckedResponse::Accepted)];
    all.push(clock.delivery(40, 0, CheckedResponse::Accepted));
    all.push(clock.delivery(60, 1, CheckedResponse::ConnectionClosed));
    all.push(clock.delivery(80, 0, CheckedResponse::Accepted));
    assert_eq!(check_order(&history(), &all), Vec::<String>::new());
}

#[test]
fn overtaking_is_found() {
    let clock = CheckClock::new();
    // In front of one that failed
    let mut all = clock.all_deliveries();
    all[1].response = CheckedResponse::Refused;
    all.truncate(3);
    assert_eq!(check_order(&history(), &all), ["worker 0 delivered 5-2 before 5-1 was accepted"]);
    // While the one before is under way
    let mut all = clock.all_deliveries();
    all[1].ended_at = clock.ms(45);
    assert_eq!(check_order(&history(), &all), ["worker 0 delivered 5-2 before 5-1 was accepted"]);
    // In front of one that is skipped, and so on
    let mut all = clock.all_deliveries();
    all.remove(3);
    assert_eq!(check_order(&history(), &all), ["worker 0 delivered 5-4 before 5-3 was accepted"]);
    // Again, when the one behind it has been accepted
    let mut all = clock.all_deliveries();
    all.push(clock.delivery(200, 3, CheckedResponse::Accepted));
    assert_eq!(check_order(&history(), &all), ["worker 0 delivered 5-3 after 5-4 had been accepted"]);
}

#[test]
fn a_message_is_one_job() {
    let one_each: Vec<CheckedPosition> = (0..5).map(at).collect();
    assert_eq!(check_jobs(&history(), &one_each), Vec::<String>::new());
    let mut jobs = one_each.clone();
    jobs.push(at(2));
    assert_eq!(check_jobs(&history(), &jobs), ["publisher 1 number 2 at 5-2 became 2 jobs"]);
    assert_eq!(check_jobs(&history(), &one_each[1..]), ["publisher 1 number 0 at 5-0 became 0 jobs"]);
    let jobs: Vec<CheckedPosition> = (0..6).map(at).collect();
    assert_eq!(check_jobs(&history(), &jobs), ["there is a job for 5-5, where the history has nothing"]);
}

#[test]
fn what_is_wrong_many_times_is_counted() {
    let findings =
        check_deliveries(&(0..50).map(|n| (at(n), mark(n))).collect::<Vec<_>>(), &[], &[], DEADLINE).findings;
    assert_eq!((findings.len(), findings[10].as_str()), (11, "and 40 more of this kind"));
}
