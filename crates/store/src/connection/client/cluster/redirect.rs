//! What a node answers when it does not have a slot: nothing was executed.

use redis::{RedisError, RedisResult, Value};

use super::slot_map::{NodeAddress, UNKNOWN_NAME};

/// Where a command belongs instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::connection) enum Redirect {
    /// The slot has another node.
    Moved(u16, NodeAddress),
    /// The slot is being moved, and this key is at the other node already, or will be created there.
    Ask(NodeAddress),
    /// The slot is being moved, and the keys of this command are at both nodes.
    TryAgain,
    /// The node does not know who has the slot: nodes learn from each other who took one.
    Unserved,
}

impl Redirect {
    /// From an error of the node at `asked`.
    pub(in crate::connection) fn of_error(error: &RedisError, asked: &NodeAddress) -> Option<Self> {
        match error.clone().into_server_errors() {
            Some(errors) => errors.iter().find_map(|(_, error)| Self::of(error.code(), error.details(), asked)),
            None => Self::of(error.code()?, error.detail(), asked),
        }
    }

    /// From one answer of a node. All answers of a transaction are refused if one is, in `EXEC` at the latest.
    pub(in crate::connection) fn of_answer(answer: &RedisResult<Value>, asked: &NodeAddress) -> Option<Self> {
        match answer {
            Ok(Value::ServerError(error)) => Self::of(error.code(), error.details(), asked),
            Ok(_) => None,
            Err(error) => Self::of_error(error, asked),
        }
    }

    fn of(code: &str, details: Option<&str>, asked: &NodeAddress) -> Option<Self> {
        let target = || {
            let (slot, address) = details?.trim().split_once(' ')?;
            Some((slot.parse::<u16>().ok()?, address.trim()))
        };
        match code {
            "MOVED" | "ASK" => match (target()?, code) {
                // The map says where it is
                ((_, address), "MOVED") if has_unknown_name(address) => Some(Self::Unserved),
                ((_, address), _) if has_unknown_name(address) => Some(Self::TryAgain),
                ((slot, address), "MOVED") => Some(Self::Moved(slot, NodeAddress::parse(address, asked)?)),
                ((_, address), _) => Some(Self::Ask(NodeAddress::parse(address, asked)?)),
            },
            "TRYAGAIN" => Some(Self::TryAgain),
            "CLUSTERDOWN" if details?.contains("slot") => Some(Self::Unserved),
            _ => None,
        }
    }
}

fn has_unknown_name(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, _)| host == UNKNOWN_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(line: &str) -> RedisResult<Value> {
        redis::parse_redis_value(format!("-{line}\r\n").as_bytes())
    }

    #[test]
    fn a_refusal_says_where_the_command_belongs() {
        let asked = NodeAddress { host: "redis-0".to_owned(), port: 6379 };
        let target = NodeAddress { host: "127.0.0.1".to_owned(), port: 7001 };
        for (line, expected) in [
            ("MOVED 3999 127.0.0.1:7001", Some(Redirect::Moved(3999, target.clone()))),
            ("ASK 3999 127.0.0.1:7001", Some(Redirect::Ask(target))),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Some(Redirect::TryAgain)),
            ("MOVED nowhere", None),
            ("MOVED 3999 :7001", Some(Redirect::Moved(3999, NodeAddress { host: "redis-0".to_owned(), port: 7001 }))),
            (
                "MOVED 3999 fd00::1:7001",
                Some(Redirect::Moved(3999, NodeAddress { host: "fd00::1".to_owned(), port: 7001 })),
            ),
            ("MOVED 3999 ?:7001", Some(Redirect::Unserved)),
            ("ASK 3999 ?:7001", Some(Redirect::TryAgain)),
            ("MOVED 3999 a:seven", None),
            ("CLUSTERDOWN Hash slot not served", Some(Redirect::Unserved)),
            ("CLUSTERDOWN The cluster is down", None),
        ] {
            let said = answer(line);
            assert_eq!(Redirect::of_answer(&said, &asked), expected, "{line}");
            let extracted = said.expect("a value").extract_error();
            assert_eq!(Redirect::of_answer(&extracted, &asked), expected, "{line} as an error");
        }
        assert_eq!(Redirect::of_answer(&Ok(Value::Okay), &asked), None);
    }
}
