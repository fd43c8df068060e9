//! The harness, tested.

use std::time::{Duration, Instant};

use redis::AsyncCommands;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::port::free_port;
use super::postgres::{Options, Postgres, SUPERUSER};
use super::process::{Process, scratch};
use super::proxy::{Fault, Proxy, Way};
use super::redis::Redis;
use super::tls::Certificates;
use super::wait::{PATIENCE, eventually, until};

#[tokio::test]
async fn postgres_survives_kill_9_and_shuts_down_fast() {
    let mut server = Postgres::start(Options::default());
    assert_eq!(server.psql("show wal_level"), "logical");
    server.psql("create table t (n int); insert into t values (1)");
    server.kill9();
    server.restart();
    let client = server.client().await;
    let row = client
        .query_one("select n from t", &[])
        .await
        .expect("the row");
    assert_eq!(row.get::<_, i32>(0), 1);
    assert!(server.stop_fast().await < PATIENCE);
    server.restart();
    assert_eq!(server.psql("select count(*) from t"), "1");
}

#[tokio::test]
async fn a_stopped_postgres_answers_when_it_is_continued() {
    let server = Postgres::start(Options::default());
    let client = server.client().await;
    server.stop();
    let query = client.query_one("select 1", &[]);
    tokio::pin!(query);
    let early = tokio::time::timeout(Duration::from_millis(200), &mut query).await;
    assert!(early.is_err(), "a stopped server has answered");
    server.cont();
    query.await.expect("an answer");
}

#[test]
fn a_synchronous_standby_behind_a_proxy_is_waited_for_and_can_be_promoted() {
    let primary = Postgres::start(Options::default());
    let proxy = Proxy::start(primary.port());
    let standby = primary.create_standby_through(proxy.port(), "standby", true);
    primary.psql("create table t (n int)");

    // Its answers come back late: so do the commits.
    let delay = Duration::from_millis(300);
    proxy.set(Way::Up, Fault::Delay(delay));
    let start = Instant::now();
    primary.psql("insert into t values (1)");
    assert!(start.elapsed() >= delay);
    proxy.pass();
    until(PATIENCE, "the row on the standby", || {
        (standby.psql("select count(*) from t") == "1").then_some(())
    });

    standby.promote();
    assert_eq!(standby.psql("insert into t values (2) returning n"), "2");
}

#[test]
fn each_version_at_hand_starts() {
    for version in [14, 15, 16, 17, 18] {
        if !Postgres::available_or_skip(version) {
            continue;
        }
        let server = Postgres::start(Options {
            version,
            settings: &[("work_mem", "7MB")],
            ..Options::default()
        });
        let number: u32 = server
            .psql("show server_version_num")
            .parse()
            .expect("a number");
        assert_eq!(number / 10_000, version);
        assert_eq!(server.psql("show work_mem"), "7MB");
        server.psql("select pg_create_logical_replication_slot('s', 'pgoutput')");
        let standby = server.create_standby("standby", false);
        assert_eq!(standby.psql("select pg_is_in_recovery()"), "t");
    }
}

#[test]
fn postgres_serves_tls_and_its_own_pg_hba() {
    let certificates = Certificates::new();
    let server = Postgres::start(Options {
        tls: Some(&certificates),
        hba: Some("local all all trust\nhostssl all postgres 127.0.0.1/32 trust\n"),
        ..Options::default()
    });
    let ask = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    assert_eq!(server.psql(ask), "t");
    assert!(
        server
            .url(SUPERUSER)
            .starts_with("postgres://postgres@127.0.0.1:")
    );
    assert!(
        server
            .socket_directory()
            .join(format!(".s.PGSQL.{}", server.port()))
            .exists()
    );
}

#[tokio::test]
async fn redis_starts_stops_and_starts_again() {
    let certificates = Certificates::new();
    let mut server = Redis::start_with(super::redis::Options {
        password: Some("geheim"),
        tls: Some(&certificates),
        durable: true,
        ..Default::default()
    });
    let mut connection = server.connection().await;
    let _: () = connection.lpush("list", b"a\x06\x16").await.expect("LPUSH");
    server.kill9();
    server.restart();
    assert_eq!(server.lrange("list").await, [b"a\x06\x16"]);
    assert!(server.tls_url(3).starts_with("rediss://:geheim@127.0.0.1:"));
    assert!(server.socket().exists());

    let mut connection = server.connection().await;
    server.stop();
    let early = tokio::time::timeout(
        Duration::from_millis(200),
        connection.llen::<_, i64>("list"),
    );
    assert!(early.await.is_err(), "a stopped server has answered");
    server.cont();
    assert_eq!(server.lrange("list").await.len(), 1);
}

/// A client connection through the proxy, and the server's end of it.
async fn pair(proxy: &Proxy, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(("127.0.0.1", proxy.port()))
        .await
        .expect("the proxy");
    let (server, _) = listener.accept().await.expect("a connection");
    (client, server)
}

/// Whether the bytes arrive within a moment.
async fn arrives(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) -> bool {
    from.write_all(bytes).await.expect("a write");
    let mut got = vec![0; bytes.len()];
    let read = tokio::time::timeout(Duration::from_millis(150), to.read_exact(&mut got)).await;
    read.is_ok_and(|read| read.is_ok() && got == bytes)
}

#[tokio::test]
async fn the_proxy_passes_stalls_drips_and_swallows() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let proxy = Proxy::start(listener.local_addr().expect("an address").port());
    let (mut client, mut server) = pair(&proxy, &listener).await;
    assert!(arrives(&mut client, &mut server, b"ping").await);
    assert!(arrives(&mut server, &mut client, b"pong").await);

    proxy.set(Way::Up, Fault::Stall);
    assert!(!arrives(&mut client, &mut server, b"later").await);
    assert!(arrives(&mut server, &mut client, b"now").await);
    proxy.pass();
    let mut late = [0; 5];
    server
        .read_exact(&mut late)
        .await
        .expect("what was held back");
    assert_eq!(&late, b"later");

    proxy.both(Fault::BlackHole);
    assert!(!arrives(&mut client, &mut server, b"lost").await);
    assert!(!arrives(&mut server, &mut client, b"lost").await);
    proxy.pass();
    assert!(arrives(&mut client, &mut server, b"found").await);

    proxy.set(Way::Down, Fault::Drip(1, Duration::from_millis(20)));
    server.write_all(b"abcdef").await.expect("a write");
    let start = Instant::now();
    let mut drops = [0; 6];
    client.read_exact(&mut drops).await.expect("the drops");
    assert_eq!(&drops, b"abcdef");
    assert!(start.elapsed() >= Duration::from_millis(90));

    proxy.set(Way::Down, Fault::HalfClose);
    assert_eq!(client.read(&mut [0; 8]).await.expect("the end"), 0);
    assert!(arrives(&mut client, &mut server, b"still").await);
}

#[tokio::test]
async fn the_proxy_cuts_resets_and_refuses() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let proxy = Proxy::start(listener.local_addr().expect("an address").port());

    let (mut client, mut server) = pair(&proxy, &listener).await;
    proxy.set(Way::Down, Fault::CutAfter(3));
    server.write_all(b"abcdef").await.expect("a write");
    let mut got = Vec::new();
    let end = client.read_to_end(&mut got).await;
    assert_eq!(
        end.expect_err("a reset").kind(),
        std::io::ErrorKind::ConnectionReset
    );
    assert!(got.len() <= 3 && b"abc".starts_with(&got), "{got:?}");
    proxy.pass();

    let (mut client, _server) = pair(&proxy, &listener).await;
    proxy.reset();
    let end = client.read(&mut [0; 8]).await;
    assert_eq!(
        end.expect_err("a reset").kind(),
        std::io::ErrorKind::ConnectionReset
    );

    let (mut client, mut server) = pair(&proxy, &listener).await;
    assert_eq!(proxy.accepted(), 3);
    proxy.refuse();
    assert!(client.read(&mut [0; 8]).await.is_err());
    assert!(server.read(&mut [0; 8]).await.is_err());
    eventually(PATIENCE, "a refused connection", || async {
        let client = TcpStream::connect(("127.0.0.1", proxy.port())).await;
        client.is_err().then_some(())
    })
    .await;
    proxy.pass();
    eventually(PATIENCE, "an accepted connection", || async {
        TcpStream::connect(("127.0.0.1", proxy.port())).await.ok()
    })
    .await;
}

#[test]
fn ports_differ_while_they_are_free() {
    assert_ne!(free_port(), free_port());
}

/// Starts a child and a folder in another test process, kills that with -9, and looks for what is left.
#[test]
fn nothing_outlives_a_killed_test_process() {
    let directory = scratch("killed");
    let note = directory.path().join("note");
    let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
    command
        .args([
            "--exact",
            "support::tests::leaves_a_process_behind",
            "--ignored",
            "--nocapture",
        ])
        .env("AFTERCOMMIT_TEST_NOTE", &note);
    let log = directory.path().join("log");
    let mut test = Process::spawn(
        "a test process",
        &mut command,
        rustix::process::Signal::KILL,
        &log,
    );
    let note = until(PATIENCE, "the note", || {
        let note = std::fs::read_to_string(&note).ok()?;
        note.ends_with('\n').then_some(note)
    });
    let (pid, folder) = note.trim_end().split_once(' ').expect("two words");
    test.kill9();
    until(PATIENCE, "the end of the child's child", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.map_or(true, |stat| stat.contains(") Z "))
            .then_some(())
    });
    until(PATIENCE, "the folder to go", || {
        (!std::path::Path::new(folder).exists()).then_some(())
    });
}

#[test]
#[ignore = "run, and killed, by nothing_outlives_a_killed_test_process"]
fn leaves_a_process_behind() {
    let Some(note) = std::env::var_os("AFTERCOMMIT_TEST_NOTE") else {
        return;
    };
    let server = Postgres::start(Options::default());
    let folder = server.socket_directory().display();
    std::fs::write(note, format!("{} {folder}\n", server.pid())).expect("the note");
    std::thread::sleep(PATIENCE);
}
