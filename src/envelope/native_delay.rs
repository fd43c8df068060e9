//! Celery's native delayed delivery (Celery documentation, "Using RabbitMQ", chapter on quorum queues): a task with an eta goes
//! through delay queues that double in time, one for each bit of its delay in whole seconds, so that no worker has to keep
//! it. Workers declare them, when they find that a queue is a quorum queue.

/// Where delayed messages enter: the exchange of the highest bit.
pub const EXCHANGE: &str = "celery_delayed_27";

/// Bits of a delay, one for each level.
const LEVELS: usize = 28;

/// Seconds that a message can be delayed for, at most: eight and a half years.
pub const LONGEST: u32 = (1 << LEVELS) - 1;

/// The routing key of a message that is to be under way for so many seconds, and then goes to those queues that are bound for
/// `key`: the delay's bits, the highest first, and the key.
pub fn routing_key(seconds: u32, key: &str) -> String {
    let key = undelayed(key);
    let mut text = String::with_capacity(2 * LEVELS + key.len());
    for level in (0..LEVELS).rev() {
        text.push(if seconds >> level & 1 == 1 { '1' } else { '0' });
        text.push('.');
    }
    text.push_str(key);
    text
}

/// A key without the bits of an earlier delay: a task that was delayed once may hand its own key on.
fn undelayed(key: &str) -> &str {
    match key.split_at_checked(2 * LEVELS) {
        Some((bits, rest)) if bits.as_bytes().chunks_exact(2).all(is_bit) => rest,
        _ => key,
    }
}

fn is_bit(pair: &[u8]) -> bool {
    matches!(pair, b"0." | b"1.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_written_in_bits() {
        let zeros = |count| "0.".repeat(count);
        for (seconds, key, expected) in [
            (3, "qt", zeros(26) + "1.1.qt"),
            (2, "a.b", zeros(26) + "1.0.a.b"),
            (LONGEST, "qt", "1.".repeat(28) + "qt"),
            (1 << 27, "qt", "1.".to_owned() + &zeros(27) + "qt"),
            (1, &(zeros(26) + "1.1.qt"), zeros(27) + "1.qt"),
            (
                1,
                &(zeros(25) + "1.1.qt"),
                zeros(27) + "1." + &zeros(25) + "1.1.qt",
            ),
            (1, "ó", zeros(27) + "1.ó"),
        ] {
            assert_eq!(routing_key(seconds, key), expected);
        }
    }
}
