//! Throws tasks away; for benches only.

use serde::Deserialize;

/// `[sink.null.<name>]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}
