//! Names of tables and slots, and how they are quoted.

use std::fmt;
use std::str::FromStr;

use postgres_protocol::escape::{escape_identifier, escape_literal};

/// The name of a table, with its schema.
///
/// Written `schema.table`, or `table` for one in `public`. Names are taken as they stand, without folding to lower
/// case; double quotes hold a name with a dot in it: `"odd.schema"."Outbox"`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TableName {
    /// The schema, unquoted.
    pub schema: String,
    /// The table, unquoted.
    pub name: String,
}

impl TableName {
    /// The table that `init` makes: `aftercommit.outbox`.
    pub fn ours() -> TableName {
        TableName {
            schema: "aftercommit".to_owned(),
            name: "outbox".to_owned(),
        }
    }

    /// Both parts quoted, for SQL.
    pub fn quoted(&self) -> String {
        format!("{}.{}", ident(&self.schema), ident(&self.name))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

impl FromStr for TableName {
    type Err = String;

    /// # Errors
    /// Says which form is understood.
    fn from_str(text: &str) -> Result<TableName, String> {
        let form = || format!("{text:?} is not a table; write it like \"schema.table\"");
        let (first, rest) = part(text).ok_or_else(form)?;
        let (schema, name) = match rest {
            "" => ("public".to_owned(), first),
            rest => {
                let (second, end) = rest.strip_prefix('.').and_then(part).ok_or_else(form)?;
                if !end.is_empty() {
                    return Err(form());
                }
                (first, second)
            }
        };
        for name in [&schema, &name] {
            if name.len() > 63 {
                return Err(format!(
                    "{name:?} is longer than the 63 bytes of a Postgres name"
                ));
            }
        }
        Ok(TableName { schema, name })
    }
}

/// Splits one name off, quoted or not; `None` where there is none.
fn part(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (name, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
        let plain = !name.is_empty() && !name.contains(['"', '\0']) && name.trim() == name;
        return plain.then(|| (name.to_owned(), rest));
    };
    let mut name = String::new();
    let mut rest = quoted;
    loop {
        let (piece, after) = rest.split_once('"')?;
        name.push_str(piece);
        match after.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => {
                let usable = !name.is_empty() && !name.contains('\0');
                return usable.then_some((name, after));
            }
        }
    }
}

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
    fn reads_names_of_tables() {
        for (text, schema, name) in [
            ("aftercommit.outbox", "aftercommit", "outbox"),
            ("outbox", "public", "outbox"),
            ("Shop.Outbox", "Shop", "Outbox"),
            (r#""a.b"."c""d""#, "a.b", "c\"d"),
            (r#"shop."out box""#, "shop", "out box"),
            (r#""out.box""#, "public", "out.box"),
            ("größe.ausgang", "größe", "ausgang"),
        ] {
            let table: TableName = text.parse().expect(text);
            assert_eq!(
                (table.schema.as_str(), table.name.as_str()),
                (schema, name),
                "{text}"
            );
        }
        let long = "x".repeat(64);
        for bad in [
            "", ".", "a.", ".b", "a.b.c", "a b.", "\"a", "\"\".b", "a\"b", " a.b", "a. b", "a.b ",
            "a.\0", &long,
        ] {
            assert!(bad.parse::<TableName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn quotes_for_sql() {
        let odd = TableName {
            schema: "a\"b".to_owned(),
            name: "Select".to_owned(),
        };
        assert_eq!(odd.quoted(), "\"a\"\"b\".\"Select\"");
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
