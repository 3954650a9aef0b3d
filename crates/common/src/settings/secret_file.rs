//! Secrets in files of their own, as Docker and Kubernetes mount them.

use std::{fs::File, io::Read, path::Path};

/// The largest file: a secret is short, and a path that leads to something else must not fill the memory.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// The text of a file without the line ends at its end, which editors and `echo` add. The error says what is wrong with
/// the file, and nothing of what is in it.
pub(super) fn read(path: &Path) -> Result<String, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("it has more than {MAX_FILE_BYTES} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() { Err("it is empty".to_owned()) } else { Ok(text.to_owned()) }
}
