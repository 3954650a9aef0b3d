//! Who may use the gateway.

use std::path::PathBuf;

use secrecy::SecretString;

use super::{
    declare::section,
    error::invalid_value,
    kinds::{number, optional_path, secret, switch, text_with},
    tokens::TokenTables,
};

section! {
    /// Keys: who may use the gateway.
    pub struct AuthSettings = "auth" {
        /// `keys`: every request needs a key. `none`: no request needs one, on any address. `auto`: as `keys` if
        /// `keys_file`, `first_key` or the keys of an issuer (`auth.jwt`) are set. Otherwise no request needs a key, and the gateway starts only on a
        /// loopback address.
        "mode" => mode: AuthMode = text_with(AUTH_MODE, "auto", |key, text| match text.as_str() {
            "auto" => Ok(AuthMode::Auto),
            "keys" => Ok(AuthMode::Keys),
            "none" => Ok(AuthMode::None),
            other => Err(invalid_value(key, AUTH_MODE, format_args!("{other:?}"))),
        });
        /// Path of a TOML file of keys, without their secrets. `gateway keys create` adds a key to it. It is read again
        /// when it changes and on SIGHUP. Empty: no file.
        "keys_file" => keys_file: Option<PathBuf> = optional_path();
        /// A key, `glk_<id>_<secret>`, that may do everything: to make the first keys with. Empty: none.
        "first_key" => first_key: Option<SecretString> = secret();
        /// Whether `/metrics` needs no key. Otherwise it needs one with `admin:read`.
        "open_metrics" => open_metrics: bool = switch(false);
        /// Whether `/ojs/v1/health` needs no key, and `/health/ready` says why the gateway is not ready. Otherwise the first
        /// needs a key with `admin:read`, and the second tells no reason.
        "open_health" => open_health: bool = switch(false);
        /// How many admin actions the audit keeps (`GET /v1/admin/audit`). The oldest are dropped.
        "audit_max" => audit_max: u64 = number(100..=1_000_000, 10_000);
        ../// The tables below.
        tables: TokenTables;
    }
}

const AUTH_MODE: &str = "auto, keys or none";

/// Whether requests need a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMode {
    /// If the settings name a key, or where to find keys.
    Auto,
    /// Always.
    Keys,
    /// Never.
    None,
}

impl AuthSettings {
    /// Whether every request needs a key.
    #[must_use]
    pub fn is_demanded(&self) -> bool {
        match self.mode {
            AuthMode::Auto => self.keys_file.is_some() || self.first_key.is_some() || self.tables.jwt.is_set(),
            AuthMode::Keys => true,
            AuthMode::None => false,
        }
    }
}
