//! A row with args and kwargs: the body's three elements, and the nineteen headers.

use super::Unfit;
use super::celery::{
    COMMITTED_AT_HEADER, LSN_HEADER, REPR_CHARS, inside, json_column, reserved, write_time,
};
use super::json::{self, Dialect, Kind};
use super::options::{Options, write_signature, write_signatures};
use crate::outbox::{Field, Task};
use crate::pg::Timestamp;

/// Headers that are not the application's to set: Celery's own, ours, and those that kombu acts upon.
const RESERVED: [&str; 23] = [
    "lang",
    "task",
    "id",
    "shadow",
    "eta",
    "expires",
    "group",
    "group_index",
    "retries",
    "timelimit",
    "root_id",
    "parent_id",
    "argsrepr",
    "kwargsrepr",
    "origin",
    "ignore_result",
    "replaced_task_nesting",
    "stamped_headers",
    "stamps",
    LSN_HEADER,
    COMMITTED_AT_HEADER,
    "compression",
    "redelivered",
];

/// Args, kwargs and options of a call.
pub(super) struct Call<'t> {
    args: &'t [u8],
    kwargs: &'t [u8],
    headers: Option<&'t [u8]>,
    eta: Option<Timestamp>,
    expires: Option<Timestamp>,
    options: Options<'t>,
}

impl<'t> Call<'t> {
    pub(super) fn new(
        task: &'t Task,
        options: Options<'t>,
        eta: Option<Timestamp>,
        expires: Option<Timestamp>,
    ) -> Result<Call<'t>, Unfit> {
        check_stamps(&options)?;
        Ok(Call {
            args: json_column(task, Field::Args, Kind::Array)?.unwrap_or(b"[]"),
            kwargs: json_column(task, Field::Kwargs, Kind::Object)?.unwrap_or(b"{}"),
            headers: match json_column(task, Field::Headers, Kind::Object)? {
                Some(headers) => custom_headers(headers)?,
                None => None,
            },
            eta,
            expires,
            options,
        })
    }

    pub(super) fn write_body(&self, out: &mut Vec<u8>) {
        let options = &self.options;
        out.push(b'[');
        out.extend_from_slice(self.args);
        out.push(b',');
        out.extend_from_slice(self.kwargs);
        out.extend_from_slice(b",{\"callbacks\":");
        write_signatures(out, options.link);
        out.extend_from_slice(b",\"errbacks\":");
        write_signatures(out, options.link_error);
        out.extend_from_slice(b",\"chain\":");
        write_signatures(out, options.chain);
        out.extend_from_slice(b",\"chord\":");
        match options.chord {
            Some(chord) => write_signature(out, chord),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b"}]");
    }

    pub(super) fn write_headers(&self, task: &Task, origin: &str, out: &mut Vec<u8>) {
        let options = &self.options;
        let splice = |out: &mut Vec<u8>, name: &str, value: Option<&[u8]>, default: &str| {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(value.unwrap_or(default.as_bytes()));
        };
        out.extend_from_slice(b"\"lang\":\"py\",\"task\":");
        json::write_string(out, task.name());
        out.extend_from_slice(b",\"id\":");
        json::write_string(out, task.id());
        splice(out, ",\"shadow\":", options.shadow, "null");
        out.extend_from_slice(b",\"eta\":");
        write_time(out, self.eta);
        out.extend_from_slice(b",\"expires\":");
        write_time(out, self.expires);
        splice(out, ",\"group\":", options.group, "null");
        splice(out, ",\"group_index\":", options.group_index, "null");
        splice(out, ",\"retries\":", options.retries, "0");
        splice(out, ",\"timelimit\":[", options.time_limit, "null");
        splice(out, ",", options.soft_time_limit, "null");
        out.extend_from_slice(b"],\"root_id\":");
        match options.root_id {
            Some(root) => out.extend_from_slice(root),
            None => json::write_string(out, task.id()),
        }
        splice(out, ",\"parent_id\":", options.parent_id, "null");
        out.extend_from_slice(b",\"argsrepr\":");
        write_repr(out, options.argsrepr, self.args);
        out.extend_from_slice(b",\"kwargsrepr\":");
        write_repr(out, options.kwargsrepr, self.kwargs);
        out.extend_from_slice(b",\"origin\":");
        json::write_string(out, origin);
        splice(out, ",\"ignore_result\":", options.ignore_result, "false");
        splice(
            out,
            ",\"replaced_task_nesting\":",
            options.replaced_task_nesting,
            "0",
        );
        out.extend_from_slice(b",\"stamped_headers\":");
        write_stamped(out, options);
        splice(out, ",\"stamps\":", options.stamps, "{}");
        if let Some(headers) = self.headers {
            out.push(b',');
            out.extend_from_slice(headers);
        }
    }
}

fn custom_headers(headers: &[u8]) -> Result<Option<&[u8]>, Unfit> {
    for (name, _) in json::members(headers, Dialect::Strict).flatten() {
        if is_reserved(name) {
            return Err(reserved(name));
        }
    }
    Ok(inside(headers))
}

/// Keys are compared as they are written; one with escapes is unfolded first.
fn is_reserved(name: &[u8]) -> bool {
    let unfolded = name.contains(&b'\\').then(|| {
        let quoted = [b"\"", name, b"\""].concat();
        json::text(&quoted).map(|text| text.into_owned().into_bytes())
    });
    let name = match &unfolded {
        Some(Some(unfolded)) => unfolded.as_slice(),
        _ => name,
    };
    RESERVED.iter().any(|reserved| reserved.as_bytes() == name)
}

fn check_stamps(options: &Options<'_>) -> Result<(), Unfit> {
    let Some(listed) = options.stamped_headers else {
        return Ok(());
    };
    let names = |object| {
        json::members(object, Dialect::Strict)
            .flatten()
            .map(|(name, _)| name)
    };
    let stamps = options.stamps.unwrap_or(b"{}");
    let all = json::elements(listed, Dialect::Strict)
        .flatten()
        .all(|listed| names(stamps).any(|name| listed.get(1..listed.len() - 1) == Some(name)));
    if all {
        Ok(())
    } else {
        Err(Unfit::new(
            "options.stamped_headers names a stamp that is not in options.stamps",
        ))
    }
}

fn write_stamped(out: &mut Vec<u8>, options: &Options<'_>) {
    match (options.stamped_headers, options.stamps.and_then(inside)) {
        (Some(listed), _) => out.extend_from_slice(listed),
        (None, None) => out.extend_from_slice(b"null"),
        (None, Some(_)) => {
            let stamps = options.stamps.unwrap_or_default();
            for (i, (name, _)) in json::members(stamps, Dialect::Strict).flatten().enumerate() {
                out.extend_from_slice(if i == 0 { b"[\"" } else { b",\"" });
                out.extend_from_slice(name);
                out.push(b'"');
            }
            out.push(b']');
        }
    }
}

fn write_repr(out: &mut Vec<u8>, given: Option<&[u8]>, json: &[u8]) {
    match given {
        Some(given) => out.extend_from_slice(given),
        None => json::write_string_cut(
            out,
            std::str::from_utf8(json).unwrap_or_default(),
            REPR_CHARS,
        ),
    }
}
