//! Names that are made of a task's fields, such as `events:{task}`.
//!
//! `{field}` stands for the text of a column: id, task, key, queue or priority; `{{` and `}}` for a brace. A name that begins
//! with a field is *open*: a row could choose any name there is. Sinks refuse that where it would let a row out of what the
//! operator has set aside.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

use super::Unfit;
use crate::outbox::{Field, Task};

/// What a name can be made of.
const FIELDS: [Field; 5] = [
    Field::Id,
    Field::Task,
    Field::Key,
    Field::Queue,
    Field::Priority,
];

/// A name with fields in it, or without.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Template(Vec<Part>);

/// A piece of a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Part {
    /// As it is.
    Text(String),
    /// The text of a column.
    Field(Field),
}

/// The text is no template. Begins with a verb.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseTemplateError {
    /// A brace without the other.
    #[error(
        "has a brace without its other half; write {{{{ or }}}} for a brace that stands for itself"
    )]
    Brace,
    /// A field that there is not, or that makes no name.
    #[error(
        "has {{{0}}}, which is not known: a name can be made of {{id}}, {{task}}, {{key}}, {{queue}} and {{priority}}"
    )]
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
                parts.push(Part::Field(field));
                rest = behind;
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Template(parts))
    }
}

impl Template {
    /// The pieces; none, if it is empty.
    pub fn parts(&self) -> &[Part] {
        &self.0
    }

    /// The name, where it is the same for every task.
    pub fn fixed(&self) -> Option<&str> {
        match self.0.as_slice() {
            [] => Some(""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// Whether it begins with a field, so that a row chooses among all names that there are.
    pub fn is_open(&self) -> bool {
        matches!(self.0.first(), Some(Part::Field(_)))
    }

    /// The name for a task. `setting` is what it is called.
    ///
    /// # Errors
    /// A field that it needs is NULL or empty.
    pub fn name<'t>(&'t self, task: &'t Task, setting: &str) -> Result<Cow<'t, str>, Unfit> {
        let value = |field: Field| match task.text(field) {
            Some(text) if !text.is_empty() => Ok(text),
            _ => {
                let field = field.name();
                Err(Unfit::new(format!(
                    "{field} is NULL or empty, and {setting} of the sink has {{{field}}} in it"
                )))
            }
        };
        if let Some(fixed) = self.fixed() {
            return Ok(Cow::Borrowed(fixed));
        }
        if let [Part::Field(field)] = self.0.as_slice() {
            return value(*field).map(Cow::Borrowed);
        }
        let mut name = String::new();
        for part in &self.0 {
            name.push_str(match part {
                Part::Text(text) => text,
                Part::Field(field) => value(*field)?,
            });
        }
        Ok(Cow::Owned(name))
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
    fn fields_are_put_in_their_places() {
        let fields = [
            (Field::Id, "7"),
            (Field::Task, "shop.paid"),
            (Field::Key, "a{b"),
            (Field::Priority, "3"),
        ];
        let task = Task::from_fields(fields, Position::default(), Timestamp(0));
        let lacking = "queue is NULL or empty, and it of the sink has {queue} in it";
        for (text, expected) in [
            ("", Ok("")),
            ("events", Ok("events")),
            ("{task}", Ok("shop.paid")),
            ("events:{task}", Ok("events:shop.paid")),
            ("e:{task}:{id}:x", Ok("e:shop.paid:7:x")),
            ("o:{{{key}}}", Ok("o:{a{b}")),
            ("{{fixed}}", Ok("{fixed}")),
            ("{task}.{priority}", Ok("shop.paid.3")),
            ("q:{queue}", Err(lacking)),
            ("{queue}", Err(lacking)),
        ] {
            let template: Template = text.parse().expect(text);
            assert_eq!(template.to_string(), text);
            let name = template.name(&task, "it");
            let name = name.map_err(|unfit| unfit.to_string());
            assert_eq!(name.as_deref().map_err(String::as_str), expected, "{text}");
            let open = text.starts_with('{') && !text.starts_with("{{");
            assert_eq!(template.is_open(), open, "{text}");
        }
        let fixed = |text: &str| text.parse::<Template>().expect(text).fixed().is_some();
        assert!(fixed("") && fixed("events") && fixed("{{x}}") && !fixed("e:{id}"));
        let task = Task::from_fields([(Field::Key, "")], Position::default(), Timestamp(0));
        let template: Template = "o:{key}".parse().expect("a template");
        assert!(template.name(&task, "it").is_err());
    }

    #[test]
    fn what_is_no_template_is_refused_in_words() {
        for (text, words) in [
            ("{", "other half"),
            ("}", "other half"),
            ("a:{task", "other half"),
            ("a:{}", "not known"),
            ("a:{tsak}", "{tsak}"),
            ("a:{ task }", "not known"),
            ("{kwargs}", "not known"),
        ] {
            let error = text.parse::<Template>().expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
