//! Waiting for conditions, never for time.

use std::thread;
use std::time::{Duration, Instant};

/// How long a test waits for what a busy machine may take its time with. Long: it only runs out when something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Asks again until the condition has an answer; panics with `what` was awaited when `timeout` has passed.
pub(crate) async fn eventually<T, F>(
    timeout: Duration,
    what: &str,
    mut condition: impl FnMut() -> F,
) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + timeout;
    let mut pause = FIRST_PAUSE;
    loop {
        if let Some(answer) = condition().await {
            return answer;
        }
        assert!(
            Instant::now() < deadline,
            "still waiting after {timeout:?}: {what}"
        );
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// As [`eventually`], for code that blocks its thread.
pub(crate) fn until<T>(
    timeout: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    match within(timeout, &mut condition) {
        Some(answer) => answer,
        None => panic!("still waiting after {timeout:?}: {what}"),
    }
}

/// As [`until`], and `None` when the time is up.
pub(crate) fn within<T>(timeout: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + timeout;
    let mut pause = FIRST_PAUSE;
    loop {
        let answer = condition();
        if answer.is_some() || Instant::now() >= deadline {
            return answer;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
