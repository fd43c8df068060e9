//! Pure: what an error of SQS means.

use crate::sink::Cause;

/// What an error is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// This message can never be sent; of several in the request, one.
    Message(Cause),
    /// The queue, our rights to it, or that there is too much: later.
    Later(Cause),
    /// The place as a whole does not take us.
    Away(Cause),
}

/// What the code of a whole request's error means; `status` is that of HTTP.
pub(super) fn of_request(code: Option<&str>, status: u16) -> Verdict {
    let code = code.unwrap_or_default();
    // "AWS.SimpleQueueService.NonExistentQueue", "com.amazonaws.sqs#QueueDoesNotExist".
    let name = code.rsplit(['.', '#']).next().unwrap_or(code);
    let later = |words: &str| Verdict::Later(Cause::new(words.to_owned()));
    match name {
        "QueueDoesNotExist" | "NonExistentQueue" => later("the queue does not exist: create it"),
        "QueueDeletedRecently" => later("the queue was deleted less than a minute ago"),
        "AccessDenied" | "AccessDeniedException" => later(
            "we are not allowed to send to the queue: grant sqs:SendMessage, sqs:GetQueueUrl and sqs:GetQueueAttributes",
        ),
        name if name.starts_with("Kms") => Verdict::Later(Cause::new(format!(
            "the queue's key does not let us in ({name}): grant kms:GenerateDataKey and kms:Decrypt"
        ))),
        "RequestThrottled"
        | "ThrottlingException"
        | "Throttling"
        | "OverLimit"
        | "TooManyRequestsException"
        | "SlowDown" => later("SQS asks for a pause (throttled)"),
        "InvalidMessageContents" => {
            Verdict::Message(Cause::new("SQS refuses a character of the message"))
        }
        "BatchRequestTooLong" => Verdict::Message(Cause::new("SQS finds the message too long")),
        "InvalidParameterValue"
        | "InvalidParameterCombination"
        | "MissingParameter"
        | "InvalidAttributeName"
        | "InvalidAttributeValue"
        | "UnsupportedOperation"
        | "InvalidBatchEntryId"
        | "ValidationException"
        | "ValidationError" => Verdict::Message(Cause::new(format!(
            "SQS does not take the message as it is ({name}); a queue may have a smaller MaximumMessageSize"
        ))),
        "" => Verdict::Away(Cause::new(format!("SQS has answered {status}"))),
        name => Verdict::Away(Cause::new(format!(
            "SQS does not let us in: {}",
            word(name)
        ))),
    }
}

/// What an entry's error means.
pub(super) fn of_entry(code: &str, sender_fault: bool) -> Verdict {
    match of_request(Some(code), 200) {
        // Of a single message, a code that nobody knows says no more than whose fault it is.
        Verdict::Away(_) if sender_fault => Verdict::Message(Cause::new(format!(
            "SQS does not take the message: {}",
            word(code)
        ))),
        Verdict::Away(_) => {
            Verdict::Later(Cause::new(format!("SQS has failed at it: {}", word(code))))
        }
        Verdict::Message(cause) if !sender_fault => Verdict::Later(cause),
        verdict => verdict,
    }
}

/// A code, if it looks like one.
fn word(code: &str) -> &str {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'#' | b'_');
    match code.len() <= 100 && code.bytes().all(is_word) {
        true => code,
        false => "an error without a code",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        for code in [
            "AWS.SimpleQueueService.NonExistentQueue",
            "com.amazonaws.sqs#QueueDoesNotExist",
            "AccessDenied",
            "KmsDisabled",
            "RequestThrottled",
            "ThrottlingException",
        ] {
            assert!(
                matches!(of_request(Some(code), 400), Verdict::Later(_)),
                "{code}"
            );
            assert!(matches!(of_entry(code, true), Verdict::Later(_)), "{code}");
        }
        for code in [
            "InvalidMessageContents",
            "InvalidParameterValue",
            "BatchRequestTooLong",
        ] {
            assert!(
                matches!(of_request(Some(code), 400), Verdict::Message(_)),
                "{code}"
            );
            assert!(
                matches!(of_entry(code, true), Verdict::Message(_)),
                "{code}"
            );
            assert!(matches!(of_entry(code, false), Verdict::Later(_)), "{code}");
        }
        for code in [
            Some("InvalidClientTokenId"),
            Some("SignatureDoesNotMatch"),
            Some("ExpiredToken"),
            Some("ServiceUnavailable"),
            None,
        ] {
            assert!(
                matches!(of_request(code, 503), Verdict::Away(_)),
                "{code:?}"
            );
        }
        assert!(matches!(of_entry("Odd", true), Verdict::Message(_)));
        assert!(matches!(
            of_entry("InternalError", false),
            Verdict::Later(_)
        ));
    }
}
