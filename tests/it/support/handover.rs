//! A sink's client in the hands of a test, which does with a batch as a lane does.

use aftercommit::outbox::Task;
use aftercommit::sink::{Outage, Outcome, Sink};

/// Hands a batch over; what was left unsent comes again, until nothing is. In an outage, the tasks that have no outcome.
pub(crate) async fn hand_over(
    sink: &mut Box<dyn Sink>,
    tasks: &[Task],
) -> Result<Vec<Outcome>, (Outage, Vec<Task>)> {
    let mut outcomes = vec![Outcome::Unsent; tasks.len()];
    loop {
        let is_left = |n: &usize| outcomes[*n] == Outcome::Unsent;
        let left: Vec<usize> = (0..tasks.len()).filter(is_left).collect();
        let batch: Vec<Task> = left.iter().map(|n| tasks[*n].clone()).collect();
        let answers = match sink.deliver(&batch).await {
            Ok(answers) => answers,
            Err(outage) if outage.outcomes.is_empty() => return Err((outage, batch)),
            Err(outage) => {
                assert_eq!(outage.outcomes.len(), batch.len(), "one outcome per task");
                let known = batch.into_iter().zip(&outage.outcomes);
                let left = known.filter(|(_, outcome)| **outcome == Outcome::Unsent);
                let left = left.map(|(task, _)| task).collect();
                return Err((outage, left));
            }
        };
        assert_eq!(answers.len(), batch.len(), "one outcome per task");
        let gets_on = answers.first().is_none_or(|it| *it != Outcome::Unsent);
        assert!(gets_on, "the first task of a batch is tried");
        for (n, answer) in left.into_iter().zip(answers) {
            outcomes[n] = answer;
        }
        if !outcomes.contains(&Outcome::Unsent) {
            return Ok(outcomes);
        }
    }
}
