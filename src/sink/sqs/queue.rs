//! Pure: what a queue may be called, and which kind it is.

/// The longest name, with its ending.
const LONGEST: usize = 80;

/// Names of FIFO queues end so.
const FIFO: &str = ".fifo";

/// Whether it is a FIFO queue, by its name or URL.
pub(super) fn is_fifo(name: &str) -> bool {
    name.ends_with(FIFO)
}

/// Whether it is a URL and not a name.
pub(super) fn is_url(name: &str) -> bool {
    name.starts_with("https://") || name.starts_with("http://")
}

/// Says what is wrong with a name; begins with a verb.
pub(super) fn check(name: &str) -> Result<(), &'static str> {
    let stem = name.strip_suffix(FIFO).unwrap_or(name);
    let is_good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    match stem {
        "" => Err("must not be empty"),
        _ if name.len() > LONGEST => Err("is longer than the 80 characters of a queue's name"),
        stem if !stem.bytes().all(is_good) => Err(
            "is no name for a queue, which has letters, digits, dashes and underscores, and may end in .fifo",
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let long = "x".repeat(LONGEST);
        for good in ["a", "A_b-3", "a.fifo", &long] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let longer = "x".repeat(LONGEST + 1);
        let url = "https://sqs.eu-central-1.amazonaws.com/1/a";
        for bad in ["", ".fifo", "a.b", "a b", "ä", "a\n", url, &longer] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(is_url(url) && !is_url("a") && is_fifo("a.fifo") && !is_fifo(url));
    }
}
