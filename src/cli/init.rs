//! `aftercommit init`: makes what the daemon needs on the server, or prints the SQL.

use std::io::{self, Write};

use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::Client;

use super::exit::Code;
use super::{Failure, block_on};
use crate::config::Config;
use crate::control::{self, ApplyError, Event, Kind, Wanted};
use crate::hold;
use crate::outbox::config::Retention;
use crate::outbox::{Columns, TableName};
use crate::preflight::{
    self, Class, Expectation, Finding, Severity, judge_ground, judge_table, worst,
};
use crate::replication::{Target, connect_sql_unhurried};

/// Make what the daemon needs in the database: schema, outbox table, enqueue(), hold table, roles, publication and slot.
///
/// Running it again changes nothing that is there. With an outbox table of your own (outbox.table), that one is left as
/// it is, but for the daemon's right to read it and to delete settled rows.
///
/// It connects by --url, else by postgres.url of the configuration. Everything can be made by a superuser, or by a
/// role that owns the database and has CREATEROLE and REPLICATION. A role without CREATEROLE can do it too: it leaves
/// out the groups aftercommit_app and aftercommit_daemon, and prints the SQL for them. The role that the daemon logs in
/// as is yours to make: create role aftercommit login replication password '...'.
///
/// Exit codes: 0 the daemon can run; 78 something is left to do, and printed; 75 the server is away.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the SQL, for psql, and connect to nothing.
    #[arg(long)]
    pub print: bool,

    /// Connect as this administrator instead of as the daemon's role.
    #[arg(
        long,
        value_name = "URL",
        env = "AFTERCOMMIT_ADMIN_URL",
        hide_env_values = true,
        conflicts_with = "print"
    )]
    pub url: Option<SecretString>,
}

/// Runs the command.
pub(super) fn execute(config: &Config, args: &Args) -> Result<(), Failure> {
    let columns = Columns::new(&config.outbox)
        .map_err(|error| Failure::new(Code::Config, error.to_string()))?;
    let target = config
        .postgres
        .target()
        .map_err(|why| Failure::new(Code::Config, why))?;
    let postgres = &config.postgres;
    let wanted = Wanted {
        table: columns.table().clone(),
        slot: postgres.slot.clone(),
        publication: postgres.publication.clone(),
        login: Some(target.user().to_owned()),
        partition: (config.outbox.retention == Retention::Partition)
            .then_some(config.outbox.partition),
    };
    let mut out = io::stdout();
    if args.print {
        return print(&wanted, &mut out)
            .map_err(|error| Failure::new(Code::Runtime, format!("cannot write: {error}")));
    }
    let mut expected = Expectation::new(&columns, &postgres.slot, &postgres.publication);
    expected.role = Some(target.user().to_owned());
    expected.deletes = config.outbox.retention == Retention::Delete;
    expected.partitions = config.outbox.retention == Retention::Partition;
    expected.heals = postgres.heal;
    let target = match &args.url {
        Some(url) => Target::parse(url.expose_secret(), None)
            .map_err(|why| Failure::new(Code::Config, format!("--url: {why}")))?,
        None => target,
    };
    block_on(async {
        let client = connect_sql_unhurried(&target, "aftercommit init").await?;
        let observer = connect_sql_unhurried(&target, "aftercommit init").await?;
        match apply(&client, &observer, &wanted, &expected, &mut out).await {
            Ok(None) => Ok(()),
            Ok(Some(class)) => Err(Failure::new(
                Code::from(class),
                "the daemon cannot run yet; what is left to do is told above",
            )),
            Err(error) => Err(Failure::new(error.code(), error.to_string())),
        }
    })
}

/// `init` did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step failed.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The slot could not be marked as lost.
    #[error(transparent)]
    Mark(#[from] crate::replication::Error),
    /// The server could not be looked at.
    #[error("the server's catalogs cannot be read: {}", control::in_words(.0))]
    Look(#[from] tokio_postgres::Error),
    /// The output was closed.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

impl Error {
    /// 78 where the server refuses, 75 where it is away, 1 for the output.
    pub fn code(&self) -> Code {
        let refused = match self {
            Error::Apply(e) => e.code().is_some(),
            Error::Look(e) => e.code().is_some(),
            Error::Mark(e) => e.sqlstate().is_some(),
            Error::Output(_) => return Code::Runtime,
        };
        match refused {
            true => Code::Config,
            false => Code::Temporary,
        }
    }
}

/// `init --print`.
///
/// # Errors
/// Those of the output.
pub fn print(wanted: &Wanted, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(control::script(wanted).as_bytes())
}

/// Applies the plan, a line per step, and looks at the result as the daemon will: `expected.role` is its role.
///
/// `observer` is a second connection to the same server, see [`control::apply`]. Returns the class of what keeps the
/// daemon from running, if anything does; it has been written to `out`, with its remedy.
///
/// # Errors
/// A step that failed; those before it stay.
pub async fn apply(
    client: &Client,
    observer: &Client,
    wanted: &Wanted,
    expected: &Expectation,
    out: &mut (dyn Write + Send),
) -> Result<Option<Class>, Error> {
    let ours = wanted.table == TableName::ours();
    let before = preflight::facts(client, expected).await?;
    let mut refused = judge_ground(&before);
    // Ours is made; but one that is there already has partitions or none.
    if !ours || wanted.partition.is_some() && before.table.is_some() {
        refused.extend(judge_table(&before, expected));
    }
    if let Some(class) = worst(&refused) {
        tell(&refused, out)?;
        return Ok(Some(class));
    }

    let mut written = Ok(());
    if expected.heals && before.slot.is_none() && before.holding.missing.is_empty() {
        // It was lost: a new one alone would hide that.
        hold::mark_known(client, &wanted.slot).await?;
    }
    let (mut left, mut new_slot) = (false, false);
    control::apply(client, observer, wanted, &mut |event| {
        left |= matches!(event, Event::Left(_));
        new_slot |= matches!(event, Event::Created(step) if step.kind == Kind::Slot);
        if written.is_ok() {
            written = line(&event, out);
        }
    })
    .await?;
    written?;

    let report = preflight::preflight(client, expected).await?;
    tell(&report.findings, out)?;
    if new_slot && has_rows(client, &wanted.table).await? {
        writeln!(out, "{}", older_rows(&wanted.table, expected.heals))?;
    }
    if ours && !left {
        writeln!(
            out,
            "Let your application in: grant aftercommit_app to <its role>;"
        )?;
    }
    Ok(report.fatal())
}

async fn has_rows(client: &Client, table: &TableName) -> Result<bool, tokio_postgres::Error> {
    let sql = format!("select exists (select from {})", table.to_sql());
    client.query_typed_one(&sql, &[]).await?.try_get(0)
}

/// A slot sends what is committed after it was made.
fn older_rows(table: &TableName, heals: bool) -> String {
    match heals {
        true => format!(
            "note: {table} has rows already, which are older than the slot. The first start of the daemon makes the slot \
             again, and dispatches them (heal = true)"
        ),
        false => format!(
            "warning: {table} has rows already, which are older than the slot: they will not be sent.\n  \
             To have them sent: set [postgres] heal = true, with [outbox] retention = \"delete\"; then the first start of \
             the daemon dispatches what is in the table. Or insert them again. If they were sent already: delete them"
        ),
    }
}

fn line(event: &Event<'_>, out: &mut dyn Write) -> io::Result<()> {
    match event {
        Event::Created(step) => writeln!(out, "created        {}", step.what),
        Event::AlreadyThere(step) => writeln!(out, "already there  {}", step.what),
        Event::Left(step) => {
            writeln!(
                out,
                "left out       {}: it takes an administrator, by --url or with this SQL:",
                step.what
            )?;
            for line in step.by_hand.lines() {
                writeln!(out, "    {line}")?;
            }
            Ok(())
        }
        Event::WaitingForOther => {
            writeln!(
                out,
                "waiting        for another init on this database to finish"
            )
        }
        Event::WaitingFor(blockers) => {
            writeln!(
                out,
                "waiting        for open transactions to end; a slot begins where there is none:"
            )?;
            for blocker in *blockers {
                writeln!(out, "    {blocker}; to end it: {}", blocker.remedy())?;
            }
            Ok(())
        }
    }
}

fn tell(findings: &[Finding], out: &mut dyn Write) -> io::Result<()> {
    for finding in findings {
        let word = match finding.severity {
            Severity::Fatal(_) => "to do",
            Severity::Warning => "warning",
        };
        writeln!(out, "{word}: {finding}")?;
    }
    Ok(())
}
