//! Floor 3, pure: the rule that a task matches, and the sink that it names.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use crate::units::BackoffRange;

/// `[[route]]`; the first match wins.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// An exact task name, a prefix (`audit.*`), or `*`.
    pub task: Pattern,
    /// Name of the sink.
    pub sink: String,
    /// How failed attempts are repeated.
    #[serde(default)]
    pub retry: Retry,
}

/// How failed attempts are repeated.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// After so many attempts a task is dead.
    pub attempts: NonZeroU32,
    /// The pause between attempts; doubles from the first value to the second, with jitter.
    pub backoff: BackoffRange,
    /// How long a task is tried again in place before it is held.
    #[serde(deserialize_with = "crate::units::duration")]
    pub hold_after: Duration,
    /// What a dead task does to later tasks of its key.
    pub on_dead: OnDead,
}

/// What a dead task does to later tasks of its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDead {
    /// They go on without it.
    #[default]
    Release,
    /// They wait until somebody retries or discards it.
    Block,
}

impl Default for Retry {
    fn default() -> Retry {
        Retry {
            attempts: NonZeroU32::MIN.saturating_add(11),
            backoff: BackoffRange {
                min: Duration::from_secs(1),
                max: Duration::from_secs(600),
            },
            hold_after: Duration::from_secs(5),
            on_dead: OnDead::default(),
        }
    }
}

/// Which task names a route is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pattern {
    /// This name.
    Exact(String),
    /// `audit.*` is kept as `audit.`: every name that begins so and goes on. `audit` alone does not match, nor does
    /// `auditor`.
    Prefix(String),
    /// `*`: every name.
    All,
}

impl Pattern {
    /// Whether a route with this pattern is for `task`.
    pub fn matches(&self, task: &str) -> bool {
        match self {
            Pattern::Exact(name) => name == task,
            Pattern::Prefix(prefix) => begins(task, prefix),
            Pattern::All => true,
        }
    }

    /// Whether this matches every name that `other` matches.
    fn covers(&self, other: &Pattern) -> bool {
        match (self, other) {
            (Pattern::All, _) => true,
            (_, Pattern::All) | (Pattern::Exact(_), Pattern::Prefix(_)) => false,
            (_, Pattern::Exact(name)) => self.matches(name),
            (Pattern::Prefix(prefix), Pattern::Prefix(longer)) => longer.starts_with(prefix),
        }
    }
}

fn begins(task: &str, prefix: &str) -> bool {
    task.len() > prefix.len() && task.starts_with(prefix)
}

/// The text is no pattern.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{0:?} is not a pattern; write a task's whole name, or a prefix such as \"audit.*\", or \"*\" for every task"
)]
pub struct ParsePatternError(String);

impl FromStr for Pattern {
    type Err = ParsePatternError;

    fn from_str(text: &str) -> Result<Pattern, ParsePatternError> {
        if text == "*" {
            return Ok(Pattern::All);
        }
        let (name, is_prefix) = match text.strip_suffix(".*") {
            Some(name) => (name, true),
            None => (text, false),
        };
        if name.is_empty() || name.contains('*') {
            return Err(ParsePatternError(text.to_owned()));
        }
        Ok(match is_prefix {
            true => Pattern::Prefix(format!("{name}.")),
            false => Pattern::Exact(name.to_owned()),
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Exact(name) => f.write_str(name),
            Pattern::Prefix(prefix) => write!(f, "{prefix}*"),
            Pattern::All => f.write_str("*"),
        }
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Pattern, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Finds the route of a task: one hash of its name, and a comparison for each prefix route that stands before the
/// match.
#[derive(Clone, Debug, Default)]
pub struct Router {
    exact: HashMap<Box<str>, usize>,
    prefixes: Vec<(Box<str>, usize)>,
    all: Option<usize>,
}

impl Router {
    /// A router over the routes of the configuration, in their order.
    pub fn new(routes: &[Config]) -> Router {
        let mut router = Router::default();
        for (index, route) in routes.iter().enumerate() {
            match &route.task {
                Pattern::Exact(name) => {
                    router.exact.entry(name.as_str().into()).or_insert(index);
                }
                Pattern::Prefix(prefix) => router.prefixes.push((prefix.as_str().into(), index)),
                Pattern::All => {
                    router.all = Some(index);
                    break;
                }
            }
        }
        router
    }

    /// The index, in the configuration's order, of the first route that matches; `None` when no route is for this task.
    pub fn route(&self, task: &str) -> Option<usize> {
        let exact = match self.exact.is_empty() {
            true => None,
            false => self.exact.get(task).copied(),
        };
        let other = exact.or(self.all);
        let before = other.unwrap_or(usize::MAX);
        self.prefixes
            .iter()
            .take_while(|(_, index)| *index < before)
            .find(|(prefix, _)| begins(task, prefix))
            .map(|(_, index)| *index)
            .or(other)
    }
}

/// Routes that no task can reach, each with the earlier route that takes all of its tasks.
pub fn unreachable(routes: &[Config]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (index, route) in routes.iter().enumerate() {
        let earlier = routes.iter().take(index);
        let taken = earlier
            .enumerate()
            .find(|(_, e)| e.task.covers(&route.task));
        found.extend(taken.map(|(by, _)| (index, by)));
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn routes(patterns: &[&str]) -> Vec<Config> {
        let route = |pattern: &&str| Config {
            task: pattern.parse().expect("a pattern"),
            sink: String::new(),
            retry: Retry::default(),
        };
        patterns.iter().map(route).collect()
    }

    #[test]
    fn the_first_match_wins() {
        let all: &[&str] = &["a.b", "a.*", "a.c", "x", "*", "x.*"];
        for (patterns, task, expected) in [
            (all, "a.b", Some(0)),
            (all, "a.c", Some(1)),
            (all, "a.b.c", Some(1)),
            (all, "a", Some(4)),
            (all, "a.", Some(4)),
            (all, "ab", Some(4)),
            (all, "x", Some(3)),
            (all, "x.y", Some(4)),
            (all, "", Some(4)),
            (&["a.*", "a.b"], "a.b", Some(0)),
            (&["a.b.*", "a.*"], "a.b.c", Some(0)),
            (&["a.b.*", "a.*"], "a.c", Some(1)),
            (&["a.b.*", "a.*"], "b", None),
            (&["a", "a"], "a", Some(0)),
            (&["*", "a"], "a", Some(0)),
            (&[], "a", None),
        ] {
            let router = Router::new(&routes(patterns));
            assert_eq!(router.route(task), expected, "{patterns:?} {task:?}");
        }
    }

    #[test]
    fn reads_patterns() {
        for (text, expected) in [
            ("*", Pattern::All),
            ("a.*", Pattern::Prefix("a.".to_owned())),
            ("a.b.*", Pattern::Prefix("a.b.".to_owned())),
            ("a", Pattern::Exact("a".to_owned())),
            ("a b", Pattern::Exact("a b".to_owned())),
        ] {
            assert_eq!(text.parse(), Ok(expected.clone()));
            assert_eq!(expected.to_string(), text);
        }
        for bad in ["", ".*", "**", "a*", "*.a", "a.*.b", "a.*.*", "*.*"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn finds_what_cannot_be_reached() {
        for (patterns, expected) in [
            (&["a", "*"][..], vec![]),
            (&["*", "a", "*"], vec![(1, 0), (2, 0)]),
            (&["a.*", "a.b.*", "a.b", "a"], vec![(1, 0), (2, 0)]),
            (&["a", "b", "a"], vec![(2, 0)]),
            (&["a.b.*", "a.*"], vec![]),
        ] {
            assert_eq!(unreachable(&routes(patterns)), expected, "{patterns:?}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_search(
            patterns in prop::collection::vec("([ab](\\.[ab]){0,2}(\\.\\*)?)|\\*", 0..8),
            task in "[ab](\\.[ab]?){0,3}",
        ) {
            let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
            let routes = routes(&patterns);
            let plain = routes.iter().position(|route| route.task.matches(&task));
            prop_assert_eq!(Router::new(&routes).route(&task), plain);
            for (index, _) in unreachable(&routes) {
                prop_assert_ne!(plain, Some(index));
            }
        }
    }
}
