//! Getting in without TLS, and the walsender session up to the stream, on a real server.

use std::time::Duration;

use aftercommit::pg::Lsn;
use aftercommit::replication::{
    Error, Place, Policy, Stop, Target, WAL_SENDER_TIMEOUT, Walsender, connect_sql, open_sql,
};
use tokio::io::AsyncReadExt;
use tokio::sync::OnceCell;

use crate::support::postgres::{Options, Postgres};

const CONFIGURATION: Policy = Policy::Stop(Stop::Configuration);

const HBA: &str = "
local all postgres trust
local all all scram-sha-256
host app cleartext 127.0.0.1/32 password
host app hashed 127.0.0.1/32 md5
host app,nowhere all 127.0.0.1/32 scram-sha-256
host pooled open 127.0.0.1/32 trust
";

const SETUP: &str = "
create role relay login replication password 'tops3cret';
create role plain login password 'tops3cret';
create role cleartext login replication password 'tops3cret';
create role locked nologin replication password 'tops3cret';
set password_encryption = md5;
create role hashed login replication password 'tops3cret';
reset password_encryption;
create role open login replication;
create role crowded login replication connection limit 0 password 'tops3cret';
alter role relay set statement_timeout = '1ms';
alter role relay set datestyle = 'German';
alter role relay set client_min_messages = 'error';
alter role relay set wal_sender_timeout = '1s';
";

fn target(url: &str) -> Target {
    Target::parse(url, None).unwrap_or_else(|words| panic!("{url}: {words}"))
}

/// The superuser's way in.
async fn superuser(postgres: &Postgres, database: &str) -> tokio_postgres::Client {
    let url = format!(
        "host={} port={} user=postgres dbname={database}",
        postgres.socket_directory().display(),
        postgres.port()
    );
    connect_sql(&target(&url), "test").await.expect("superuser")
}

async fn start(settings: &[(&str, &str)]) -> Postgres {
    let postgres = Postgres::start(Options {
        settings,
        hba: Some(HBA),
        ..Options::default()
    });
    let client = superuser(&postgres, "postgres").await;
    for statement in SETUP.split(';') {
        client.batch_execute(statement).await.expect(statement);
    }
    postgres
}

/// One server for the tests that change nothing on it.
async fn shared() -> &'static Postgres {
    static SERVER: OnceCell<Postgres> = OnceCell::const_new();
    SERVER.get_or_init(|| start(&[])).await
}

async fn walsender(url: &str) -> Result<Walsender, Error> {
    Walsender::connect(&target(url), "aftercommit-test").await
}

/// The error has the policy and the words, and shows no secret.
fn check(error: &Error, policy: Policy, words: &[&str]) {
    let shown = error.to_string();
    assert_eq!(error.policy(), policy, "{shown}");
    for words in words {
        assert!(shown.contains(words), "{words:?} is not in: {shown}");
    }
    assert!(!format!("{shown} {error:?}").contains("s3cret"), "{shown}");
}

#[tokio::test]
async fn a_session_is_opened_or_refused_with_the_remedy() {
    let postgres = shared().await;
    let port = postgres.port();
    let socket = postgres.socket_directory().display();
    let tcp = |userinfo: &str, database: &str| {
        format!("postgres://{userinfo}@127.0.0.1:{port}/{database}")
    };

    // Ways in.
    for url in [
        tcp("relay:tops3cret", "app"),
        tcp("hashed:tops3cret", "app"),
        tcp("relay:tops3cret", "app?sslmode=allow"),
        tcp("relay:tops3cret", "app?sslmode=disable"),
        tcp("relay:tops3cret", "app?channel_binding=disable"),
        format!("host={socket} port={port} user=relay password=tops3cret dbname=app"),
        format!("postgres://relay:tops3cret@/app?host={socket}&port={port}&sslmode=verify-full"),
        format!("postgres://relay:tops3cret@localhost:{port}/app"),
        // The first host is away, and the second one answers.
        format!("postgres://relay:tops3cret@127.0.0.1:1,127.0.0.1:{port}/app"),
        format!("postgres://relay:tops3cret@nowhere.invalid,127.0.0.1/app?port={port}"),
    ] {
        let mut walsender = walsender(&url).await.unwrap_or_else(|e| panic!("{e}"));
        let identity = walsender.identify_system().await.expect("identity");
        assert_eq!(identity.database, "app");
        walsender.close().await;
        let client = connect_sql(&target(&url), "test").await.expect("sql");
        let row = client.query_one("select 1", &[]).await.expect("row");
        assert_eq!(row.get::<_, i32>(0), 1);
    }

    // Refusals.
    for (url, policy, words) in [
        (
            tcp("relay:wrong", "app"),
            CONFIGURATION,
            &["cannot log in", "28P01", "role \"relay\"", "password_file"][..],
        ),
        (
            tcp("relay", "app"),
            CONFIGURATION,
            &["none is configured", "password_file"],
        ),
        (tcp("nobody:x", "app"), CONFIGURATION, &["28P01"]),
        (
            tcp("locked:tops3cret", "app"),
            CONFIGURATION,
            &["28000", "alter role \"locked\" login"],
        ),
        (
            tcp("relay:tops3cret", "nowhere"),
            CONFIGURATION,
            &["3D000", "Create database \"nowhere\""],
        ),
        (
            tcp("relay:tops3cret", "postgres"),
            CONFIGURATION,
            &[
                "no pg_hba.conf entry",
                "\"postgres\" \"relay\"",
                "keyword replication",
            ],
        ),
        (
            tcp("plain:tops3cret", "app"),
            CONFIGURATION,
            &[
                "42501",
                "alter role \"plain\" replication",
                "rds_replication",
            ],
        ),
        (
            tcp("cleartext:tops3cret", "app"),
            CONFIGURATION,
            &["in the clear", "without TLS", "scram-sha-256"],
        ),
        (
            tcp("relay:tops3cret", "app?sslmode=require"),
            CONFIGURATION,
            &["does not offer TLS", "ssl = on"],
        ),
        (
            tcp("relay:tops3cret", "app?channel_binding=require"),
            CONFIGURATION,
            &["channel_binding=require"],
        ),
        (
            tcp("hashed:tops3cret", "app?channel_binding=require"),
            CONFIGURATION,
            &["does not ask for SCRAM"],
        ),
        (
            tcp("relay:tops3cret", "app?options=-c%20nonsense=1"),
            CONFIGURATION,
            &["nonsense"],
        ),
        (
            tcp("relay:tops3cret", "app?options=-c%20work_mem=much"),
            CONFIGURATION,
            &["22023", "work_mem", "much"],
        ),
        (
            "postgres://relay:tops3cret@127.0.0.1:1/app".to_owned(),
            Policy::Reconnect,
            &["127.0.0.1:1", "refused"],
        ),
        (
            "postgres://relay:tops3cret@no.invalid/app".to_owned(),
            Policy::Reconnect,
            &["does not resolve"],
        ),
        (
            "postgres://relay:tops3cret@/app?host=/nowhere".to_owned(),
            Policy::Reconnect,
            &["/nowhere/.s.PGSQL.5432"],
        ),
    ] {
        let error = walsender(&url)
            .await
            .err()
            .unwrap_or_else(|| panic!("{url} opened"));
        check(&error, policy, words);
    }

    // A plain session demands no REPLICATION attribute, and refuses the same.
    let plain = target(&tcp("plain:tops3cret", "app"));
    connect_sql(&plain, "test").await.expect("plain sql");
    let cleartext = target(&tcp("cleartext:tops3cret", "app"));
    let error = connect_sql(&cleartext, "test").await.expect_err("refused");
    check(&error, CONFIGURATION, &["in the clear"]);
    let crowded = target(&tcp("crowded:tops3cret", "app"));
    let error = connect_sql(&crowded, "test").await.expect_err("full");
    check(&error, Policy::Reconnect, &["53300", "connection limit"]);
}

#[tokio::test]
async fn settings_are_pinned_and_errors_leave_the_session_usable() {
    let postgres = shared().await;
    let url = format!(
        "postgres://relay:tops3cret@127.0.0.1:{}/app",
        postgres.port()
    );
    let mut walsender = walsender(&url).await.expect("walsender");
    let number = walsender
        .simple_query("show server_version_num")
        .await
        .expect("version");
    assert_eq!(number, [[Some(walsender.server_version().to_string())]]);
    assert_eq!(walsender.parameter("client_encoding"), Some("UTF8"));
    let timeout = format!("{}min", WAL_SENDER_TIMEOUT.as_secs() / 60);
    for (setting, value) in [
        ("wal_sender_timeout", timeout.as_str()),
        ("statement_timeout", "0"),
        ("datestyle", "ISO, MDY"),
        ("client_min_messages", "warning"),
        ("application_name", "aftercommit-test"),
    ] {
        let rows = walsender
            .simple_query(&format!("show {setting}"))
            .await
            .expect(setting);
        assert_eq!(rows, [[Some(value.to_owned())]], "{setting}");
    }
    let pid = walsender
        .simple_query("select pg_backend_pid()::text, null")
        .await
        .expect("pid");
    assert_eq!(pid, [[Some(walsender.backend_pid().to_string()), None]]);

    let error = walsender
        .simple_query("select 1/0; select 2")
        .await
        .expect_err("error");
    assert_eq!(
        (error.sqlstate(), error.place()),
        (Some("22012"), Place::Sql)
    );
    assert_eq!(
        walsender.simple_query("").await.expect("usable"),
        Vec::<Vec<_>>::new()
    );

    // A query that was given up leaves nothing that could be taken for the next one's answer.
    let slow = walsender.simple_query("select pg_sleep(60)");
    tokio::time::timeout(Duration::from_millis(50), slow)
        .await
        .expect_err("slow");
    let error = walsender
        .simple_query("select 1")
        .await
        .expect_err("abandoned");
    check(&error, Policy::Stop(Stop::Runtime), &["abandoned"]);

    // The URL's own name and options are honoured, and ours win.
    let url =
        format!("{url}?application_name=mine&options=-c%20work_mem=3MB%20-c%20statement_timeout=1");
    let client = connect_sql(&target(&url), "ours").await.expect("sql");
    for (setting, value) in [
        ("application_name", "mine"),
        ("work_mem", "3MB"),
        ("statement_timeout", "0"),
        ("tcp_keepalives_idle", "10"),
    ] {
        let row = client
            .query_one(&format!("show {setting}"), &[])
            .await
            .expect(setting);
        assert_eq!(row.get::<_, &str>(0), value, "{setting}");
    }

    // What a query was for is said; the values that it met are not.
    let error = client
        .query("select ('tops3cret' || now())::json", &[])
        .await
        .map_err(|e| Error::sql("reading a json", e))
        .expect_err("no json");
    check(
        &error,
        Policy::Stop(Stop::Runtime),
        &["(reading a json)", "22P02"],
    );

    // Whoever drives the connection learns why it ended.
    let (client, connection) = open_sql(&target(&url), "watched", None).await.expect("sql");
    let driver = tokio::spawn(connection);
    let own = client
        .query_one("select pg_backend_pid()", &[])
        .await
        .expect("pid");
    let admin = superuser(postgres, "app").await;
    admin
        .execute("select pg_terminate_backend($1)", &[&own.get::<_, i32>(0)])
        .await
        .expect("terminate");
    let error = driver.await.expect("driver").expect_err("terminated");
    check(&error, Policy::Reconnect, &["57P01"]);
}

#[tokio::test]
async fn replication_starts_or_says_why_not() {
    let postgres = start(&[]).await;
    let url = format!(
        "postgres://relay:tops3cret@127.0.0.1:{}/app",
        postgres.port()
    );
    let admin = superuser(&postgres, "app").await;
    admin
        .batch_execute(
            "create table t (id int); create publication \"Pub, 'x\" for table t;
             select pg_create_physical_replication_slot('physical')",
        )
        .await
        .expect("publication");
    for slot in ["good", "lonely", "lost"] {
        admin
            .execute(
                "select pg_create_logical_replication_slot($1, 'pgoutput')",
                &[&slot],
            )
            .await
            .expect(slot);
    }
    let elsewhere = superuser(&postgres, "postgres").await;
    elsewhere
        .execute(
            "select pg_create_logical_replication_slot('elsewhere', 'pgoutput')",
            &[],
        )
        .await
        .expect("elsewhere");

    for (slot, policy, words) in [
        (
            "missing",
            Policy::Stop(Stop::SlotLost),
            &["42704", "aftercommit init"][..],
        ),
        (
            "Not valid",
            Policy::Stop(Stop::SlotLost),
            &["does not exist"],
        ),
        // The grammar of replication commands knows no quote inside a name.
        ("a\"b", CONFIGURATION, &["42601"]),
        ("physical", CONFIGURATION, &["55000", "name another one"]),
        ("elsewhere", CONFIGURATION, &["55000", "name another one"]),
    ] {
        let walsender = walsender(&url).await.expect("walsender");
        let started = walsender.start_replication(slot, Lsn::ZERO, "p").await;
        let error = started.err().unwrap_or_else(|| panic!("{slot} started"));
        assert_eq!(error.place(), Place::StartReplication);
        check(&error, policy, words);
    }

    // The stream begins, with a publication whose name needs both kinds of quotes.
    let session = walsender(&url).await.expect("walsender");
    let mut stream = session
        .start_replication("good", Lsn::ZERO, "Pub, 'x")
        .await
        .expect("started");
    let active = admin
        .query_one(
            "select active_pid from pg_replication_slots where slot_name = 'good'",
            &[],
        )
        .await
        .expect("active");
    assert_eq!(active.get::<_, i32>(0).unsigned_abs(), stream.backend_pid);
    admin
        .execute("insert into t values (1)", &[])
        .await
        .expect("insert");
    // CopyData of an XLogData that holds a Begin, after keepalives maybe.
    let seen = async {
        while !stream
            .buffer
            .windows(4)
            .any(|w| w == b"\x00\x30w\x00" || w[0] == b'B')
        {
            let read = stream
                .socket
                .read_buf(&mut stream.buffer)
                .await
                .expect("read");
            assert_ne!(read, 0, "the stream ended");
        }
    };
    tokio::time::timeout(Duration::from_secs(20), seen)
        .await
        .expect("the row's transaction");
    assert_eq!(stream.buffer.first(), Some(&b'd'));

    // A second daemon.
    let second = walsender(&url).await.expect("walsender");
    let error = second
        .start_replication("good", Lsn::ZERO, "Pub, 'x")
        .await
        .expect_err("taken");
    check(
        &error,
        Policy::StandBy,
        &["55006", &stream.backend_pid.to_string()],
    );

    // No such publication: the stream begins, and breaks at the first change; from 18 on with a warning only.
    let session = walsender(&url).await.expect("walsender");
    let mut stream = session
        .start_replication("lonely", Lsn::ZERO, "nothere")
        .await
        .expect("started");
    let error = first_error(&mut stream).await;
    check(
        &error,
        Policy::Stop(Stop::PublicationLost),
        &["nothere", "Create the publication"],
    );

    // A slot that was left behind.
    admin
        .batch_execute("alter system set max_slot_wal_keep_size = '1MB'")
        .await
        .expect("set");
    admin
        .batch_execute("select pg_reload_conf()")
        .await
        .expect("reload");
    let lost = async {
        loop {
            admin
                .batch_execute(
                    "insert into t select generate_series(1, 1000); select pg_switch_wal()",
                )
                .await
                .expect("wal");
            admin.batch_execute("checkpoint").await.expect("checkpoint");
            let row = admin
                .query_one(
                    "select wal_status from pg_replication_slots where slot_name = 'lost'",
                    &[],
                )
                .await
                .expect("status");
            if row.get::<_, Option<&str>>(0) == Some("lost") {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), lost)
        .await
        .expect("lost");
    let session = walsender(&url).await.expect("walsender");
    let error = session
        .start_replication("lost", Lsn::ZERO, "Pub, 'x")
        .await
        .expect_err("lost");
    check(
        &error,
        Policy::Stop(Stop::SlotLost),
        &["55000", "max_slot_wal_keep_size"],
    );
}

/// Reads frames until an ErrorResponse, or a notice that is as bad.
async fn first_error(stream: &mut aftercommit::replication::CopyBoth) -> Error {
    use aftercommit::replication::{ServerMessage, refuse_notice};
    loop {
        if let [tag, a, b, c, d, ..] = stream.buffer[..] {
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            if stream.buffer.len() > length {
                let frame = stream.buffer.split_to(length + 1).freeze();
                let message = ServerMessage::parse(&frame[5..]);
                match tag {
                    b'E' => return Error::server(Place::Streaming, message),
                    b'N' => match refuse_notice(Place::Streaming, message) {
                        Ok(()) => continue,
                        Err(e) => return e,
                    },
                    _ => continue,
                }
            }
        }
        let read = stream
            .socket
            .read_buf(&mut stream.buffer)
            .await
            .expect("read");
        assert_ne!(read, 0, "the stream ended without a word");
    }
}

#[tokio::test]
async fn a_server_that_cannot_decode_or_take_one_more_is_named() {
    let postgres = start(&[("wal_level", "replica"), ("max_wal_senders", "1")]).await;
    let url = format!(
        "postgres://relay:tops3cret@127.0.0.1:{}/app",
        postgres.port()
    );
    let mut session = walsender(&url).await.expect("walsender");
    let error = session
        .simple_query("CREATE_REPLICATION_SLOT s LOGICAL pgoutput")
        .await
        .expect_err("no slot");
    check(&error, CONFIGURATION, &["wal_level = logical", "restart"]);
    let error = session
        .start_replication("s", Lsn::ZERO, "p")
        .await
        .expect_err("no stream");
    check(&error, CONFIGURATION, &["wal_level = logical", "restart"]);
}

#[tokio::test]
async fn a_standby_is_passed_over_unless_asked_for() {
    let primary = shared().await;
    let hba = "local all all trust\nhost all all 127.0.0.1/32 trust\n";
    let standby = Postgres::start(Options {
        hba: Some(hba),
        files: &[("standby.signal", "")],
        ..Options::default()
    });
    let alone = format!("postgres://postgres@127.0.0.1:{}/postgres", standby.port());
    for error in [
        walsender(&alone).await.expect_err("in recovery"),
        connect_sql(&target(&alone), "test")
            .await
            .expect_err("in recovery"),
    ] {
        check(&error, Policy::Reconnect, &["in recovery", "primary"]);
    }
    let both = format!(
        "postgres://relay:tops3cret@127.0.0.1:{},127.0.0.1:{}/app",
        standby.port(),
        primary.port()
    );
    // The standby trusts everybody, and does not know this role: an answer, which ends the search.
    let error = walsender(&both).await.expect_err("unknown role");
    check(&error, CONFIGURATION, &["28000", "does not exist"]);
    let both = format!(
        "host=127.0.0.1,{} port={},{} user=postgres dbname=postgres",
        primary.socket_directory().display(),
        standby.port(),
        primary.port()
    );
    let walsender = walsender(&both).await.expect("the primary");
    assert_eq!(walsender.parameter("in_hot_standby"), Some("off"));
    let replica = target(&alone).in_recovery_too();
    let client = connect_sql(&replica, "test").await.expect("the standby");
    let row = client
        .query_one("select pg_is_in_recovery()", &[])
        .await
        .expect("row");
    assert!(row.get::<_, bool>(0));
}

/// A socket that answers what it is told, whatever it is asked.
async fn imposter(answer: &'static [u8]) -> String {
    use tokio::io::AsyncWriteExt;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("listen");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut asked = [0; 1024];
            let _ = socket.read(&mut asked).await;
            let _ = socket.write_all(answer).await;
            // Held open: the daemon must not wait for the end.
            tokio::spawn(
                async move { while socket.read(&mut asked).await.is_ok_and(|n| n > 0) {} },
            );
        }
    });
    format!("postgres://relay:tops3cret@127.0.0.1:{port}/app?connect_timeout=1")
}

#[tokio::test]
async fn what_is_not_a_postgres_server_is_refused() {
    for (answer, mode, policy, words) in [
        (
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            "disable",
            CONFIGURATION,
            "points at a Postgres",
        ),
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "prefer",
            CONFIGURATION,
            "points at a Postgres",
        ),
        (
            b"R\0\0\0\x08\0\0\0\x63",
            "disable",
            CONFIGURATION,
            "malformed",
        ),
        (b"R\0\0\0\x03", "disable", CONFIGURATION, "malformed"),
        (
            b"R\x7f\xff\xff\xff",
            "disable",
            CONFIGURATION,
            "points at a Postgres",
        ),
        (b"Z\0\0\0\x05I", "disable", CONFIGURATION, "out of order"),
        (
            b"W\0\0\0\x07\0\0\0",
            "disable",
            CONFIGURATION,
            "out of order",
        ),
        (b"R\0\0\0\x08\0\0\0\x07", "disable", CONFIGURATION, "GSSAPI"),
        // SASLFinal without a beginning: nothing was proven.
        (
            b"R\0\0\0\x08\0\0\0\x0c",
            "disable",
            CONFIGURATION,
            "out of order",
        ),
        (b"N", "require", CONFIGURATION, "does not offer TLS"),
        (b"E\0\0\0\x07Mx\0", "require", Policy::Reconnect, "closed"),
        (b"S", "require", Policy::Reconnect, "within 1s"),
        (b"Snot a TLS record", "require", Policy::Reconnect, "TLS"),
        (b"", "disable", Policy::Reconnect, "within 1s"),
        (
            b"E\0\0\0\x44VFATAL\0C08P01\0Munsupported startup parameter: wal_sender_timeo\0\0",
            "disable",
            CONFIGURATION,
            "pooler",
        ),
    ] {
        let url = format!("{}&sslmode={mode}", imposter(answer).await);
        let error = walsender(&url).await.expect_err("no session");
        check(&error, policy, &[words]);
    }
}
