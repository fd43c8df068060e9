//! The name that was probably meant.

/// The name in `known` that is nearest to `name`, if one is near enough to be worth a question.
pub(super) fn of<'k>(name: &str, known: &'k [String]) -> Option<&'k str> {
    let name = name.to_lowercase().replace('-', "_");
    known
        .iter()
        .map(|known| (closeness(&name, known), known.as_str()))
        .filter(|(closeness, _)| *closeness >= 0.82)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

fn closeness(name: &str, known: &str) -> f64 {
    match known.starts_with(name) && name.len() >= 3 {
        true => 1.0,
        false => strsim::jaro_winkler(name, &known.to_lowercase()),
    }
}

/// `a, b or c`, each between `quote`s.
pub(super) fn list(names: &[String], quote: &str) -> String {
    let quoted: Vec<String> = names.iter().map(|n| format!("{quote}{n}{quote}")).collect();
    match quoted.split_last() {
        None => String::new(),
        Some((only, [])) => only.clone(),
        Some((last, others)) if quote.is_empty() => format!("{} and {last}", others.join(", ")),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
    }
}
