//! `aftercommit demo`: the problem and the cure, live, on a private Postgres that leaves nothing behind.
//!
//! The same small shop works three times with the same transactions: its tasks are handed over inside of them, then
//! after COMMIT, then through the outbox and the real daemon. `plan`, `ledger` and `table` are pure: what the shop
//! does, what is counted, and how that reads. The playground makes sure that nothing outlives the demo.

mod act;
mod application;
mod celery;
mod daemon;
mod error;
mod ledger;
mod plan;
mod playground;
mod postgres;
mod screen;
mod table;
mod view;
mod worker;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use self::act::{Way, play};
use self::celery::{Celery, Project};
use self::daemon::Daemon;
use self::error::Error;
use self::playground::Playground;
use self::screen::{Paint, Screen};
use self::table::{Column, Tone};

/// Shows what happens to tasks that are handed over inside of a transaction, after COMMIT, and through the outbox.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// How long the application works in each of the three acts, in seconds.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=12))]
    pub seconds: u64,
    /// Which transactions the application runs; the same seed makes the same ones.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Keep the temporary folder, with the configuration and the logs; its processes are stopped all the same.
    #[arg(long)]
    pub keep: bool,
    /// Play the third act with a real Redis and a real Celery worker of a Django project.
    #[arg(long)]
    pub celery: bool,
    /// The Django project.
    #[arg(long, requires = "celery", default_value = "examples/django")]
    pub project: PathBuf,
    /// The Python that has Django and Celery; scripts/python-env.sh makes it.
    #[arg(long, requires = "celery", default_value = "target/python/bin/python")]
    pub python: PathBuf,
}

/// Runs the demo with this very executable as its daemon.
pub fn run(args: Args) -> ExitCode {
    match std::env::current_exe() {
        Ok(executable) => run_with(&args, &executable),
        Err(error) => {
            complain(format_args!("cannot tell where this program is: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs the demo; `executable` is the daemon.
pub fn run_with(args: &Args, executable: &Path) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(format_args!("cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(stage(args, executable)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) | Err(Error::OutputClosed) => ExitCode::FAILURE,
        Err(Error::Signal(number)) => {
            complain(format_args!("stopped, with all that it had started"));
            ExitCode::from(128 + number)
        }
        Err(error) => {
            complain(format_args!("{error}"));
            ExitCode::FAILURE
        }
    }
}

/// To standard error, which may be closed as well.
fn complain(words: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "aftercommit demo: {words}");
}

/// Whatever ends the show, the playground is swept before we return.
async fn stage(args: &Args, executable: &Path) -> Result<bool, Error> {
    let programs = postgres::programs()?;
    let mut signals = Signals::listen()?;
    let mut screen = Screen::open();
    let closed = screen.closed();
    let playground = Playground::new(args.keep)?;
    let shown = tokio::select! {
        biased;
        number = signals.next() => Err(Error::Signal(number)),
        () = closed => Err(Error::OutputClosed),
        shown = show(args, executable, &programs, &playground, &mut screen) => shown,
    };
    let folder = playground.folder().to_owned();
    let swept = playground.sweep().await;
    // A terminal that is held up must not keep a signal from ending us.
    if !matches!(shown, Err(Error::Signal(_))) {
        screen.finish();
    }
    if args.keep {
        complain(format_args!("kept {}", folder.display()));
    }
    shown.and_then(|kept| swept.map(|()| kept))
}

async fn show(
    args: &Args,
    executable: &Path,
    programs: &Path,
    playground: &Playground,
    screen: &mut Screen,
) -> Result<bool, Error> {
    let length = Duration::from_secs(args.seconds);
    let plan = plan::transactions(args.seed, length);
    let project = match args.celery {
        true => Some(Project::find(&args.project, &args.python)?),
        false => None,
    };
    let database = postgres::start(playground, programs).await?;
    match &project {
        Some(project) => project.migrate(playground, &database).await?,
        None => database.make_tables().await?,
    }
    database.make_user().await?;
    for line in introduction(first_word(&database.version().await?)) {
        screen.say(&line).await;
    }

    title(
        screen,
        "1 of 3  direct: handed over inside of the transaction",
    )
    .await;
    let direct = play(Way::Direct, &database, &plan, length, screen).await?;
    title(
        screen,
        "2 of 3  on_commit: handed over when COMMIT has returned",
    )
    .await;
    let on_commit = play(Way::OnCommit, &database, &plan, length, screen).await?;
    title(
        screen,
        "3 of 3  outbox: a row in the transaction, aftercommit does the rest",
    )
    .await;
    let mut celery = match &project {
        Some(project) => {
            screen.say("  (a real Redis and a real Celery worker of the Django project in examples/django)").await;
            Some(Celery::start(playground, project, &database).await?)
        }
        None => None,
    };
    let sink = match &celery {
        Some(celery) => celery.sink(),
        None => "[sink.stdout.worker]".to_owned(),
    };
    let daemon = Daemon::install(playground, executable, &database, &sink).await?;
    let way = Way::Outbox(&daemon, celery.as_mut());
    let outbox = play(way, &database, &plan, length, screen).await?;

    let kept = table::kept(&outbox);
    let meaning = table::meaning(&direct, &on_commit, &outbox);
    let column = |name, after_commit, counts| Column {
        name,
        counts,
        after_commit,
    };
    let columns = [
        column("direct", false, direct),
        column("on_commit", true, on_commit),
        column("outbox", true, outbox),
    ];
    for row in table::rows(&columns) {
        let cells = row.padded_cells().zip(&row.cells).map(|(padded, cell)| {
            let paint = match row.tone {
                Tone::Plain => Paint::Plain,
                Tone::Heading => Paint::Bold,
                Tone::Fault if cell == "0" => Paint::Green,
                Tone::Fault => Paint::Red,
            };
            screen.paint(paint, &padded)
        });
        let line = row.padded_label() + &cells.collect::<String>();
        screen.say(&line).await;
    }
    let arrival = match celery {
        Some(_) => "on_commit: in the worker's queue; outbox: received by the Celery worker",
        None => "the task being in the worker's queue",
    };
    let notes = [
        "  (COMMIT to dispatch: from COMMIT being sent to".to_owned(),
        format!("  {arrival};"),
        "  the outbox's without those tasks that waited for the killed daemon.)".to_owned(),
        String::new(),
    ];
    for note in notes {
        screen.say(&screen.paint(Paint::Dim, &note)).await;
    }
    for line in meaning {
        screen.say(&line).await;
    }
    screen.say("").await;
    screen
        .say("Next: `aftercommit init --print` shows the SQL; README.md, your own set-up.")
        .await;
    Ok(kept)
}

fn introduction(version: &str) -> [String; 6] {
    let (connections, rate) = (plan::CONNECTIONS, plan::RATE);
    [
        format!(
            "A shop on PostgreSQL {version}: {connections} connections, {rate} transactions a second."
        ),
        "Each writes an order, enqueues a task about it, and works on for a few ms. One".into(),
        "in ten rolls back, some roll back to a savepoint, and one in twenty loses its".into(),
        "process right after COMMIT. The worker (a queue and a pool inside of this".into(),
        "process, in the place of a broker) SELECTs the order's row at once.".into(),
        String::new(),
    ]
}

async fn title(screen: &mut Screen, text: &str) {
    screen.say(&screen.paint(Paint::Bold, text)).await;
}

fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

/// The signals that end the demo.
struct Signals {
    hang_up: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> Result<Signals, Error> {
        let listen = |kind| signal(kind).map_err(Error::Listen);
        Ok(Signals {
            hang_up: listen(SignalKind::hangup())?,
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// The number of the next one.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.hang_up.recv() => 1,
            _ = self.interrupt.recv() => 2,
            _ = self.terminate.recv() => 15,
        }
    }
}
