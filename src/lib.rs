//! aftercommit: dispatches tasks from a Postgres outbox table after COMMIT.
//!
//! An application inserts a row into the outbox, in the same transaction as its own writes. This daemon reads the commit
//! from a logical replication slot and hands the task to the workers that already run. A row that was rolled back never
//! existed; one that was committed is not lost; and when a worker gets the task, the row that it is about is there.
//!
//! # The rooms
//!
//! Each module is a room, and stands on a floor. Imports point to lower floors only. A pure room (P) sees no socket, file,
//! clock, environment or randomness: it is tested by tables, generators and fuzzers. `tests/it/tidy.rs` reads this table
//! and holds the code to it.
//!
//! | floor | room | what it is for |
//! |---|---|---|
//! | 10 | [`cli`] | The command line: one file for each command; exit codes; composes what runs. |
//! | 9 | [`config`] | From the text of the configuration to checked structs, which stand beside what they configure. |
//! | 8 | [`supervisor`] | Starts the threads and the parts; hears the signals. |
//! | 7 | [`relay`] | The loop in the middle: what was read goes to the gate and to the lanes, what was settled comes back. |
//! | 6 | [`partitions`] | Makes the outbox's partitions ahead of time, and drops those that are wholly settled. |
//! | 6 | [`delivery`] | Lanes, the ordered queues in front of the sinks; the keeper, who writes down what is settled or held. |
//! | 5 | [`intake`] | The reader's thread: connects, checks, reads, decodes, confirms; and connects again for ever. |
//! | 4 | [`sink`] | The destinations: the contract, and one room for each. |
//! | 4 | [`preflight`] | Is the server as we need it? Each finding has its remedy, as SQL. |
//! | 3 | [`control`] | What `init` makes on the server: table, function, roles, publication, slot. |
//! | 3 | [`hold`] | The hold table: tasks that wait; the deletes of settled rows; the checkpoint. |
//! | 3 | [`gate`] | Is a transaction visible, on the primary and on the replicas that workers read? |
//! | 3 P | [`route`] | The rule that a task matches, and the sink that it names. |
//! | 3 P | [`envelope`] | How a task becomes a broker's bytes; what would harm a worker is refused here. |
//! | 2 P | [`outbox`] | Which column holds which field; from messages to [`outbox::Task`]s. |
//! | 1 | [`replication`] | The server's end of the wire: URLs, TLS, login, START_REPLICATION, the stream, errors and what to do. |
//! | 1 P | [`watermark`] | Outstanding work, and the one LSN that may be confirmed. |
//! | 1 P | [`backoff`] | Pauses that grow, with jitter. |
//! | 1 | [`clock`] | The wall clock, the server's and ours, read in one place. |
//! | 1 | [`logging`] | The log: text or JSON, and never in the way of the work. |
//! | 0 | [`budget`] | Bytes of tasks in memory: charged when they are read, given back when they are settled. |
//! | 0 P | [`pg`] | The protocol's values and frames: LSNs, timestamps, pgoutput. Bounds-checked, without a copy. |
//! | 0 P | [`units`] | Durations, sizes and backoff ranges, as the configuration writes them. |
//! | 0 P | [`near`] | The name that was probably meant. |
//! | 0 | [`failpoint`] | Points at which a test lets the daemon die; nothing in a default release build. |
//! | 0 | [`tls`] | Whom to trust, and who we are. |
//!
//! # A row's way through the house
//!
//! 1. [`replication::stream::Stream`] reads from the walsender's socket in large gulps, into one buffer. A read can be
//!    dropped at any time and loses nothing.
//! 2. [`intake`], on a thread of its own, takes the frames apart ([`pg::replication`], [`pg::pgoutput`]);
//!    [`outbox::Assembler`] makes a [`outbox::Task`] of each row of the outbox: a slice of the buffer, the columns picked by
//!    index. A bounded channel takes them to the relay.
//! 3. In [`relay::Relay`] a transaction waits until the [`gate`] has seen it: [`gate::watcher`] asks the primary for a
//!    snapshot, and replicas how far they are; [`gate::clearance`] says which transactions that lets pass.
//! 4. [`watermark::Watermark`] opens the task, [`route::Router`] finds its sink, and its key finds its lane.
//! 5. [`delivery::Lane`] hands batches to its [`sink::Sink`], or single tasks, where it takes its time with each
//!    ([`sink::serving`]). There the task is copied for the first time and only once, into the broker's message
//!    ([`envelope::celery`], [`envelope::kombu`]); JSON is spliced, not parsed into values.
//! 6. For each task the sink answers with an [`sink::Outcome`], once the broker has confirmed it. What is to be retried
//!    waits in the lane, with all later tasks of its key, and then in the [`hold`] table; what is rejected goes there as dead.
//! 7. [`delivery::Keeper`] writes all that down in one transaction: settled rows leave the outbox, tasks enter and leave the
//!    hold, the checkpoint moves. What is in the hold is settled like what is delivered. And it brings back what is due.
//! 8. The watermark's position goes back to the intake, which confirms it to the server in the next standby status update.
//!    The slot moves, and the WAL below is the server's to remove.
//!
//! One direction: nothing upstream knows what is downstream, and a sink never sees the slot.
//!
//! # What always holds, and who sees to it
//!
//! - **Commit first.** Protocol version 1 of pgoutput sends a transaction when its commit record has been decoded; so a row
//!   that arrives has been committed. [`replication::Walsender`] asks for nothing else, [`preflight`] refuses a slot that
//!   also sends prepared transactions, and [`outbox::assembler`] takes no row outside of a Begin and its Commit.
//! - **Visible first.** A walsender may send a commit before other sessions see it. [`gate::clearance`] compares
//!   transaction ids with a snapshot; the relay lets nothing past that is not cleared on the session's own server, however
//!   long that takes. What waits there when a session ends is dropped, and comes again.
//! - **Never lost.** Only the [`watermark`] makes a [`pg::ConfirmedLsn`]: the end of the longest prefix of commits in which
//!   all is settled, or a keepalive's position when nothing is outstanding. The intake confirms no more than its session
//!   has received. What cannot be decoded stops the daemon: it is not skipped. What has no route, or can never be
//!   delivered, is kept in the hold table.
//! - **Few repeats, marked.** A task goes out under its row's id, whenever it does. The watermark outlives connections and
//!   knows what the server sends again ([`watermark::Watermark::begin`]); a graceful stop drains ([`relay`]), and what a sink
//!   does not take in time goes to the hold table ([`delivery::Strain`]). A sink whose place can store a note with the
//!   messages pushes nothing twice ([`sink::marks`]); elsewhere a crash repeats at most what was not yet confirmed.
//! - **Ordered per key.** The relay gives one key one lane; the lane holds the later tasks of a key back while an
//!   earlier one is not delivered, and nothing else. Once one is in the hold table, they follow it there, until it is gone.
//! - **One failing part is alone.** Sinks have lanes of their own; the status timer has its thread; a broken destination
//!   burns no task's attempts ([`sink::Outage`]), and before it takes the others' room its tasks spill to the hold table.
//! - **Bounded.** [`budget::Memory`] counts bytes and [`relay`] tasks, from the socket to the broker; without room, nothing is read.
//!   Channels are bounded, frames are capped before memory is reserved ([`replication::stream`]), and a task that waits
//!   lets go of the buffer that it came in ([`outbox::Task::detach`]).
//! - **The server is safe.** Status updates never wait; a server that shuts down is let go within seconds; pauses between
//!   attempts grow ([`intake`], [`backoff`]).
//! - **Fail closed.** [`preflight`] looks at slot, publication and table at every connect and while streaming;
//!   [`replication::Policy`] is the one place where an error becomes: try again, stand by, or stop with the remedy.
//!   A lost slot is never replaced silently: where the operator has consented, the intake makes it again and takes what
//!   is owed from the table, under a mark that outlives a crash (`intake::heal`).
//! - **Nothing private is shown.** Payloads and secrets are in no log and no `Debug`: [`outbox::Task`] shows its id and
//!   place, [`config`] masks what it quotes, causes are words ([`sink::Cause`]).
//!

pub mod backoff;
pub mod budget;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod delivery;
pub mod envelope;
pub mod failpoint;
pub mod gate;
pub mod hold;
pub mod intake;
pub mod logging;
pub mod near;
pub mod outbox;
pub mod partitions;
pub mod pg;
pub mod preflight;
pub mod relay;
pub mod replication;
pub mod route;
pub mod sink;
pub mod supervisor;
pub mod tls;
pub mod units;
pub mod watermark;
