//! Where a task goes: a subject made of a template and of fields, pure (NATS documentation, "Subject-Based Messaging").
//!
//! A template is text with fields in braces: `tasks.{task}`. It begins with text, so that nobody who writes rows can reach
//! subjects outside of it: `$JS.API...` deletes streams. `{task}` keeps its dots, as levels of the subject; `{key}` and
//! `{queue}` are one level each. A field that would make something else of the subject is refused and not rewritten: a
//! consumer's filter on a rewritten name would silently match nothing, or another task's.

use crate::envelope::Unfit;
use crate::envelope::template::{ParseTemplateError, Part, Template};
use crate::outbox::{Field, Task};

/// The server's limit of one line is 4 KiB, and a reply and numbers stand in it too.
const MAX_SUBJECT: usize = 1024;

/// A subject with fields in it.
#[derive(Clone, Debug)]
pub(super) struct Subject(Template);

impl Subject {
    /// Reads a template.
    ///
    /// # Errors
    /// What is wrong with it; begins with a verb.
    pub(super) fn parse(text: &str) -> Result<Subject, String> {
        let template: Template = text
            .parse()
            .map_err(|error: ParseTemplateError| error.to_string())?;
        match template.parts().first() {
            Some(Part::Text(prefix)) if prefix.starts_with('$') => {
                return Err("must not begin with $: those subjects are the server's".to_owned());
            }
            Some(Part::Text(_)) => {}
            _ => {
                return Err(
                    "must begin with text, such as tasks.{task}: rows must not reach every subject"
                        .to_owned(),
                );
            }
        }
        let texts = template.parts().iter().map(|part| match part {
            Part::Text(text) => text.as_str(),
            Part::Field(_) => "x",
        });
        let shape: String = texts.collect();
        let forbidden = |c: char| c.is_whitespace() || matches!(c, '{' | '}' | '*' | '>');
        if shape.contains(forbidden) {
            return Err("must not have spaces, *, > or a brace of its own in it".to_owned());
        }
        if shape.split('.').any(str::is_empty) {
            return Err("has an empty level: no dot at its ends, and no two in a row".to_owned());
        }
        Ok(Subject(template))
    }

    /// The subjects that it can make, as a filter: `tasks.>`; the subject itself, where it has no fields.
    pub(super) fn filter(&self) -> String {
        match self.0.parts() {
            [Part::Text(text)] => text.clone(),
            [Part::Text(prefix), ..] => match prefix.rsplit_once('.') {
                Some((levels, _)) => format!("{levels}.>"),
                None => ">".to_owned(),
            },
            _ => ">".to_owned(),
        }
    }

    /// Writes the task's subject into `out`, which is empty. A row's `queue` is its subject.
    ///
    /// # Errors
    /// The field that does not do.
    pub(super) fn write(&self, task: &Task, out: &mut String) -> Result<(), Unfit> {
        match task.text(Field::Queue) {
            Some(queue) if !self.uses_queue() => {
                if queue.starts_with('$') {
                    return Err(Unfit::new(
                        "queue begins with $: those subjects are the server's",
                    ));
                }
                check(queue, Field::Queue)?;
                out.push_str(queue);
            }
            _ => {
                for part in self.0.parts() {
                    match part {
                        Part::Text(text) => out.push_str(text),
                        Part::Field(field) => {
                            let value = task.text(*field).unwrap_or_default();
                            check(value, *field)?;
                            out.push_str(value);
                        }
                    }
                }
            }
        }
        if out.len() > MAX_SUBJECT {
            return Err(Unfit::new(format!(
                "its subject is longer than {MAX_SUBJECT} bytes"
            )));
        }
        Ok(())
    }

    fn uses_queue(&self) -> bool {
        let is_queue = |part: &Part| matches!(part, Part::Field(Field::Queue));
        self.0.parts().iter().any(is_queue)
    }
}

/// Whether a value can stand in a subject, as one level; with dots, as several, where it is a name or a whole subject.
fn check(value: &str, field: Field) -> Result<(), Unfit> {
    let name = field.name();
    let unfit = |words: &str| {
        Err(Unfit::new(format!(
            "{name} {words}, and the subject is made of it"
        )))
    };
    if value.is_empty() {
        return unfit("is empty");
    }
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '*' | '>');
    if value.contains(forbidden) {
        return unfit("has a space, a control character, * or > in it");
    }
    let levels = matches!(field, Field::Task | Field::Queue);
    if !levels && value.contains('.') {
        return unfit("has a dot in it, which would make another level");
    }
    if value.split('.').any(str::is_empty) {
        return unfit("begins or ends with a dot, or has two in a row");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::Position;
    use crate::pg::Timestamp;

    fn write(template: &str, fields: &[(Field, &str)]) -> Result<String, String> {
        let task = Task::from_fields(fields.to_vec(), Position::default(), Timestamp(0));
        let mut out = String::new();
        let subject = Subject::parse(template).expect("a template");
        match subject.write(&task, &mut out) {
            Ok(()) => Ok(out),
            Err(unfit) => Err(unfit.into_words().into_owned()),
        }
    }

    #[test]
    fn templates() {
        for (text, filter) in [
            ("tasks", "tasks"),
            ("tasks.done", "tasks.done"),
            ("tasks.{task}", "tasks.>"),
            ("a.b.{key}.{task}", "a.b.>"),
            ("a.b-{key}", "a.>"),
            ("a{key}", ">"),
        ] {
            assert_eq!(Subject::parse(text).unwrap().filter(), filter, "{text}");
        }
        for (text, words) in [
            ("", "begin with text"),
            ("{task}", "begin with text"),
            ("{queue}.x", "begin with text"),
            ("$JS.API.{task}", "the server's"),
            ("a.{task", "other half"),
            ("a.{name}", "not known"),
            ("a.}{task}", "other half"),
            ("a.{{b", "a brace of its own"),
            ("a b.{task}", "spaces"),
            ("a.*.{task}", "spaces"),
            ("a.>", "spaces"),
            (".a", "empty level"),
            ("a..{task}", "empty level"),
            ("a.{task}.", "empty level"),
        ] {
            let error = Subject::parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn subjects() {
        let fields = [
            (Field::Task, "shop.tasks.send"),
            (Field::Key, "k-1"),
            (Field::Id, "i"),
        ];
        for (template, subject) in [
            ("tasks", "tasks"),
            ("tasks.{task}", "tasks.shop.tasks.send"),
            ("tasks.{key}.{task}", "tasks.k-1.shop.tasks.send"),
            ("tasks.x{key}", "tasks.xk-1"),
            ("tasks.{id}", "tasks.i"),
        ] {
            assert_eq!(write(template, &fields).as_deref(), Ok(subject));
        }
        let elsewhere = [(Field::Task, "a b"), (Field::Queue, "other.place")];
        assert_eq!(
            write("tasks.{task}", &elsewhere).as_deref(),
            Ok("other.place")
        );
        let named = [(Field::Queue, "fast.lane")];
        assert_eq!(write("q.{queue}", &named).as_deref(), Ok("q.fast.lane"));
    }

    #[test]
    fn what_is_no_part_of_a_subject_is_refused() {
        let long = "x".repeat(2000);
        for (template, field, value, words) in [
            ("t.{task}", Field::Task, "", "task is empty"),
            ("t.{task}", Field::Task, "a b", "task has a space"),
            ("t.{task}", Field::Task, "a\r\nPUB x 0", "task has a space"),
            ("t.{task}", Field::Task, "a.*", "task has a space"),
            ("t.{task}", Field::Task, ">", "task has a space"),
            ("t.{task}", Field::Task, "a\u{0}", "task has a space"),
            ("t.{task}", Field::Task, "a\u{a0}b", "task has a space"),
            ("t.{task}", Field::Task, ".a", "dot"),
            ("t.{task}", Field::Task, "a..b", "dot"),
            ("t.{task}", Field::Task, &long, "longer than"),
            ("t.{key}", Field::Key, "a.b", "another level"),
            ("t.{key}", Field::Task, "x", "key is empty"),
            ("t", Field::Queue, "$JS.API.STREAM.DELETE.X", "the server's"),
            ("t", Field::Queue, "", "queue is empty"),
            ("t", Field::Queue, "a b", "queue has a space"),
        ] {
            let error = write(template, &[(field, value)]).unwrap_err();
            assert!(error.contains(words), "{template} {value:?}: {error}");
        }
    }
}
