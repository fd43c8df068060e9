//! Each `sslmode`, client certificates and channel binding, on a real server with certificates made here.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use aftercommit::replication::{Error, Policy, Stop, Target, Walsender, connect_sql};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::support::postgres::{Options, Postgres};

const CONFIGURATION: Policy = Policy::Stop(Stop::Configuration);

const HBA: &str = "
local all postgres trust
hostssl certificates all 127.0.0.1/32 cert
hostssl encrypted cleartext 127.0.0.1/32 password
hostssl encrypted all 127.0.0.1/32 scram-sha-256
hostnossl plaintext all 127.0.0.1/32 scram-sha-256
host either hashed 127.0.0.1/32 md5
host either all 127.0.0.1/32 scram-sha-256
";

const SETUP: &str = "
create database certificates;
create database encrypted;
create database plaintext;
create database either;
create role relay login replication password 'tops3cret';
create role cleartext login replication password 'tops3cret';
set password_encryption = md5;
create role hashed login replication password 'tops3cret'
";

/// Version 1, as "openssl x509 -req" made it before OpenSSL 3.2, following the documentation of Postgres. Valid until
/// 2100. The key is for this test only.
const VERSION_1: (&str, &str) = (
    "\
-----BEGIN CERTIFICATE-----
MIIBJTCBywIUAiD4ZHnssKUqJRMgZls7+h68EG8wCgYIKoZIzj0EAwIwFDESMBAG
A1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMjAyNTk0MloYDzIxMDAxMDI1MDI1OTQy
WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AASZLSi3iYTodrl0w5z5lqlkh+UgKxqV+DsBA+bhmRhbe9qdzyFiRkF79XKvcKIh
bqSaWBrbFX/ZVZJu4YBOs4mgMAoGCCqGSM49BAMCA0kAMEYCIQDbBxsBbNOPOSrE
QQM7hO1FxU2V9DaahPjaV8Vl/aWizwIhAMO7MDy9uiUDX4Q4tw7mf/6TZcPWHAZC
ejXAE3NxZjFs
-----END CERTIFICATE-----
",
    "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg89JM3UcucnfeUt4I
3qRPY0i8xbHsNJiYRh4K1nQnTnKhRANCAASZLSi3iYTodrl0w5z5lqlkh+UgKxqV
+DsBA+bhmRhbe9qdzyFiRkF79XKvcKIhbqSaWBrbFX/ZVZJu4YBOs4mg
-----END PRIVATE KEY-----
",
);

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut parameters = CertificateParams::new(Vec::new()).expect("parameters");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(parameters, KeyPair::generate().expect("key")).expect("authority")
}

/// A certificate and its key, PEM, with one subjectAltName, which is also the common name.
fn issue(authority: &Authority, name: &str, last_year: i32) -> (String, String) {
    let mut parameters = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.not_after = date_time_ymd(last_year, 12, 31);
    parameters.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = KeyPair::generate().expect("key");
    let certificate = parameters.signed_by(&key, authority).expect("certificate");
    (certificate.pem(), key.serialize_pem())
}

/// A server with TLS, and a directory of PEM files for the client.
struct Server {
    postgres: Postgres,
    authority: Authority,
    files: TempDir,
}

impl Server {
    async fn start() -> Server {
        let authority = authority("ours");
        let (certificate, key) = issue(&authority, "localhost", 2099);
        let postgres = Postgres::start(Options {
            settings: &[("ssl", "on"), ("ssl_ca_file", "root.crt")],
            hba: Some(HBA),
            files: &[
                ("root.crt", &authority.pem()),
                ("server.crt", &certificate),
                ("server.key", &key),
            ],
            ..Options::default()
        });
        let files = TempDir::new().expect("temporary directory");
        fs::write(files.path().join("ca"), authority.pem()).expect("write");
        let server = Server {
            postgres,
            authority,
            files,
        };
        let client = server.superuser().await;
        for statement in SETUP.split(';') {
            client.batch_execute(statement).await.expect(statement);
        }
        server
    }

    async fn superuser(&self) -> tokio_postgres::Client {
        let url = format!(
            "host={} port={} user=postgres",
            self.postgres.socket_directory().display(),
            self.postgres.port()
        );
        connect_sql(&target(&url), "test").await.expect("superuser")
    }

    /// Puts another certificate in place of the server's.
    async fn present(&self, (certificate, key): (String, String)) {
        self.postgres.write("server.crt", &certificate);
        self.postgres.write("server.key", &key);
        let client = self.superuser().await;
        // Whoever comes after the postmaster's reload sees its time.
        let loaded = "select pg_conf_load_time()::text";
        let before: String = client.query_one(loaded, &[]).await.expect("time").get(0);
        client
            .batch_execute("select pg_reload_conf()")
            .await
            .expect("reload");
        let reloaded = async {
            loop {
                let now = self
                    .superuser()
                    .await
                    .query_one(loaded, &[])
                    .await
                    .expect("time");
                if now.get::<_, String>(0) != before {
                    break;
                }
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), reloaded)
            .await
            .expect("reloaded");
    }

    fn url(&self, userinfo: &str, host: &str, database: &str, query: &str) -> String {
        let query = query.replace("FILES", &self.path().display().to_string());
        format!(
            "postgres://{userinfo}@{host}:{}/{database}?{query}",
            self.postgres.port()
        )
    }

    fn path(&self) -> &Path {
        self.files.path()
    }
}

fn target(url: &str) -> Target {
    Target::parse(url, None).unwrap_or_else(|words| panic!("{url}: {words}"))
}

/// Whether both kinds of session are under TLS; they always agree.
async fn is_encrypted(url: &str) -> Result<bool, Error> {
    const QUERY: &str = "select ssl::text from pg_stat_ssl where pid = pg_backend_pid()";
    let target = target(url);
    let walsender = Walsender::connect(&target, "test").await;
    let sql = connect_sql(&target, "test").await;
    match (walsender, sql) {
        (Ok(mut walsender), Ok(sql)) => {
            let rows = walsender.simple_query(QUERY).await.expect("walsender");
            let row = sql.query_one(QUERY, &[]).await.expect("sql");
            let ssl: String = row.get(0);
            assert_eq!(rows, [[Some(ssl.clone())]]);
            Ok(ssl == "true")
        }
        (Err(walsender), Err(sql)) => {
            assert_eq!(without_numbers(&walsender), without_numbers(&sql));
            Err(walsender)
        }
        (walsender, sql) => panic!("{url}: {:?}, {:?}", walsender.err(), sql.err()),
    }
}

/// What an error says. An expired certificate's tells the second, and the next one may have begun.
fn without_numbers(error: &Error) -> String {
    error.to_string().replace(|c: char| c.is_ascii_digit(), "")
}

async fn refused(url: &str, policy: Policy, words: &[&str]) {
    let error = is_encrypted(url).await.expect_err(url);
    let shown = error.to_string();
    assert_eq!(error.policy(), policy, "{url}: {shown}");
    for words in words {
        assert!(shown.contains(words), "{url}: {words:?} is not in: {shown}");
    }
    assert!(!format!("{shown} {error:?}").contains("s3cret"), "{shown}");
}

#[tokio::test]
async fn each_sslmode_does_what_libpq_documents() {
    let server = Server::start().await;
    fs::write(server.path().join("other"), authority("another").pem()).expect("write");
    fs::write(server.path().join("empty"), "").expect("write");
    let url =
        |database: &str, query: &str| server.url("relay:tops3cret", "localhost", database, query);
    let by_address = |query: &str| server.url("relay:tops3cret", "127.0.0.1", "either", query);

    for (url, encrypted) in [
        (url("either", "sslmode=disable"), false),
        (url("plaintext", "sslmode=disable"), false),
        (url("either", "sslmode=allow"), false),
        // Barred in the clear, and so over TLS.
        (url("encrypted", "sslmode=allow"), true),
        (url("either", "sslmode=prefer"), true),
        (url("either", ""), true),
        // Barred over TLS, and so in the clear.
        (url("plaintext", "sslmode=prefer"), false),
        (url("either", "sslmode=require"), true),
        (url("either", "sslmode=require&sslrootcert=FILES/ca"), true),
        (
            url("either", "sslmode=verify-ca&sslrootcert=FILES/ca"),
            true,
        ),
        (
            url("either", "sslmode=verify-full&sslrootcert=FILES/ca"),
            true,
        ),
        (by_address("sslmode=verify-ca&sslrootcert=FILES/ca"), true),
        (by_address("sslmode=require"), true),
        (
            url("either", "sslmode=require&channel_binding=require"),
            true,
        ),
        (
            url("either", "sslmode=require&channel_binding=disable"),
            true,
        ),
        // The password itself goes over TLS only.
        (
            server.url("cleartext:tops3cret", "localhost", "encrypted", ""),
            true,
        ),
        (
            server.url("hashed:tops3cret", "localhost", "either", ""),
            true,
        ),
    ] {
        assert_eq!(
            is_encrypted(&url)
                .await
                .unwrap_or_else(|e| panic!("{url}: {e}")),
            encrypted,
            "{url}"
        );
    }

    for (url, policy, words) in [
        (
            url("encrypted", "sslmode=disable"),
            CONFIGURATION,
            &["pg_hba.conf", "28000"][..],
        ),
        (
            url("plaintext", "sslmode=require"),
            CONFIGURATION,
            &["pg_hba.conf", "28000"],
        ),
        (
            url("either", "sslmode=require&sslrootcert=FILES/other"),
            CONFIGURATION,
            &["UnknownIssuer", "sslrootcert"],
        ),
        // A certificate that is not to be trusted does not lead to a session in the clear.
        (
            url("either", "sslmode=prefer&sslrootcert=FILES/other"),
            CONFIGURATION,
            &["UnknownIssuer"],
        ),
        (
            url("either", "sslmode=verify-ca&sslrootcert=FILES/other"),
            CONFIGURATION,
            &["UnknownIssuer"],
        ),
        (
            url("either", "sslmode=verify-full&sslrootcert=FILES/other"),
            CONFIGURATION,
            &["UnknownIssuer"],
        ),
        (
            url("either", "sslmode=verify-full"),
            CONFIGURATION,
            &["UnknownIssuer"],
        ),
        (
            by_address("sslmode=verify-full&sslrootcert=FILES/ca"),
            CONFIGURATION,
            &["not valid for name", "localhost", "subjectAltName"],
        ),
        (
            url("either", "sslmode=verify-ca&sslrootcert=FILES/missing"),
            CONFIGURATION,
            &["sslrootcert", "No such file"],
        ),
        (
            url("either", "sslmode=verify-ca&sslrootcert=FILES/empty"),
            CONFIGURATION,
            &["no certificate"],
        ),
        (
            server.url(
                "hashed:tops3cret",
                "localhost",
                "either",
                "channel_binding=require",
            ),
            CONFIGURATION,
            &["does not ask for SCRAM"],
        ),
        (
            url("either", "sslmode=disable&channel_binding=require"),
            CONFIGURATION,
            &["needs TLS"],
        ),
    ] {
        refused(&url, policy, words).await;
    }

    // Certificates are read at each connect; an outdated one is waited for.
    let verify = url("either", "sslmode=verify-full&sslrootcert=FILES/ca");
    server
        .present(issue(&server.authority, "localhost", 2001))
        .await;
    refused(&verify, Policy::Reconnect, &["expired", "Renew"]).await;
    server
        .present(issue(&server.authority, "elsewhere.example", 2099))
        .await;
    refused(
        &verify,
        CONFIGURATION,
        &["not valid for name", "elsewhere.example"],
    )
    .await;
    let renewed = authority("renewed");
    server.present(issue(&renewed, "localhost", 2099)).await;
    refused(&verify, CONFIGURATION, &["UnknownIssuer"]).await;
    fs::write(server.path().join("ca"), renewed.pem()).expect("write");
    assert!(is_encrypted(&verify).await.expect("renewed"));

    // A certificate of version 1: good enough where it is not verified.
    let (certificate, key) = VERSION_1;
    server
        .present((certificate.to_owned(), key.to_owned()))
        .await;
    for query in [
        "sslmode=require",
        "sslmode=require&channel_binding=require",
        "",
    ] {
        assert!(
            is_encrypted(&url("encrypted", query))
                .await
                .expect("version 1")
        );
    }
    fs::write(server.path().join("ca"), certificate).expect("write");
    refused(&verify, CONFIGURATION, &["sslrootcert"]).await;

    // A self-signed certificate, listed itself, as in the documentation of Postgres; it marks itself as an authority.
    let mut own = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    own.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("key");
    let own = own.self_signed(&key).expect("certificate");
    server.present((own.pem(), key.serialize_pem())).await;
    fs::write(server.path().join("ca"), own.pem()).expect("write");
    assert!(is_encrypted(&verify).await.expect("self-signed"));
    refused(
        &by_address("sslmode=verify-full&sslrootcert=FILES/ca"),
        CONFIGURATION,
        &["not valid for name"],
    )
    .await;
}

#[tokio::test]
async fn a_client_certificate_opens_or_is_refused() {
    let server = Server::start().await;
    let other = authority("another");
    for (name, (certificate, key)) in [
        ("relay", issue(&server.authority, "relay", 2099)),
        ("nobody", issue(&server.authority, "nobody", 2099)),
        ("foreign", issue(&other, "relay", 2099)),
    ] {
        fs::write(server.path().join(format!("{name}.crt")), certificate).expect("write");
        fs::write(server.path().join(format!("{name}.key")), key).expect("write");
    }
    let url = |certificate: &str, key: &str| {
        let query = format!(
            "sslmode=verify-full&sslrootcert=FILES/ca&sslcert=FILES/{certificate}&sslkey=FILES/{key}"
        );
        server.url("relay", "localhost", "certificates", &query)
    };
    assert!(
        is_encrypted(&url("relay.crt", "relay.key"))
            .await
            .expect("opened")
    );
    refused(
        &url("nobody.crt", "nobody.key"),
        CONFIGURATION,
        &["28000", "pg_hba.conf"],
    )
    .await;
    refused(
        &url("foreign.crt", "foreign.key"),
        CONFIGURATION,
        &["refused our certificate", "sslcert"],
    )
    .await;
    refused(
        &url("relay.crt", "nobody.key"),
        CONFIGURATION,
        &["do not fit"],
    )
    .await;
    refused(
        &url("relay.crt", "relay.crt"),
        CONFIGURATION,
        &["sslkey", "no private key"],
    )
    .await;
    refused(
        &url("relay.crt", "missing"),
        CONFIGURATION,
        &["sslkey", "No such file"],
    )
    .await;
    let none = server.url("relay", "localhost", "certificates", "sslmode=require");
    refused(&none, CONFIGURATION, &["28000", "certificate"]).await;
}

/// Sits between: ends the client's TLS with a certificate of its own, and speaks TLS to the server.
async fn listen_in_between(server: &Server, presented: &Authority) -> u16 {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (certificate, key) = issue(presented, "localhost", 2099);
    let config = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("certificate")],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("key"),
        )
        .expect("configuration");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(server.authority.der().clone()).expect("root");
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let port = listener.local_addr().expect("address").port();
    let behind = server.postgres.port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (acceptor, connector) = (acceptor.clone(), connector.clone());
            tokio::spawn(async move {
                let mut request = [0; 8];
                client.read_exact(&mut request).await?;
                let mut server = TcpStream::connect(("127.0.0.1", behind)).await?;
                server.write_all(&request).await?;
                let answer = server.read_u8().await?;
                client.write_u8(answer).await?;
                let mut client = acceptor.accept(client).await?;
                let name = "localhost".try_into().expect("name");
                let mut server = connector.connect(name, server).await?;
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    port
}

#[tokio::test]
async fn channel_binding_shows_who_listens_in_between() {
    let server = Server::start().await;
    let port = listen_in_between(&server, &authority("listener")).await;
    let through =
        |query: &str| format!("postgres://relay:tops3cret@localhost:{port}/encrypted?{query}");
    // sslmode=require looks at no certificate; SCRAM does.
    refused(
        &through("sslmode=require"),
        CONFIGURATION,
        &["28000", "channel binding check failed"],
    )
    .await;
    let unbound = through("sslmode=require&channel_binding=disable");
    assert!(
        is_encrypted(&unbound)
            .await
            .expect("without binding nobody notices")
    );
}
