//! Floor 0, pure: the name that was probably meant, for a name that is not known.

/// Less alike than this, a question would only confuse.
const LIKENESS: f64 = 0.82;
/// A beginning of a known name that is at least so long is taken for it.
const PREFIX: usize = 3;

/// The name in `known` that is nearest to `name`, if one is near enough to be worth a question.
pub fn of<'k, K: AsRef<str> + ?Sized + 'k>(
    name: &str,
    known: impl IntoIterator<Item = &'k K>,
) -> Option<&'k str> {
    let name = name.to_lowercase().replace('-', "_");
    known
        .into_iter()
        .map(|known| {
            (
                likeness(&name, &known.as_ref().to_lowercase()),
                known.as_ref(),
            )
        })
        .filter(|(likeness, _)| *likeness >= LIKENESS)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

fn likeness(name: &str, known: &str) -> f64 {
    match known.starts_with(name) && name.len() >= PREFIX {
        true => 1.0,
        false => strsim::jaro_winkler(name, known),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant_or_nothing() {
        let known = ["run_at", "Kwargs", "sslmode", "sslrootcert"];
        for (name, near) in [
            ("run-at", Some("run_at")),
            ("runat", Some("run_at")),
            ("kwarg", Some("Kwargs")),
            ("KWARGS", Some("Kwargs")),
            ("sslmod", Some("sslmode")),
            ("ssl", Some("sslrootcert")),
            ("", None),
            ("zzz", None),
        ] {
            assert_eq!(of(name, &known), near, "{name}");
        }
        assert_eq!(of("run_at", &[] as &[&str]), None);
    }
}
