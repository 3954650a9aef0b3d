//! Scripts are called by their hash, which a node knows once it was sent the text. Nobody can send it to the right node before:
//! where a call runs is known only from the answer, as slots move and replicas take over, and these were told nothing. So the text
//! is kept here, and goes to the very node that lacks it, on one connection with the call.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use redis::{Arg, Cmd, ErrorKind, RedisResult, Script, ServerErrorKind, Value};

/// The texts by their hashes. There are as many as the code has.
#[derive(Default)]
pub(super) struct Scripts(RwLock<HashMap<String, Arc<str>>>);

impl Scripts {
    /// Keeps the text of a `SCRIPT LOAD`, and answers as a node would. Other commands have no answer here.
    pub(super) fn keep(&self, command: &Cmd) -> Option<Value> {
        let mut words = command.args_iter();
        let (Arg::Simple(b"SCRIPT"), Arg::Simple(b"LOAD")) = (words.next()?, words.next()?) else { return None };
        let Arg::Simple(text) = words.next()? else { return None };
        let text = std::str::from_utf8(text).ok()?;
        let hash = Script::new(text).get_hash().to_owned();
        let answer = Value::BulkString(hash.clone().into_bytes());
        self.0.write().unwrap_or_else(PoisonError::into_inner).entry(hash).or_insert_with(|| text.into());
        Some(answer)
    }

    /// The text of the script that a command calls, if a node has answered that it does not know it.
    pub(super) fn lacking_at_node(&self, command: &Cmd, answer: &RedisResult<Value>) -> Option<Arc<str>> {
        let is_lacking = match answer {
            Ok(Value::ServerError(error)) => error.code() == "NOSCRIPT",
            Ok(_) => false,
            Err(error) => error.kind() == ErrorKind::Server(ServerErrorKind::NoScript),
        };
        if !is_lacking {
            return None;
        }
        let mut words = command.args_iter();
        let (Arg::Simple(b"EVALSHA"), Arg::Simple(hash)) = (words.next()?, words.next()?) else { return None };
        let hash = std::str::from_utf8(hash).ok()?;
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(hash).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_script_is_found_when_a_node_lacks_it() {
        let (scripts, script) = (Scripts::default(), Script::new("return 1"));
        let mut call = redis::cmd("EVALSHA");
        call.arg(script.get_hash()).arg(0);
        let lacking = redis::parse_redis_value(b"-NOSCRIPT No matching script\r\n");
        assert_eq!(scripts.lacking_at_node(&call, &lacking), None, "nobody has told the text");
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg("return 1");
        assert_eq!(scripts.keep(&load), Some(Value::BulkString(script.get_hash().into())));
        let of_error = lacking.clone().expect("a value").extract_error();
        for answer in [&lacking, &of_error] {
            assert_eq!(scripts.lacking_at_node(&call, answer).as_deref(), Some("return 1"));
        }
        for other in [Ok(Value::Int(1)), redis::parse_redis_value(b"-ERR no\r\n")] {
            assert_eq!(scripts.lacking_at_node(&call, &other), None);
        }
        assert_eq!(scripts.lacking_at_node(redis::cmd("GET").arg("a"), &lacking), None);
        assert_eq!(scripts.keep(&call), None);
    }
}
