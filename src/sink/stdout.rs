//! One JSON object a line on standard output.

use serde::Deserialize;

/// `[sink.stdout.<name>]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}
