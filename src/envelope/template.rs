//! Names that are made of a task's fields, such as `events:{task}`.
//!
//! `{field}` stands for the text of a column: id, task, key or queue; `{{` and `}}` for a brace. A name with fields begins
//! with other text, so that no row chooses a name outside of what the operator has set aside.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

use super::Unfit;
use crate::outbox::{Field, Task};

/// What a name can be made of.
const FIELDS: [Field; 4] = [Field::Id, Field::Task, Field::Key, Field::Queue];

/// A name with fields in it, or without.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Template(Vec<Part>);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Text(String),
    Field(Field),
}

/// The text is no template.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseTemplateError {
    /// Nothing.
    #[error("must not be empty")]
    Empty,
    /// It begins with a field.
    #[error(
        "must begin with a text of its own before {{{0}}}: a row must not choose any name that it likes"
    )]
    NoPrefix(&'static str),
    /// A brace without the other.
    #[error(
        "has a brace without its other half; write {{{{ or }}}} for a brace that stands for itself"
    )]
    Brace,
    /// A field that there is not, or that makes no name.
    #[error("has {{{0}}}; a name can be made of {{id}}, {{task}}, {{key}} and {{queue}}")]
    Field(String),
}

impl FromStr for Template {
    type Err = ParseTemplateError;

    fn from_str(text: &str) -> Result<Template, ParseTemplateError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from_brace) = rest.split_at(at);
            literal.push_str(before);
            if let Some(behind) = from_brace.strip_prefix("{{") {
                literal.push('{');
                rest = behind;
            } else if let Some(behind) = from_brace.strip_prefix("}}") {
                literal.push('}');
                rest = behind;
            } else {
                let inside = from_brace.strip_prefix('{').and_then(|b| b.split_once('}'));
                let (name, behind) = inside.ok_or(ParseTemplateError::Brace)?;
                let field = FIELDS.into_iter().find(|field| field.name() == name);
                let field = field.ok_or_else(|| ParseTemplateError::Field(name.to_owned()))?;
                if !literal.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut literal)));
                }
                if parts.is_empty() {
                    return Err(ParseTemplateError::NoPrefix(field.name()));
                }
                parts.push(Part::Field(field));
                rest = behind;
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        match parts.is_empty() {
            true => Err(ParseTemplateError::Empty),
            false => Ok(Template(parts)),
        }
    }
}

impl Template {
    /// Appends the name for a task.
    ///
    /// # Errors
    /// A field that it needs is NULL or empty.
    pub fn write(&self, out: &mut Vec<u8>, task: &Task) -> Result<(), Unfit> {
        for part in &self.0 {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Field(field) => match task.get(*field) {
                    Some(text) if !text.is_empty() => out.extend_from_slice(text),
                    _ => {
                        let name = field.name();
                        let words = format!(
                            "{name} is NULL or empty, and the place that the task goes to is named by it"
                        );
                        return Err(Unfit::new(words));
                    }
                },
            }
        }
        Ok(())
    }

    /// The name, where it is the same for every task.
    pub fn fixed(&self) -> Option<&str> {
        match self.0.as_slice() {
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }
}

/// As it was written.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.0 {
            match part {
                Part::Text(text) => f.write_str(&text.replace('{', "{{").replace('}', "}}"))?,
                Part::Field(field) => write!(f, "{{{}}}", field.name())?,
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Template, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::Position;
    use crate::pg::Timestamp;

    #[test]
    fn names_are_made_of_fields() {
        let fields = [
            (Field::Id, "7"),
            (Field::Task, "shop.paid"),
            (Field::Key, "a{b"),
            (Field::Queue, ""),
        ];
        let task = Task::from_fields(fields, Position::default(), Timestamp(0));
        for (text, expected) in [
            ("events", Some("events")),
            ("events:{task}", Some("events:shop.paid")),
            ("e:{task}:{id}:x", Some("e:shop.paid:7:x")),
            ("o:{{{key}}}", Some("o:{a{b}")),
            ("{{fixed}}", Some("{fixed}")),
            ("q:{queue}", None),
        ] {
            let template: Template = text.parse().expect(text);
            assert_eq!(template.to_string(), text);
            let mut out = Vec::new();
            let written = template.write(&mut out, &task).ok();
            let name = written.map(|()| String::from_utf8(out).expect("UTF-8"));
            assert_eq!(name.as_deref(), expected, "{text}");
        }
        let fixed = |text: &str| text.parse::<Template>().expect(text).fixed().is_some();
        assert!(fixed("events") && fixed("{{x}}") && !fixed("e:{id}"));
    }

    #[test]
    fn what_is_no_template_is_refused_in_words() {
        for (text, words) in [
            ("", "empty"),
            ("{task}", "begin with a text"),
            ("a:{tsak}", "{tsak}"),
            ("a:{kwargs}", "{kwargs}"),
            ("a:{", "brace"),
            ("a}", "brace"),
            ("a:{task", "brace"),
        ] {
            let error = text.parse::<Template>().expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
