//! The name of the outbox table.

use std::fmt;
use std::str::FromStr;

/// Schema and name of a table, as the catalog has them.
///
/// Read as SQL reads it: `outbox`, `shop.outbox`, `"Shop"."out.box"`. What is not quoted is folded to lower case, and
/// the schema is `public` where none is given.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TableName {
    schema: String,
    name: String,
}

/// The text does not name a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseTableNameError {
    /// More or less than a name, or a schema and a name.
    #[error("a table is written as name, or as schema.name")]
    Parts,
    /// A double quote that nothing closes, or that stands inside of a word.
    #[error("a double quote does not match; a quoted name is written \"Like This\"")]
    Quotes,
    /// A character that a name has only inside of double quotes.
    #[error("a name with other characters than letters, digits and _ needs double quotes")]
    Character,
    /// Postgres would cut it.
    #[error("a name has at most {} bytes", MAX_NAME_LEN)]
    TooLong,
}

/// `NAMEDATALEN` less the zero byte.
const MAX_NAME_LEN: usize = 63;

impl TableName {
    /// The table that `init` makes: `aftercommit.outbox`.
    pub fn ours() -> TableName {
        TableName {
            schema: "aftercommit".to_owned(),
            name: "outbox".to_owned(),
        }
    }

    /// The table's schema.
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// The table's name in its schema.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `"schema"."name"`: safe in any SQL.
    pub fn to_sql(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// As a human writes it: quoted only where the name has to be, reserved words apart.
impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
                && name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        for (separator, name) in [("", &self.schema), (".", &self.name)] {
            f.write_str(separator)?;
            if plain(name) {
                f.write_str(name)?;
            } else {
                f.write_str(&quote(name))?;
            }
        }
        Ok(())
    }
}

impl FromStr for TableName {
    type Err = ParseTableNameError;

    fn from_str(text: &str) -> Result<TableName, ParseTableNameError> {
        let (first, rest) = part(text)?;
        let (schema, name) = match rest.strip_prefix('.') {
            None => ("public".to_owned(), first),
            Some(rest) => {
                let (second, rest) = part(rest)?;
                if !rest.is_empty() {
                    return Err(ParseTableNameError::Parts);
                }
                (first, second)
            }
        };
        Ok(TableName { schema, name })
    }
}

/// Takes one name off the front; what is left is empty or starts with a dot.
fn part(text: &str) -> Result<(String, &str), ParseTableNameError> {
    let (name, rest) = match text.strip_prefix('"') {
        Some(quoted) => quoted_part(quoted)?,
        None => {
            let (name, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
            (folded(name)?, rest)
        }
    };
    if name.is_empty() {
        return Err(ParseTableNameError::Parts);
    }
    if name.len() > MAX_NAME_LEN {
        return Err(ParseTableNameError::TooLong);
    }
    Ok((name, rest))
}

/// A name up to the quote that closes it; a doubled quote is a quote.
fn quoted_part(mut text: &str) -> Result<(String, &str), ParseTableNameError> {
    let mut name = String::new();
    loop {
        let (before, after) = text.split_once('"').ok_or(ParseTableNameError::Quotes)?;
        name.push_str(before);
        match after.strip_prefix('"') {
            Some(after) => {
                name.push('"');
                text = after;
            }
            None if after.is_empty() || after.starts_with('.') => return Ok((name, after)),
            None => return Err(ParseTableNameError::Quotes),
        }
    }
}

fn folded(name: &str) -> Result<String, ParseTableNameError> {
    if name.contains('"') {
        return Err(ParseTableNameError::Quotes);
    }
    let inside = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii();
    let starts = !name.starts_with(|c: char| c.is_ascii_digit() || c == '$');
    if !starts || !name.chars().all(inside) {
        return Err(ParseTableNameError::Character);
    }
    Ok(name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_as_sql_does() {
        for (text, schema, name, shown) in [
            (
                "aftercommit.outbox",
                "aftercommit",
                "outbox",
                "aftercommit.outbox",
            ),
            ("Outbox", "public", "outbox", "public.outbox"),
            ("Shop.OUTBOX_2", "shop", "outbox_2", "shop.outbox_2"),
            (r#""Shop".outbox"#, "Shop", "outbox", r#""Shop".outbox"#),
            (r#"shop."out.box""#, "shop", "out.box", r#"shop."out.box""#),
            (r#""a""b"."2""#, "a\"b", "2", r#""a""b"."2""#),
            ("größe", "public", "größe", r#"public."größe""#),
        ] {
            let table: TableName = text.parse().expect(text);
            assert_eq!((table.schema(), table.name()), (schema, name), "{text}");
            assert_eq!(table.to_string(), shown);
            assert_eq!(table.to_string().parse(), Ok(table.clone()), "{text}");
            assert_eq!(table.to_sql().parse(), Ok(table), "{text}");
        }
    }

    #[test]
    fn says_what_is_wrong_with_a_name() {
        let long = "x".repeat(64);
        for (text, error) in [
            ("", ParseTableNameError::Parts),
            (".", ParseTableNameError::Parts),
            ("a.", ParseTableNameError::Parts),
            (".a", ParseTableNameError::Parts),
            (r#""""#, ParseTableNameError::Parts),
            ("a.b.c", ParseTableNameError::Parts),
            (r#""a"#, ParseTableNameError::Quotes),
            (r#"a"b""#, ParseTableNameError::Quotes),
            (r#""a"b"#, ParseTableNameError::Quotes),
            ("out-box", ParseTableNameError::Character),
            ("out box", ParseTableNameError::Character),
            ("2nd", ParseTableNameError::Character),
            (&long, ParseTableNameError::TooLong),
        ] {
            assert_eq!(text.parse::<TableName>(), Err(error), "{text:?}");
        }
        assert!("x".repeat(63).parse::<TableName>().is_ok());
    }
}
