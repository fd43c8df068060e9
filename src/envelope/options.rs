//! The `options` column, as Celery understands it: the names of `apply_async`, each with its form.
//!
//! A name that is not known is refused, so that a slip of the pen does not vanish. `null` is as good as not given.

use super::Unfit;
use super::json::{self, Dialect, Kind};

/// Texts of the JSON values of the options that are given.
#[derive(Default)]
pub(super) struct Options<'t> {
    pub(super) time_limit: Option<&'t [u8]>,
    pub(super) soft_time_limit: Option<&'t [u8]>,
    pub(super) ignore_result: Option<&'t [u8]>,
    pub(super) retries: Option<&'t [u8]>,
    pub(super) replaced_task_nesting: Option<&'t [u8]>,
    pub(super) shadow: Option<&'t [u8]>,
    pub(super) group: Option<&'t [u8]>,
    pub(super) group_index: Option<&'t [u8]>,
    pub(super) root_id: Option<&'t [u8]>,
    pub(super) parent_id: Option<&'t [u8]>,
    pub(super) argsrepr: Option<&'t [u8]>,
    pub(super) kwargsrepr: Option<&'t [u8]>,
    pub(super) stamped_headers: Option<&'t [u8]>,
    pub(super) stamps: Option<&'t [u8]>,
    pub(super) link: Option<&'t [u8]>,
    pub(super) link_error: Option<&'t [u8]>,
    pub(super) chain: Option<&'t [u8]>,
    pub(super) chord: Option<&'t [u8]>,
    pub(super) reply_to: Option<&'t [u8]>,
    pub(super) delivery_mode: Option<&'t [u8]>,
    pub(super) exchange: Option<&'t [u8]>,
    pub(super) routing_key: Option<&'t [u8]>,
    pub(super) content_type: Option<&'t [u8]>,
    pub(super) content_encoding: Option<&'t [u8]>,
    pub(super) properties: Option<&'t [u8]>,
}

/// What kind of row an option belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Row {
    /// One with args and kwargs.
    Call,
    /// One with a ready-made body.
    Ready,
}

#[derive(Clone, Copy)]
enum Form {
    Text,
    Flag,
    /// A whole number from 0.
    Count,
    /// Seconds from 0.
    Seconds,
    /// 1 (transient) or 2 (persistent).
    DeliveryMode,
    Object,
    TextList,
    Signature,
    /// One signature, or a list of them.
    Signatures,
    SignatureList,
}

type Slot<'o, 't> = (&'o mut Option<&'t [u8]>, Form, Option<Row>);

impl<'t> Options<'t> {
    /// Takes the column's text apart.
    pub(super) fn parse(text: &'t [u8], row: Row) -> Result<Options<'t>, Unfit> {
        let mut options = Options::default();
        if json::kind(text) == Some(Kind::Null) {
            return Ok(options);
        }
        for member in json::members(text, Dialect::Strict) {
            let (name, value) = member.map_err(|defect| {
                Unfit::new(format!(
                    "options is no JSON object, or {defect}; write {{\"retries\": 1}}"
                ))
            })?;
            let Some((slot, form, only)) = options.slot(name) else {
                return Err(unknown(name));
            };
            let name = String::from_utf8_lossy(name);
            if only.is_some_and(|only| only != row) {
                return Err(misplaced(&name, row));
            }
            if json::kind(value) == Some(Kind::Null) {
                *slot = None;
                continue;
            }
            if !fits(value, form) {
                return Err(Unfit::new(format!(
                    "options.{name} must be {}",
                    words(form)
                )));
            }
            *slot = Some(value);
        }
        Ok(options)
    }

    fn slot<'o>(&'o mut self, name: &[u8]) -> Option<Slot<'o, 't>> {
        use Form::*;
        let (call, ready) = (Some(Row::Call), Some(Row::Ready));
        Some(match name {
            b"time_limit" => (&mut self.time_limit, Seconds, call),
            b"soft_time_limit" => (&mut self.soft_time_limit, Seconds, call),
            b"ignore_result" => (&mut self.ignore_result, Flag, call),
            b"retries" => (&mut self.retries, Count, call),
            b"replaced_task_nesting" => (&mut self.replaced_task_nesting, Count, call),
            b"shadow" => (&mut self.shadow, Text, call),
            b"group" | b"group_id" => (&mut self.group, Text, call),
            b"group_index" => (&mut self.group_index, Count, call),
            b"root_id" => (&mut self.root_id, Text, call),
            b"parent_id" => (&mut self.parent_id, Text, call),
            b"argsrepr" => (&mut self.argsrepr, Text, call),
            b"kwargsrepr" => (&mut self.kwargsrepr, Text, call),
            b"stamped_headers" => (&mut self.stamped_headers, TextList, call),
            b"stamps" => (&mut self.stamps, Object, call),
            b"link" => (&mut self.link, Signatures, call),
            b"link_error" => (&mut self.link_error, Signatures, call),
            b"chain" => (&mut self.chain, SignatureList, call),
            b"chord" => (&mut self.chord, Signature, call),
            b"reply_to" => (&mut self.reply_to, Text, None),
            b"delivery_mode" => (&mut self.delivery_mode, DeliveryMode, None),
            b"exchange" => (&mut self.exchange, Text, None),
            b"routing_key" => (&mut self.routing_key, Text, None),
            b"content_type" => (&mut self.content_type, Text, ready),
            b"content_encoding" => (&mut self.content_encoding, Text, ready),
            b"properties" => (&mut self.properties, Object, ready),
            _ => return None,
        })
    }
}

fn unknown(name: &[u8]) -> Unfit {
    let column = match name {
        b"task_id" => "id",
        b"eta" | b"countdown" => "run_at",
        b"expires" => "expires_at",
        b"queue" | b"priority" | b"headers" | b"args" | b"kwargs" => "",
        _ => {
            let name = String::from_utf8_lossy(name);
            return Unfit::new(format!(
                "options.{} is not known to the celery sink",
                name.chars().take(64).collect::<String>()
            ));
        }
    };
    let name = String::from_utf8_lossy(name);
    let column = if column.is_empty() { &name } else { column };
    Unfit::new(format!(
        "options.{name} is no option: set the column {column} instead"
    ))
}

fn misplaced(name: &str, row: Row) -> Unfit {
    Unfit::new(match row {
        Row::Call => format!("options.{name} is for rows with a body"),
        Row::Ready => {
            format!("options.{name} is not for rows with a body: its headers and body say it")
        }
    })
}

fn words(form: Form) -> &'static str {
    match form {
        Form::Text => "a string",
        Form::Flag => "true or false",
        Form::Count => "a whole number from 0",
        Form::Seconds => "a number of seconds from 0",
        Form::DeliveryMode => "1 (transient) or 2 (persistent)",
        Form::Object => "an object",
        Form::TextList => "a list of strings",
        Form::Signature => {
            "a task signature such as {\"task\": \"a.b\", \"args\": [], \"kwargs\": {}}"
        }
        Form::Signatures => {
            "a task signature such as {\"task\": \"a.b\", \"args\": []}, or a list of them"
        }
        Form::SignatureList => "a list of task signatures, the last one to run first",
    }
}

fn fits(value: &[u8], form: Form) -> bool {
    let kind = json::kind(value);
    match form {
        Form::Text => json::text(value).is_some(),
        Form::Flag => kind == Some(Kind::Boolean),
        Form::Count => value.len() <= 9 && value.iter().all(u8::is_ascii_digit),
        Form::Seconds => kind == Some(Kind::Number) && !value.starts_with(b"-"),
        Form::DeliveryMode => matches!(value, b"1" | b"2"),
        Form::Object => kind == Some(Kind::Object),
        Form::TextList => all(value, |element| json::text(element).is_some()),
        Form::Signature => is_signature(value),
        Form::Signatures => is_signature(value) || all(value, is_signature),
        Form::SignatureList => all(value, is_signature),
    }
}

fn all(value: &[u8], fits: impl Fn(&[u8]) -> bool) -> bool {
    json::kind(value) == Some(Kind::Array)
        && json::elements(value, Dialect::Strict).all(|element| element.is_ok_and(&fits))
}

fn is_signature(value: &[u8]) -> bool {
    let mut task = false;
    json::kind(value) == Some(Kind::Object)
        && json::members(value, Dialect::Strict).all(|member| {
            let Ok((name, value)) = member else {
                return false;
            };
            match name {
                b"task" => {
                    task = json::text(value).is_some_and(|name| !name.is_empty());
                    task
                }
                b"args" => json::kind(value) == Some(Kind::Array),
                b"kwargs" | b"options" => json::kind(value) == Some(Kind::Object),
                b"immutable" => json::kind(value) == Some(Kind::Boolean),
                _ => true,
            }
        })
        && task
}

/// Appends a signature, with the members that Celery's `Signature` expects and the row has left out.
pub(super) fn write_signature(out: &mut Vec<u8>, signature: &[u8]) {
    let given = |name: &[u8]| {
        json::members(signature, Dialect::Strict)
            .any(|member| member.is_ok_and(|(key, _)| key == name))
    };
    let open = signature.strip_suffix(b"}").unwrap_or(signature);
    out.extend_from_slice(open);
    for (name, default) in [
        ("args", "[]"),
        ("kwargs", "{}"),
        ("options", "{}"),
        ("subtask_type", "null"),
        ("immutable", "false"),
    ] {
        if !given(name.as_bytes()) {
            out.extend_from_slice(b",\"");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
            out.extend_from_slice(default.as_bytes());
        }
    }
    out.push(b'}');
}

/// Appends `null`, or the list of the signatures in `value`, which is one or a list.
pub(super) fn write_signatures(out: &mut Vec<u8>, value: Option<&[u8]>) {
    let Some(value) = value else {
        out.extend_from_slice(b"null");
        return;
    };
    out.push(b'[');
    if json::kind(value) == Some(Kind::Array) {
        for (i, signature) in json::elements(value, Dialect::Strict).flatten().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            write_signature(out, signature);
        }
    } else {
        write_signature(out, value);
    }
    out.push(b']');
}
