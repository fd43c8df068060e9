//! The configuration: any text is read or refused, and nothing that is told of it shows what a variable holds.

use aftercommit::config::Config;

/// What the variables hold. No shorter, or a text might hold it by chance.
const SECRET: &str = "hunter2-and-more";

/// Reads any text as a configuration.
pub(super) fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let env = |name: &str| match name {
        "DATABASE_URL" => Some(format!("postgres://app:{SECRET}@db/app")),
        "BROKER_URL" => Some(format!("rediss://:{SECRET}@broker/1")),
        "PASSWORD" => Some(SECRET.to_owned()),
        _ => None,
    };
    let (shown, findings) = match Config::parse("app.toml", text, &env) {
        Ok(config) => (String::new(), config.findings),
        Err(error) => (error.to_string(), Vec::new()),
    };
    let told = findings.iter().map(|finding| finding.text.as_str());
    for shown in told.chain([shown.as_str()]) {
        assert!(!shown.contains(SECRET), "{shown}");
    }
}
