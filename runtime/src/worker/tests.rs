use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;

use super::*;
use crate::metrics::for_tests;

fn start<F, Fut>(queue: &Queue<&'static str>, options: RunOptions, pass: F) -> CancellationToken
where
    F: Fn(&'static str) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Next, Failure>> + Send + 'static,
{
    let stop = CancellationToken::new();
    tokio::spawn(run(queue.clone(), options, for_tests(), stop.clone(), pass));
    stop
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn one_pass_per_key_at_a_time_and_a_change_meanwhile_runs_it_again() {
    let queue = Queue::new("test");
    let (running, most, total) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicUsize::new(0)),
    );
    let (r, m, t) = (running, most.clone(), total.clone());
    let _stop = start(&queue, RunOptions::new().resync(None), move |_| {
        let (running, most, total) = (r.clone(), m.clone(), t.clone());
        async move {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            seconds(1).await;
            running.fetch_sub(1, Ordering::SeqCst);
            total.fetch_add(1, Ordering::SeqCst);
            Ok(Next::OnChange)
        }
    });
    for _ in 0..5 {
        queue.add("a");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    seconds(10).await;
    assert_eq!(most.load(Ordering::SeqCst), 1);
    assert_eq!(
        total.load(Ordering::SeqCst),
        2,
        "one pass, and one for all changes meanwhile"
    );
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_fenced_and_retried_and_others_go_on() {
    let queue = Queue::new("test");
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen = log.clone();
    let _stop = start(&queue, RunOptions::new(), move |key| {
        seen.lock().push(key);
        async move {
            if key == "poison" {
                panic!("bad object");
            }
            Ok(Next::Done)
        }
    });
    queue.add("poison");
    queue.add("good");
    seconds(30).await;
    let log = log.lock();
    assert!(log.contains(&"good"));
    let poisoned = log.iter().filter(|key| **key == "poison").count();
    assert!(
        (4..=7).contains(&poisoned),
        "{poisoned} in 30 s: 1, 2, 4, 8, 16 s apart"
    );
}

#[tokio::test(start_paused = true)]
async fn a_pass_beyond_its_deadline_is_dropped() {
    let queue = Queue::new("test");
    let starts = Arc::new(AtomicUsize::new(0));
    let count = starts.clone();
    let options = RunOptions::new().pass_deadline(Duration::from_secs(5));
    let _stop = start(&queue, options, move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        std::future::pending()
    });
    queue.add("stuck");
    seconds(8).await;
    assert_eq!(starts.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn backoff_doubles_to_five_minutes_and_success_resets_it() {
    for (attempt, seconds) in [
        (1, 1.0),
        (2, 2.0),
        (5, 16.0),
        (9, 256.0),
        (10, 300.0),
        (40, 300.0),
    ] {
        let delay = backoff(attempt).as_secs_f64();
        assert!(
            (0.79 * seconds..=1.21 * seconds).contains(&delay),
            "{attempt}: {delay}"
        );
    }
    let queue = Queue::new("test");
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let _stop = start(&queue, RunOptions::new().resync(None), move |_| {
        let call = count.fetch_add(1, Ordering::SeqCst);
        async move {
            // Two failures, a success, and again.
            if call % 3 == 2 {
                Ok(Next::After(Duration::ZERO))
            } else {
                Err(Failure::transient("Bad", "x"))
            }
        }
    });
    queue.add("a");
    seconds(60).await;
    let calls = calls.load(Ordering::SeqCst);
    assert!(calls > 45, "{calls}: without the reset it would be about 6");
}

#[tokio::test(start_paused = true)]
async fn classes_wait_as_they_should() {
    let queue = Queue::new("test");
    for (class, low, high) in [
        (Class::Conflict, 0.2, 0.5),
        (Class::Waiting(Duration::from_secs(7)), 6.9, 7.1),
        (Class::Throttled(Some(Duration::from_secs(20))), 19.9, 20.1),
        (Class::Terminal, 470.0, 730.0),
    ] {
        let start = Instant::now();
        retry(
            &queue,
            &"k",
            &Failure::new(class, "X", "x"),
            Some(Duration::from_secs(600)),
        );
        assert_eq!(queue.take().await, "k");
        queue.done(&"k");
        queue.succeeded(&"k");
        let waited = start.elapsed().as_secs_f64();
        assert!((low..=high).contains(&waited), "{class:?}: {waited}");
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_gives_running_passes_their_grace() {
    let queue = Queue::new("test");
    let ended = Arc::new(Mutex::new(Vec::new()));
    let log = ended.clone();
    let stop = CancellationToken::new();
    let runner = tokio::spawn(run(
        queue.clone(),
        RunOptions::new().grace(Duration::from_secs(10)),
        for_tests(),
        stop.clone(),
        move |key: &'static str| {
            let log = log.clone();
            async move {
                seconds(if key == "short" { 5 } else { 50 }).await;
                log.lock().push(key);
                Ok(Next::Done)
            }
        },
    ));
    queue.add("short");
    queue.add("long");
    seconds(1).await;
    stop.cancel();
    let start = Instant::now();
    runner.await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 10);
    assert_eq!(*ended.lock(), ["short"]);
}

#[tokio::test(start_paused = true)]
async fn losing_the_lead_drops_passes_and_winning_runs_them_again() {
    let queue = Queue::new("test");
    let metrics = for_tests();
    let (lease, control) = crate::lease::tests::controlled();
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen = log.clone();
    tokio::spawn(run_leading(
        queue.clone(),
        RunOptions::new(),
        metrics,
        CancellationToken::new(),
        lease,
        move |key: &'static str, token| {
            let log = seen.clone();
            async move {
                log.lock().push(format!("begin {key}"));
                seconds(5).await;
                token.check()?;
                log.lock().push(format!("end {key}"));
                Ok(Next::Done)
            }
        },
    ));
    queue.add("a");
    seconds(60).await;
    assert!(log.lock().is_empty(), "nothing runs before we lead");
    control.win(Duration::from_secs(1000));
    seconds(1).await;
    control.lose();
    seconds(60).await;
    assert_eq!(*log.lock(), ["begin a"]);
    control.win(Duration::from_secs(1000));
    seconds(10).await;
    assert_eq!(*log.lock(), ["begin a", "begin a", "end a"]);
}
