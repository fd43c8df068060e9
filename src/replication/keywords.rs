//! Pure: the keywords of a connection string that are understood, and their values.

use crate::near;

const KEYWORDS: [&str; 16] = [
    "host",
    "port",
    "user",
    "password",
    "dbname",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslnegotiation",
    "gssencmode",
    "channel_binding",
    "connect_timeout",
    "application_name",
    "options",
    "target_session_attrs",
];

/// The values that were given, by index in [`KEYWORDS`].
#[derive(Default)]
pub(super) struct Keywords([Option<String>; KEYWORDS.len()]);

impl Keywords {
    pub(super) fn set(&mut self, key: &str, value: String) -> Result<(), String> {
        let Some(slot) = self.slot(key) else {
            // Not repeated: it may be a part of a password that was not quoted.
            return Err(match near::of(key, KEYWORDS) {
                Some(near) => format!("the URL has an unknown key: did you mean {near}?"),
                None => format!(
                    "the URL has an unknown key: these are understood: {}",
                    KEYWORDS.join(", ")
                ),
            });
        };
        if value.contains('\0') {
            return Err(format!("{key} holds a zero byte"));
        }
        // libpq: an empty value is no value.
        *slot = Some(value).filter(|value| !value.is_empty());
        Ok(())
    }

    fn slot(&mut self, key: &str) -> Option<&mut Option<String>> {
        let index = KEYWORDS.iter().position(|known| *known == key)?;
        self.0.get_mut(index)
    }

    pub(super) fn take(&mut self, key: &str) -> Option<String> {
        self.slot(key).and_then(Option::take)
    }

    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &str,
        of: &[(&str, T)],
    ) -> Result<Option<T>, String> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let found = of.iter().find(|(name, _)| *name == value);
        found.map(|(_, choice)| Some(*choice)).ok_or_else(|| {
            let names: Vec<_> = of.iter().map(|(name, _)| *name).collect();
            format!("{key} is none of {}", names.join(", "))
        })
    }

    /// Keys that libpq knows and that have one acceptable meaning here.
    pub(super) fn refuse_what_would_not_be_kept(&mut self) -> Result<(), String> {
        let only = |e: String, why: &str| format!("{e}: {why}");
        self.choice("sslnegotiation", &[("postgres", ())])
            .map_err(|e| only(e, "TLS always starts with an SSLRequest"))?;
        self.choice("gssencmode", &[("disable", ()), ("prefer", ())])
            .map_err(|e| only(e, "GSSAPI encryption is not supported"))?;
        self.choice(
            "target_session_attrs",
            &[("any", ()), ("read-write", ()), ("primary", ())],
        )
        .map_err(|e| only(e, "the slot is on the primary"))?;
        Ok(())
    }
}
