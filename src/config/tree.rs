//! The parsed document with its places in the text: finding, removing and walking.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// Where something stands: keys from the top; an element of an array is `[0]`, `[1]`, ...
pub(super) type Path = Vec<String>;

/// Sees a value: its path, its key's place (none in an array), and itself.
type Visit<'v> = dyn FnMut(&[String], Option<&Range<usize>>, &Spanned<DeValue<'_>>) + 'v;

/// Changes a string; sees its path and its place.
type Change<'c, 'i> = dyn FnMut(&[String], Range<usize>, &mut DeString<'i>) + 'c;

/// The value at `path`.
pub(super) fn value<'t, 'i>(
    table: &'t DeTable<'i>,
    path: &[impl AsRef<str>],
) -> Option<&'t Spanned<DeValue<'i>>> {
    let (first, rest) = path.split_first()?;
    let mut found = table.get(first.as_ref())?;
    for step in rest {
        found = match found.get_ref() {
            DeValue::Table(table) => table.get(step.as_ref())?,
            DeValue::Array(array) => array.get(index(step.as_ref())?)?,
            _ => return None,
        };
    }
    Some(found)
}

/// The place of the key at the end of `path`; for an element of an array the element's own.
pub(super) fn key_place(table: &DeTable<'_>, path: &[impl AsRef<str>]) -> Option<Range<usize>> {
    let (last, parents) = path.split_last()?;
    let in_table = |table: &DeTable<'_>| {
        let (key, _) = table.get_key_value(last.as_ref())?;
        Some(key.span())
    };
    if parents.is_empty() {
        return in_table(table);
    }
    match value(table, parents)?.get_ref() {
        DeValue::Table(table) => in_table(table),
        _ => value(table, path).map(Spanned::span),
    }
}

/// Takes out what stands at `path`.
pub(super) fn remove(table: &mut DeTable<'_>, path: &[impl AsRef<str>]) {
    match path {
        [] => {}
        [key] => {
            table.remove(key.as_ref());
        }
        [key, rest @ ..] => {
            if let Some(value) = table.get_mut(key.as_ref()) {
                remove_from_value(value.get_mut(), rest);
            }
        }
    }
}

fn remove_from_value(value: &mut DeValue<'_>, path: &[impl AsRef<str>]) {
    match value {
        DeValue::Table(table) => remove(table, path),
        DeValue::Array(array) => {
            let Some((step, rest)) = path.split_first() else {
                return;
            };
            let Some(at) = index(step.as_ref()).filter(|at| *at < array.len()) else {
                return;
            };
            if rest.is_empty() {
                let others = array.iter().enumerate().filter(|(n, _)| *n != at);
                *array = others.map(|(_, element)| element.clone()).collect();
            } else if let Some(element) = array.get_mut(at) {
                remove_from_value(element.get_mut(), rest);
            }
        }
        _ => {}
    }
}

/// The deepest key or value that stands exactly at `place`.
pub(super) fn find(table: &DeTable<'_>, place: &Range<usize>) -> Option<Path> {
    let mut path = Vec::new();
    let mut found = None;
    walk(table, &mut path, &mut |path, key, value| {
        if key == Some(place) || value.span() == *place {
            found = Some(path.to_vec());
        }
    });
    found
}

/// Shows every value to `visit`, parents first.
pub(super) fn walk(table: &DeTable<'_>, path: &mut Path, visit: &mut Visit<'_>) {
    for (key, value) in table {
        path.push(key.get_ref().to_string());
        visit(path, Some(&key.span()), value);
        walk_value(value.get_ref(), path, visit);
        path.pop();
    }
}

fn walk_value(value: &DeValue<'_>, path: &mut Path, visit: &mut Visit<'_>) {
    match value {
        DeValue::Table(table) => walk(table, path, visit),
        DeValue::Array(array) => {
            for (index, element) in array.iter().enumerate() {
                path.push(format!("[{index}]"));
                visit(path, None, element);
                walk_value(element.get_ref(), path, visit);
                path.pop();
            }
        }
        _ => {}
    }
}

/// Hands every string to `change`.
pub(super) fn walk_strings<'i>(
    table: &mut DeTable<'i>,
    path: &mut Path,
    change: &mut Change<'_, 'i>,
) {
    for (key, value) in table.iter_mut() {
        path.push(key.get_ref().to_string());
        walk_strings_of_value(value, path, change);
        path.pop();
    }
}

fn walk_strings_of_value<'i>(
    value: &mut Spanned<DeValue<'i>>,
    path: &mut Path,
    change: &mut Change<'_, 'i>,
) {
    let place = value.span();
    match value.get_mut() {
        DeValue::String(text) => change(path, place, text),
        DeValue::Table(table) => walk_strings(table, path, change),
        DeValue::Array(array) => {
            for (index, element) in array.iter_mut().enumerate() {
                path.push(format!("[{index}]"));
                walk_strings_of_value(element, path, change);
                path.pop();
            }
        }
        _ => {}
    }
}

/// The places of all strings in what stands at `path`.
pub(super) fn strings_under(table: &DeTable<'_>, path: &[String]) -> Vec<Range<usize>> {
    let mut places = Vec::new();
    walk(table, &mut Vec::new(), &mut |at, _, value| {
        if at.starts_with(path) && value.get_ref().is_str() {
            places.push(value.span());
        }
    });
    places
}

/// A path as the operator writes it: `gate.timeout`, `sink.celery.workers.queue`, `route.retry.backoff`.
pub(super) fn dotted(path: &[impl AsRef<str>]) -> String {
    let keys: Vec<&str> = path.iter().map(AsRef::as_ref).filter(is_key).collect();
    keys.join(".")
}

/// The section that a path names, as the operator writes it: `[gate]`, `[[route]]`.
pub(super) fn section(path: &[String]) -> String {
    let keys = dotted(path);
    match path {
        [] => "the top level".to_owned(),
        [route, _] if route == "route" => "[[route]]".to_owned(),
        [route, _, ..] if route == "route" => format!("`{keys}`"),
        _ => format!("[{keys}]"),
    }
}

/// Whether a path ends at an element of an array.
pub(super) fn is_element(path: &[String]) -> bool {
    path.last().is_some_and(|step| index(step).is_some())
}

fn is_key(step: &&str) -> bool {
    index(step).is_none()
}

fn index(step: &str) -> Option<usize> {
    let digits = step.strip_prefix('[')?.strip_suffix(']')?;
    digits.parse().ok()
}

/// The number of the line, from 1, in which `offset` stands.
pub(super) fn line_number(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    1 + memchr::memchr_iter(b'\n', before).count()
}
