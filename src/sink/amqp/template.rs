//! A name with fields of the task in it: `shop.{task}`.

use std::borrow::Cow;

use crate::envelope::Unfit;
use crate::outbox::{Field, Task};

/// The fields that a name may hold.
const FIELDS: [Field; 5] = [
    Field::Id,
    Field::Task,
    Field::Key,
    Field::Queue,
    Field::Priority,
];

/// A name with fields in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Text(String),
    Field(Field),
}

impl Template {
    /// Reads a template. `{{` and `}}` are braces.
    ///
    /// # Errors
    /// What is wrong; begins with a verb.
    pub(super) fn parse(text: &str) -> Result<Template, String> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, brace) = rest.split_at(at);
            literal.push_str(before);
            if let Some(behind) = brace.strip_prefix("{{") {
                literal.push('{');
                rest = behind;
            } else if let Some(behind) = brace.strip_prefix("}}") {
                literal.push('}');
                rest = behind;
            } else {
                let inner = brace
                    .strip_prefix('{')
                    .and_then(|inner| inner.split_once('}'));
                let (name, behind) = inner
                    .ok_or("has a brace without its other half: a brace itself is written twice")?;
                let field = FIELDS.into_iter().find(|field| field.name() == name);
                let field = field
                    .ok_or("has a field that is not known: {id}, {task}, {key}, {queue} and {priority} are")?;
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
        Ok(Template { parts })
    }

    /// The name, where it is the same for every task.
    pub(super) fn fixed(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// Whether it begins with a field, so that a row chooses among all names that there are.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.parts.first(), Some(Part::Field(_)))
    }

    /// The name for a task. `setting` is what it is called.
    pub(super) fn name<'t>(&'t self, task: &'t Task, setting: &str) -> Result<Cow<'t, str>, Unfit> {
        let value = |field: Field| {
            task.text(field).ok_or_else(|| {
                let field = field.name();
                Unfit::new(format!(
                    "{field} is NULL, and {setting} of the sink has {{{field}}} in it"
                ))
            })
        };
        if let Some(fixed) = self.fixed() {
            return Ok(Cow::Borrowed(fixed));
        }
        if let [Part::Field(field)] = self.parts.as_slice() {
            return value(*field).map(Cow::Borrowed);
        }
        let mut name = String::new();
        for part in &self.parts {
            name.push_str(match part {
                Part::Text(text) => text,
                Part::Field(field) => value(*field)?,
            });
        }
        Ok(Cow::Owned(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::Position;
    use crate::pg::Timestamp;

    #[test]
    fn fields_are_put_in_their_places() {
        let fields = [(Field::Task, "order.paid"), (Field::Key, "k 1")];
        let task = Task::from_fields(fields, Position::default(), Timestamp(0));
        for (text, expected) in [
            ("", Ok("")),
            ("events", Ok("events")),
            ("{task}", Ok("order.paid")),
            ("shop.{task}", Ok("shop.order.paid")),
            ("{task}.{key}!", Ok("order.paid.k 1!")),
            ("{{{key}}}", Ok("{k 1}")),
            ("a}}{{", Ok("a}{")),
            (
                "x.{queue}",
                Err("queue is NULL, and it of the sink has {queue} in it"),
            ),
        ] {
            let template = Template::parse(text).unwrap();
            let name = template
                .name(&task, "it")
                .map_err(|unfit| unfit.to_string());
            assert_eq!(name.as_deref().map_err(String::as_str), expected, "{text}");
            assert_eq!(
                template.is_open(),
                text.starts_with("{") && !text.starts_with("{{")
            );
        }
        for (text, words) in [
            ("{", "other half"),
            ("}", "other half"),
            ("{task", "other half"),
            ("a{}", "not known"),
            ("{kwargs}", "not known"),
            ("{ task }", "not known"),
        ] {
            let error = Template::parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
