//! Names of slots, and how names are quoted.

use postgres_protocol::escape::{escape_identifier, escape_literal};

/// Whether the server would take a slot of this name.
///
/// # Errors
/// Says what a slot's name may hold (documentation, chapter "Replication Slots").
pub fn check_slot_name(name: &str) -> Result<(), String> {
    let fits = (1..=63).contains(&name.len());
    let plain = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if fits && plain {
        return Ok(());
    }
    Err(format!(
        "{name:?} is not a name for a slot: 1 to 63 of lower-case letters, digits and underscores"
    ))
}

/// An identifier, quoted.
pub(crate) fn ident(name: &str) -> String {
    escape_identifier(name)
}

/// A string literal.
pub(crate) fn literal(text: &str) -> String {
    escape_literal(text)
}

/// A body between dollar quotes whose tag does not occur in it.
pub(crate) fn dollar_quoted(body: &str) -> String {
    let mut tag = "$do$".to_owned();
    while body.contains(&tag) {
        tag.insert(3, 'o');
    }
    format!("{tag}{body}{tag}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_for_sql() {
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(dollar_quoted("a"), "$do$a$do$");
        assert_eq!(dollar_quoted("a$do$b"), "$doo$a$do$b$doo$");
    }

    #[test]
    fn knows_names_of_slots() {
        for good in ["aftercommit", "a", "shop_2", &"x".repeat(63)] {
            assert_eq!(check_slot_name(good), Ok(()));
        }
        for bad in ["", "Shop", "a-b", "größe", &"x".repeat(64)] {
            assert!(check_slot_name(bad).is_err(), "{bad:?}");
        }
    }
}
