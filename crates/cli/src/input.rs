//! What commands read: JSON and bytes from an argument, a file or standard input.

use std::io::Read;

use serde_json::value::RawValue;

use crate::failure::{CliError, CliResult};

/// The longest input: a gateway takes less.
const MAX_INPUT_BYTES: u64 = 256 << 20;

/// The bytes that an argument stands for: `-` is standard input, `@file` a file, else itself.
pub(crate) fn bytes(argument: &str) -> CliResult<Vec<u8>> {
    let mut bytes = Vec::new();
    if argument == "-" {
        std::io::stdin().lock().take(MAX_INPUT_BYTES + 1).read_to_end(&mut bytes)?;
    } else if let Some(path) = argument.strip_prefix('@') {
        let file = std::fs::File::open(path);
        let file = file.map_err(|error| CliError::usage(format!("{path} cannot be read: {error}")))?;
        file.take(MAX_INPUT_BYTES + 1).read_to_end(&mut bytes)?;
    } else {
        bytes.extend_from_slice(argument.as_bytes());
    }
    if bytes.len() as u64 > MAX_INPUT_BYTES {
        return Err(CliError::usage(format!("the input has more than {MAX_INPUT_BYTES} bytes")));
    }
    Ok(bytes)
}

/// The JSON that an argument stands for, digit for digit.
pub(crate) fn json(name: &str, argument: &str) -> CliResult<Box<RawValue>> {
    let bytes = bytes(argument)?;
    let parsed = serde_json::from_slice::<Box<RawValue>>(&bytes);
    parsed.map_err(|error| CliError::usage(format!("{name} must be JSON: {error}")))
}

/// The same, which must be an array.
pub(crate) fn json_array(name: &str, argument: &str) -> CliResult<Box<RawValue>> {
    let json = json(name, argument)?;
    if json.get().starts_with('[') {
        return Ok(json);
    }
    Err(CliError::usage(format!("{name} must be a JSON array, such as '[\"ada@example.com\", 7]'")))
}

/// `name=value` as a pair.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("must be name=value, got {text:?}"))?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_digit_for_digit_and_args_are_an_array() {
        let big = "[123456789012345678901234567890, 1.10]";
        assert_eq!(json_array("ARGS", big).expect("JSON").get(), big);
        for wrong in ["{}", "1", "[1", ""] {
            assert!(matches!(json_array("ARGS", wrong), Err(CliError::Usage(_))), "{wrong}");
        }
    }
}
