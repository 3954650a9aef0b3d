//! What an error of Redis means for its connection and for a repeat: the only place that judges errors.
//!
//! redis-rs hands errors of the server out as values inside `Ok`. So what judges a connection must look into the values,
//! and what judges a command looks at the error that was extracted from them.

use redis::{ErrorKind, RedisError, ServerError, Value};

/// What an error means. The gravest one counts when a pipeline has several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ErrorClass {
    /// The server refuses the command, and will refuse it again.
    Refused,
    /// The server is out of memory.
    Full,
    /// It passes without another connection: a long script, a disk that cannot be written, missing replicas.
    Passing,
    /// The server takes no writes, or no commands at all: a new connection may reach the server that does.
    WrongServer,
    /// The connection is broken, or was refused.
    Broken,
}

impl ErrorClass {
    /// The name in metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Full => "full",
            Self::Passing => "passing",
            Self::WrongServer => "wrong_server",
            Self::Broken => "broken",
        }
    }

    /// The class of an error that was extracted from an answer, or that a connection reported.
    pub(crate) fn of(error: &RedisError) -> Self {
        if let Some(errors) = error.clone().into_server_errors() {
            return errors.iter().map(|(_, error)| Self::of_server_error(error)).max().unwrap_or(Self::Refused);
        }
        match error.kind() {
            // The answer has another shape than expected: the connection is good
            ErrorKind::Parse => Self::Refused,
            ErrorKind::Io => Self::Broken,
            _ if error.is_unrecoverable_error() => Self::Broken,
            _ => Self::Refused,
        }
    }

    fn of_server_error(error: &ServerError) -> Self {
        match error.code() {
            // A replica; one without its primary; a server that reads its data; a part of a cluster without a majority,
            // or one that sends its clients elsewhere; a blocked read that ended because a primary became a replica; a
            // password that was set
            "READONLY" | "MASTERDOWN" | "LOADING" | "CLUSTERDOWN" | "MOVED" | "ASK" | "UNBLOCKED" | "NOAUTH" => {
                Self::WrongServer
            }
            // NOSCRIPT is seen only twice in a row: somebody flushes scripts all the time
            "BUSY" | "MISCONF" | "NOREPLICAS" | "TRYAGAIN" | "NOSCRIPT" => Self::Passing,
            "OOM" => Self::Full,
            "ERR" if error.details().is_some_and(|text| text.starts_with("max number of clients")) => Self::Broken,
            _ => Self::Refused,
        }
    }
}

/// Whether a node of a cluster refuses a command only because of its slot: it may be good for other slots.
pub(super) fn is_about_slot(error: &RedisError) -> bool {
    let is_about = |code: Option<&str>, text: Option<&str>| match code {
        Some("MOVED" | "ASK" | "TRYAGAIN") => true,
        Some("CLUSTERDOWN") => text.is_some_and(|text| text.contains("slot")),
        _ => false,
    };
    match error.clone().into_server_errors() {
        Some(errors) => errors.iter().any(|(_, error)| is_about(Some(error.code()), error.details())),
        None => is_about(error.code(), error.detail()),
    }
}

/// Whether the server takes no writes because it cannot save its data to the disk. A pipeline says so for each command, and
/// a transaction only as it is refused.
pub(crate) fn cannot_save(error: &RedisError) -> bool {
    let says_so = |code: Option<&str>, text: &str| code == Some("MISCONF") || text.contains("MISCONF");
    match error.clone().into_server_errors() {
        Some(errors) => errors.iter().any(|(_, error)| says_so(Some(error.code()), error.details().unwrap_or(""))),
        None => says_so(error.code(), &error.to_string()),
    }
}

/// The error of an answer which says that this is the wrong server. An `EXEC` has the answers of its commands inside.
pub(crate) fn wrong_server_error(answers: &[Value]) -> Option<RedisError> {
    let values = answers.iter().flat_map(|answer| match answer {
        Value::Array(inside) => inside.as_slice(),
        other => std::slice::from_ref(other),
    });
    let is_wrong = |error: &&ServerError| ErrorClass::of_server_error(error) == ErrorClass::WrongServer;
    let errors = values.filter_map(|value| if let Value::ServerError(error) = value { Some(error) } else { None });
    errors.filter(is_wrong).map(|error| error.clone().into()).next()
}

/// The error of a connection that could not be opened. Whatever refuses one may pass: a long script, a server that reads
/// its data, too many clients, credentials that are being changed.
pub(crate) fn connect_error(error: RedisError) -> RedisError {
    if error.kind() == ErrorKind::Io {
        return error;
    }
    RedisError::from((ErrorKind::Io, "redis refused the connection", error.to_string()))
}

#[cfg(test)]
mod tests {
    use redis::make_extension_error;

    use super::*;
    use crate::StoreError;

    fn server_error(code: &str, text: &str) -> Value {
        let parsed = redis::parse_redis_value(format!("-{code} {text}\r\n").as_bytes());
        parsed.expect("an error is a value")
    }

    fn class_of(code: &str, text: &str) -> ErrorClass {
        ErrorClass::of(&server_error(code, text).extract_error().expect_err("an error"))
    }

    #[test]
    fn an_error_of_the_server_has_one_class_however_it_arrives() {
        for (code, class) in [
            ("READONLY", ErrorClass::WrongServer),
            ("LOADING", ErrorClass::WrongServer),
            ("MASTERDOWN", ErrorClass::WrongServer),
            ("CLUSTERDOWN", ErrorClass::WrongServer),
            ("UNBLOCKED", ErrorClass::WrongServer),
            ("NOAUTH", ErrorClass::WrongServer),
            ("BUSY", ErrorClass::Passing),
            ("MISCONF", ErrorClass::Passing),
            ("NOREPLICAS", ErrorClass::Passing),
            ("NOSCRIPT", ErrorClass::Passing),
            ("OOM", ErrorClass::Full),
            ("NOPERM", ErrorClass::Refused),
            ("WRONGTYPE", ErrorClass::Refused),
            ("ERR", ErrorClass::Refused),
        ] {
            assert_eq!(class_of(code, "text"), class, "{code}");
            let answers = [Value::Okay, Value::Array(vec![Value::Int(1), server_error(code, "text")])];
            assert_eq!(wrong_server_error(&answers).is_some(), class == ErrorClass::WrongServer, "{code} in EXEC");
            let answers = [Value::Okay, server_error(code, "text")];
            assert_eq!(wrong_server_error(&answers).is_some(), class == ErrorClass::WrongServer, "{code}");
        }
        assert_eq!(class_of("ERR", "max number of clients reached"), ErrorClass::Broken);
    }

    #[test]
    fn what_refuses_a_connection_may_pass_whatever_it_says() {
        for refused in [
            make_extension_error("BUSY".to_owned(), None),
            make_extension_error("WRONGPASS".to_owned(), Some("invalid username-password pair".to_owned())),
            RedisError::from((ErrorKind::AuthenticationFailed, "Password authentication failed")),
            RedisError::from((ErrorKind::Server(redis::ServerErrorKind::ResponseError), "DB index is out of range")),
        ] {
            let text = refused.to_string();
            let error = StoreError::from(connect_error(refused));
            assert!(matches!(&error, StoreError::Unavailable(error) if error.to_string().contains(&text)), "{error}");
        }
    }
}
