//! Texts that are JSON and texts that are not, by table, by generator, and by another parser.

use proptest::prelude::*;

use super::*;

fn strict(text: &str) -> Result<(), Defect> {
    let kind = kind(text.as_bytes()).unwrap_or(Kind::Null);
    check(text.as_bytes(), kind, Dialect::Strict)
}

#[test]
fn accepts_what_postgres_accepts() {
    for text in [
        "{}",
        "[]",
        " [ ] ",
        "null",
        "true",
        "false",
        "0",
        "-0",
        "-0.0",
        "1e400",
        "1E+2",
        "\"\"",
        "\"\\u0000\"",
        "\"\\ud800\"",
        "\"\\\\\\\"\\/\\b\\f\\n\\r\\t\"",
        "\"\u{7f} \u{17c}\u{f3}\u{142}\u{107} \u{2603}\"",
        "{\"a\": [1, {\"b\": null}], \"a\": 2}",
        "\n{\r\n\t\"a\" :\n1 , \"b\" : [ ] }\n",
        "[1180591620717411303424, 0.1, {\"x\": {}}]",
    ] {
        assert_eq!(strict(text), Ok(()), "{text:?}");
    }
}

#[test]
fn refuses_what_is_no_json() {
    for text in [
        "",
        " ",
        "{",
        "}",
        "[",
        "]",
        "[1,]",
        "[,1]",
        "[1 2]",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{a: 1}",
        "{1: 2}",
        "[}",
        "{]",
        "[1}",
        "{\"a\":1]",
        "01",
        "+1",
        "1.",
        ".5",
        "1e",
        "-",
        "nul",
        "truex",
        "'a'",
        "\"",
        "\"\\x\"",
        "\"\\u12g4\"",
        "\"\\u12\"",
        "\"\n\"",
        "\"\t\"",
        "[] []",
        "NaN",
        "[Infinity]",
        "-Infinity",
        "\u{feff}[]",
    ] {
        assert!(
            matches!(strict(text), Err(Defect::Syntax { .. })),
            "{text:?}"
        );
    }
}

#[test]
fn python_writes_three_words_more() {
    let check = |text: &str, dialect| check(text.as_bytes(), Kind::Array, dialect);
    assert_eq!(
        check("[NaN, Infinity, -Infinity, -1]", Dialect::Python),
        Ok(())
    );
    assert!(check("[NaN]", Dialect::Strict).is_err());
    assert!(check("[-NaN]", Dialect::Python).is_err());
    assert!(check("[Nan]", Dialect::Python).is_err());
}

#[test]
fn names_the_kind_that_it_is() {
    let found = check(b" {\"a\": 1}", Kind::Array, Dialect::Strict).unwrap_err();
    assert_eq!(found.to_string(), "must be an array, not an object");
    let broken = check(b"[1, x]", Kind::Array, Dialect::Strict).unwrap_err();
    assert_eq!(broken.to_string(), "is not JSON (at byte 4)");
}

#[test]
fn limits_depth_and_digits() {
    let nested = |open: &str, close: &str, depth| open.repeat(depth) + "1" + &close.repeat(depth);
    assert_eq!(strict(&nested("[", "]", MAX_DEPTH)), Ok(()));
    assert_eq!(
        strict(&nested("[", "]", MAX_DEPTH + 1)),
        Err(Defect::TooDeep)
    );
    assert_eq!(strict(&nested("{\"a\":", "}", MAX_DEPTH)), Ok(()));
    assert_eq!(
        strict(&nested("{\"a\":", "}", 10_000)),
        Err(Defect::TooDeep)
    );
    assert_eq!(strict(&nested("[{\"a\":", "}]", MAX_DEPTH / 2)), Ok(()));
    assert_eq!(strict(&"[".repeat(10_000)), Err(Defect::TooDeep));
    // Brackets inside of strings, and beside of each other, are no depth.
    assert_eq!(strict(&format!("[\"{}\"]", "[{".repeat(10_000))), Ok(()));
    assert_eq!(strict(&format!("[{}[]]", "[],{},".repeat(10_000))), Ok(()));
    assert_eq!(strict(&"9".repeat(MAX_INTEGER_DIGITS)), Ok(()));
    assert_eq!(
        strict(&format!("[-{}]", "9".repeat(MAX_INTEGER_DIGITS + 1))),
        Err(Defect::LongInteger)
    );
    assert_eq!(
        strict(&format!("{}.5", "9".repeat(MAX_INTEGER_DIGITS + 1))),
        Ok(())
    );
}

/// Both ways over each text: what the shorter one lets through, the whole pass does too.
#[test]
fn a_text_that_is_vouched_for_has_the_same_limits() {
    let nested = |open: &str, close: &str, depth| open.repeat(depth) + "1" + &close.repeat(depth);
    let nines = |count| "9".repeat(count);
    let (deep, long) = (Err(Defect::TooDeep), Err(Defect::LongInteger));
    let max = MAX_INTEGER_DIGITS;
    let mut cases = vec![
        (" {} ".to_owned(), Ok(())),
        (nested("[", "]", MAX_DEPTH), Ok(())),
        (nested("[", "]", MAX_DEPTH + 1), deep),
        (nested("[{\"a\":", "}]", MAX_DEPTH), deep),
        (format!("[\"{}\"]", "[{".repeat(10_000)), Ok(())),
        (format!("[{}[]]", "[],{},".repeat(10_000)), Ok(())),
        (format!("[{}]", nines(max)), Ok(())),
        (format!("[-{}]", nines(max + 1)), long),
        (format!("[{}.5]", nines(max + 1)), Ok(())),
        (format!("[\"{}\"]", nines(3 * max)), Ok(())),
        (format!("[{}e1, {}]", nines(max + 1), nines(max + 1)), long),
    ];
    for shift in [0, 1, max / 2, max - 1, max, max + 1, 2 * max] {
        let space = " ".repeat(shift);
        cases.push((format!("{space}[1, {}]{space}", nines(max)), Ok(())));
        cases.push((format!("{space}[1, {}]{space}", nines(max + 1)), long));
        cases.push((format!("{space}[{}, 1]", nines(3 * max)), long));
    }
    for (text, expected) in cases {
        let kind = kind(text.as_bytes()).unwrap();
        let shown = text.get(..20).unwrap_or(&text);
        assert_eq!(check_vouched(text.as_bytes(), kind), expected, "{shown}");
        assert_eq!(strict(&text), expected, "{shown}");
    }
    assert_eq!(
        check_vouched(b" {\"a\": 1}", Kind::Array),
        Err(Defect::OtherKind {
            expected: Kind::Array,
            found: Kind::Object
        })
    );
}

#[test]
fn depth_is_that_of_the_deepest_place() {
    for (text, expected) in [
        ("1", 0),
        ("[]", 1),
        ("[[], {\"a\": [1]}, 2]", 3),
        ("{\"[{[\\\"[\": \"]]\", \"\\\\\": [2]}", 2),
    ] {
        assert_eq!(depth(text.as_bytes()), expected, "{text}");
    }
}

#[test]
fn takes_the_outermost_level_apart() {
    let object = b" { \"a\" : [1, {\"x\": 2}] ,\"\\u0062\":\"}\", \"\": null } ";
    let found: Result<Vec<_>, _> = members(object, Dialect::Strict).collect();
    let expected: Vec<(&[u8], &[u8])> = vec![
        (b"a", b"[1, {\"x\": 2}]"),
        (b"\\u0062", b"\"}\""),
        (b"", b"null"),
    ];
    assert_eq!(found.unwrap(), expected);
    let found: Result<Vec<_>, _> = elements(b"[1, [2, 3], {}]", Dialect::Strict).collect();
    assert_eq!(found.unwrap(), [&b"1"[..], b"[2, 3]", b"{}"]);
    assert_eq!(members(b"{}", Dialect::Strict).count(), 0);
    assert_eq!(elements(b" [ ] ", Dialect::Strict).count(), 0);
    for bad in ["[]", "{\"a\":1} x", "{\"a\":1", "{\"a\"", "1", ""] {
        let last = members(bad.as_bytes(), Dialect::Strict).last();
        assert!(matches!(last, Some(Err(_))), "{bad:?}");
    }
}

#[test]
fn cuts_at_characters_and_says_so() {
    let written = |value: &str, max| {
        let mut out = Vec::new();
        write_string_cut(&mut out, value, max);
        serde_json::from_slice::<String>(&out).unwrap()
    };
    assert_eq!(written("12345678", 8), "12345678");
    assert_eq!(written("123456789", 8), "12345...");
    assert_eq!(written(&"ż".repeat(8), 8), "ż".repeat(8));
    assert_eq!(written(&"ż".repeat(9), 8), "żżżżż...");
    assert_eq!(written("\"\"\"\"\"\"\"\"\"", 8), "\"\"\"\"\"...");
}

#[test]
fn one_line_is_the_same_value() {
    let text = "{\n  \"a\": [1,\r\n2],\r  \"b\": \"x\\ny\"\n}";
    let mut line = Vec::new();
    write_on_one_line(&mut line, text.as_bytes());
    assert!(!line.iter().any(|b| matches!(b, b'\n' | b'\r')));
    let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(
        value,
        serde_json::from_str::<serde_json::Value>(text).unwrap()
    );
}

fn value() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::hash_map(any::<String>(), inner, 0..8).prop_map(Value::from_iter),
        ]
    })
}

proptest! {
    #[test]
    fn any_value_passes_and_its_strings_survive(value in value(), text in any::<String>()) {
        for json in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            prop_assert_eq!(strict(&json), Ok(()));
            let kind = kind(json.as_bytes()).unwrap();
            prop_assert_eq!(check_vouched(json.as_bytes(), kind), Ok(()));
        }
        let mut out = Vec::new();
        write_string(&mut out, &text);
        prop_assert_eq!(super::text(&out).unwrap(), text.as_str());
        prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
    }

    /// Mutated JSON: the verdict is serde_json's, which is written by others.
    #[test]
    fn agrees_with_another_parser(value in value(), at in any::<prop::sample::Index>(), byte in "[\\[\\]{}\",:\\\\0-9eE.+\\-tfnu \n]") {
        let mut json: Vec<char> = value.to_string().chars().collect();
        let at = at.index(json.len());
        json[at] = byte.chars().next().unwrap();
        let json: String = json.into_iter().collect();
        let other = serde_json::from_str::<&serde_json::value::RawValue>(&json).is_ok();
        prop_assert_eq!(strict(&json).is_ok(), other, "{}", json);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in any::<Vec<u8>>()) {
        for dialect in [Dialect::Strict, Dialect::Python] {
            let _ = check(&bytes, Kind::Object, dialect);
            let _ = members(&bytes, dialect).count();
            let _ = elements(&bytes, dialect).count();
        }
        let _ = super::text(&bytes);
    }
}
