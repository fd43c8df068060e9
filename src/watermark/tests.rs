//! The watermark against a model, over random histories.

use proptest::prelude::*;

use super::*;

fn open_rows(mark: &mut Watermark, commit_lsn: u64, rows: u64) -> Ticket {
    let Ok(Begun::Open { ticket, skip: 0 }) = mark.begin(Lsn(commit_lsn)) else {
        panic!("a new transaction");
    };
    (0..rows).for_each(|_| mark.open());
    ticket
}

#[test]
fn confirms_the_settled_prefix_only() {
    let mut mark = Watermark::default();
    let first = open_rows(&mut mark, 10, 2);
    mark.commit(Lsn(15));
    let second = open_rows(&mut mark, 20, 1);
    mark.commit(Lsn(25));
    mark.settle(second, 1);
    assert_eq!(mark.confirmed().lsn(), Lsn(0), "the first is outstanding");
    mark.settle(first, 1);
    assert_eq!(mark.confirmed().lsn(), Lsn(0));
    mark.settle(first, 1);
    assert_eq!(mark.confirmed().lsn(), Lsn(25));
    assert_eq!(mark.outstanding(), 0);
}

#[test]
fn a_keepalive_counts_once_all_before_it_is_settled() {
    let mut mark = Watermark::default();
    mark.keepalive(Lsn(5));
    assert_eq!(mark.confirmed().lsn(), Lsn(5), "idle");
    let ticket = open_rows(&mut mark, 10, 1);
    mark.keepalive(Lsn(12));
    mark.commit(Lsn(15));
    mark.keepalive(Lsn(30));
    mark.keepalive(Lsn(40));
    assert_eq!(mark.confirmed().lsn(), Lsn(5), "a task is outstanding");
    mark.settle(ticket, 1);
    assert_eq!(mark.confirmed().lsn(), Lsn(40));
}

#[test]
fn a_transaction_that_was_cut_goes_on_where_it_was() {
    let mut mark = Watermark::default();
    let ticket = open_rows(&mut mark, 10, 3);
    mark.settle(ticket, 2);
    assert!(mark.in_transaction());
    mark.keepalive(Lsn(99));
    assert_eq!(mark.begin(Lsn(10)), Ok(Begun::Open { ticket, skip: 3 }));
    mark.open();
    mark.commit(Lsn(15));
    assert_eq!(mark.begin(Lsn(10)), Ok(Begun::Known));
    mark.settle(ticket, 2);
    assert_eq!(mark.confirmed().lsn(), Lsn(15));
}

#[test]
fn a_skipped_transaction_is_an_error() {
    let mut mark = Watermark::default();
    open_rows(&mut mark, 10, 1);
    let gap = StreamGap::NotResent {
        missing: Lsn(10),
        next: Lsn(20),
    };
    assert_eq!(mark.begin(Lsn(20)), Err(gap));
}

#[test]
fn after_a_reset_old_settlements_mean_nothing() {
    let mut mark = Watermark::default();
    let old = open_rows(&mut mark, 1000, 1);
    mark.commit(Lsn(1005));
    mark.reset(Lsn::ZERO);
    let new = open_rows(&mut mark, 10, 1);
    mark.commit(Lsn(15));
    mark.settle(old, 1);
    assert_eq!(mark.outstanding(), 1);
    mark.settle(new, 1);
    assert_eq!(mark.confirmed().lsn(), Lsn(15));
}

/// One step of a history. Numbers choose among what is possible at that point.
#[derive(Clone, Debug)]
enum Step {
    Send,
    Settle(usize),
    Keepalive,
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Send),
        5 => any::<usize>().prop_map(Step::Settle),
        1 => Just(Step::Keepalive),
        1 => Just(Step::Reconnect),
    ]
}

/// The server's side of the model: it sends frames of a fixed list of transactions, and after a reconnect starts again
/// with the first transaction whose end is above the confirmed position.
#[derive(Default)]
struct Server {
    /// Rows of each transaction; transaction `i` commits at `100 * (i + 1)` and ends at that plus 10.
    rows: Vec<u64>,
    /// The next transaction, and the next frame in it: 0 is Begin, then the rows, then Commit.
    next: (usize, u64),
}

impl Server {
    fn commit_lsn(transaction: usize) -> Lsn {
        Lsn(100 * (transaction as u64 + 1))
    }

    fn end_lsn(transaction: usize) -> Lsn {
        Lsn(Server::commit_lsn(transaction).0 + 10)
    }
}

proptest! {
    #[test]
    fn never_confirms_what_is_not_settled_and_loses_nothing(
        rows in proptest::collection::vec(0u64..4, 1..8),
        steps in proptest::collection::vec(step(), 0..120),
    ) {
        let mut server = Server { rows: rows.clone(), ..Server::default() };
        let mut mark = Watermark::default();
        // Per transaction: rows opened, rows settled.
        let mut opened = vec![0u64; rows.len()];
        let mut settled = vec![0u64; rows.len()];
        let mut in_flight: Vec<(usize, Ticket)> = Vec::new();
        let mut current: Option<(Ticket, u64)> = None;

        let drain = (0..400).map(|i| if i % 2 == 0 { Step::Send } else { Step::Settle(i) });
        for step in steps.into_iter().chain(drain).chain([Step::Keepalive]) {
            let (transaction, frame) = server.next;
            match step {
                Step::Send if transaction < rows.len() => {
                    if frame == 0 {
                        current = match mark.begin(Server::commit_lsn(transaction)) {
                            Ok(Begun::Open { ticket, skip }) => Some((ticket, skip)),
                            Ok(Begun::Known) => None,
                            Err(gap) => panic!("{gap}"),
                        };
                        server.next.1 = 1;
                    } else if frame <= server.rows[transaction] {
                        if let Some((ticket, skip)) = current && frame > skip {
                            mark.open();
                            opened[transaction] += 1;
                            in_flight.push((transaction, ticket));
                        }
                        server.next.1 += 1;
                    } else {
                        if current.is_some() {
                            mark.commit(Server::end_lsn(transaction));
                        }
                        server.next = (transaction + 1, 0);
                    }
                }
                Step::Settle(choice) if !in_flight.is_empty() => {
                    let (transaction, ticket) = in_flight.swap_remove(choice % in_flight.len());
                    settled[transaction] += 1;
                    mark.settle(ticket, 1);
                }
                // Sent between transactions, or in one: the WAL end is that of what was decoded so far.
                Step::Keepalive => {
                    let sent = if transaction == 0 { Lsn(50) } else { Lsn(Server::end_lsn(transaction - 1).0 + 5) };
                    if frame == 0 || current.is_some() {
                        mark.keepalive(sent);
                    }
                }
                Step::Reconnect => {
                    let confirmed = mark.confirmed().lsn();
                    let first = (0..rows.len()).find(|&t| Server::end_lsn(t) > confirmed);
                    server.next = (first.unwrap_or(rows.len()), 0);
                    current = None;
                }
                Step::Send | Step::Settle(_) => {}
            }
            for t in 0..rows.len() {
                prop_assert!(opened[t] <= rows[t], "a row was opened twice");
                if Server::end_lsn(t) <= mark.confirmed().lsn() {
                    prop_assert_eq!(settled[t], rows[t], "confirmed before all was settled");
                }
            }
            prop_assert_eq!(mark.outstanding(), in_flight.len() as u64);
        }
        prop_assert_eq!(opened, rows.clone(), "a row was lost");
        prop_assert_eq!(&settled, &rows);
        prop_assert!(mark.confirmed().lsn() >= Server::end_lsn(rows.len() - 1));
    }
}
