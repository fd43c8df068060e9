//! Pure: what a topic may be called.

/// Kafka's longest name.
const LONGEST: usize = 249;

/// Says what is wrong with a name; begins with a verb.
pub(super) fn check(name: &str) -> Result<(), &'static str> {
    let is_good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    match name {
        "" => Err("must not be empty"),
        "." | ".." => Err("is no name for a topic"),
        name if name.len() > LONGEST => Err("is longer than the 249 bytes of a topic's name"),
        name if !name.bytes().all(is_good) => {
            Err("is no name for a topic, which has letters, digits, dots, dashes and underscores")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let long = "x".repeat(LONGEST);
        for good in ["a", "shop.paid", "A_b-3", "...", &long] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let longer = "x".repeat(LONGEST + 1);
        for bad in ["", ".", "..", "a b", "a/b", "ä", "a\0b", &longer] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
