//! The keeper's connection, and the session on whose behalf it writes and looks.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_postgres::Client;
use tracing::{debug, info, warn};

use super::{Gone, Running};
use crate::hold;
use crate::intake::{Line, Session};
use crate::replication::{ANSWER_WITHIN, Error, Target, drive, open_sql};
use crate::units::BackoffRange;

/// Pauses between attempts while the server is away, or refuses.
pub(super) const RETRY: BackoffRange = BackoffRange {
    min: Duration::from_millis(100),
    max: Duration::from_secs(5),
};
/// How long to leave the slot alone that another process seems to read.
const LOST_SLOT: Duration = Duration::from_millis(200);
/// The keeper's connection. When it is given up, so is what the server does for it: a statement that goes on would keep its
/// locks, and take the time of the next one.
#[derive(Debug)]
pub(super) struct Connection {
    client: Client,
    driver: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The client alone would wait for the answer.
        self.driver.abort();
    }
}

impl Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// How long a round may outlive its session, to be written all the same.
const OUTLIVES: Duration = Duration::from_secs(5);
/// The same, once there is another session.
const BESIDE_NEXT: Duration = Duration::from_secs(1);
/// The application name of the keeper's connection.
const NAME: &str = "aftercommit keeper";

impl Running {
    /// The session that streams; waits until there is one.
    pub(super) async fn up(&mut self) -> Result<Session, Gone> {
        loop {
            self.line();
            if let Some(session) = self.session {
                return Ok(session);
            }
            tokio::select! {
                changed = self.keeper.line.changed() => changed.map_err(|_| Gone)?,
                () = self.keeper.news.closed() => return Err(Gone),
            }
        }
    }

    /// Our session has lost the slot and will hear of it: until then nothing is for us to do.
    pub(super) async fn not_ours(&mut self) -> Result<(), Gone> {
        tokio::select! {
            changed = self.keeper.line.changed() => changed.map_err(|_| Gone)?,
            () = sleep(LOST_SLOT) => {}
            () = self.keeper.news.closed() => return Err(Gone),
        }
        self.line();
        Ok(())
    }

    /// Something failed: the connection is given up; pauses, but for no longer than the session lasts.
    pub(super) async fn failed(&mut self, error: Error, words: &'static str) -> Result<(), Gone> {
        self.client = None;
        let until = Instant::now() + self.trouble.next(fastrand::f64());
        let error = hold::remedied(error);
        self.complain(&error, words);
        let session = self.session;
        while self.session == session {
            tokio::select! {
                () = sleep_until(until) => return Ok(()),
                changed = self.keeper.line.changed() => changed.map_err(|_| Gone)?,
                () = self.keeper.news.closed() => return Err(Gone),
            }
            self.line();
        }
        Ok(())
    }

    /// Says what is wrong. The same once more is no warning: whoever waits for those has had it.
    fn complain(&mut self, error: &Error, words: &'static str) {
        let attempt = self.trouble.attempts();
        let complaint = (words, error.sqlstate().map(str::to_owned));
        match attempt > 1 && self.complaint == complaint {
            true => info!(%error, attempt, "{words}"),
            false => warn!(%error, attempt, "{words}"),
        }
        self.complaint = complaint;
    }

    /// The connection, opened if need be.
    pub(super) async fn client(&mut self) -> Result<&mut Client, Error> {
        if self
            .client
            .as_ref()
            .is_some_and(|client| client.is_closed())
        {
            self.client = None;
        }
        match &mut self.client {
            Some(client) => Ok(client),
            empty @ None => Ok(empty.insert(connect(&self.keeper.target).await?)),
        }
    }
}

async fn connect(target: &Target) -> Result<Connection, Error> {
    let (client, driver) = open_sql(target, NAME, Some(ANSWER_WITHIN)).await?;
    let driver = tokio::spawn(drive(driver)).abort_handle();
    let connection = Connection { client, driver };
    // Where commits of this database may be lost in a crash, ours may not: the slot is confirmed after them. And what a round
    // of ours has locked must not stay so, if we are gone and nobody tells the server.
    const SAFE: &str = "select set_config('synchronous_commit', 'local', false) \
                        where current_setting('synchronous_commit') = 'off'; \
                        set idle_in_transaction_session_timeout = '30s'";
    connection
        .batch_execute(&format!("{SAFE}; {}", hold::PLANNER))
        .await
        .map_err(|error| Error::sql("the keeper's session", error))?;
    // So that a statement ends whose connection is gone. Not every platform can see that.
    if let Err(error) = connection
        .batch_execute("set client_connection_check_interval = '1s'")
        .await
    {
        debug!(%error, "the server does not look whether its clients are there");
    }
    Ok(connection)
}

/// Waits until a round of this session has outlived it for so long that it is written by another connection. Where there is
/// a new session already, the server answers, and would have answered here.
pub(super) async fn outlived(line: watch::Receiver<Line>, session: Session) {
    ended(line.clone(), session).await;
    let mut next = line;
    let answers = async {
        let _ = next.wait_for(|line| matches!(line, Line::Up(_))).await;
        sleep(BESIDE_NEXT).await;
    };
    tokio::select! {
        () = sleep(OUTLIVES) => {}
        () = answers => {}
    }
}

/// Waits until the session has ended: what is asked on its behalf is of no use then, and its connection may be as dead.
pub(super) async fn ended(mut line: watch::Receiver<Line>, session: Session) {
    let is_up = |line: &Line| matches!(line, Line::Up(up) if *up == session);
    // Where nobody is left to say so, it has ended too.
    let _ = line.wait_for(|line| !is_up(line)).await;
}
