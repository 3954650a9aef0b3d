//! Secrets: where they can come from, and that nothing shows them.

use std::{collections::HashMap, fs};

use secrecy::ExposeSecret;

use super::*;

const CANARY: &str = "canary-7Qx2!";

fn with(variables: &[(&str, &str)]) -> Result<Settings, SettingError> {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Settings::from_sources(None, variables.collect())
}

struct SecretFile(tempfile::TempDir);

impl SecretFile {
    fn new(content: impl AsRef<[u8]>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("secret"), content).expect("a file");
        Self(folder)
    }

    fn path(&self) -> String {
        self.0.path().join("secret").display().to_string()
    }
}

#[test]
fn a_secret_can_be_in_a_file_and_line_ends_behind_it_do_not_count() {
    for (content, expected) in
        [("pw", "pw"), ("pw\n", "pw"), ("pw\r\n\n", "pw"), (" p w \n", " p w "), ("a\nb\n", "a\nb")]
    {
        let file = SecretFile::new(content);
        let settings = with(&[("GALLEY__REDIS__PASSWORD_FILE", &file.path())]).expect("allowed");
        assert_eq!(settings.redis.password.expect("set").expose_secret(), expected, "{content:?}");
    }
    let file = SecretFile::new("redis://u:p@host/7\n");
    let settings = with(&[("GALLEY__REDIS__URL_FILE", &file.path())]).expect("allowed");
    assert_eq!(settings.redis.url.expose(), "redis://u:p@host/7");
    // An empty name is none: compose files pass variables on that are not set
    assert!(with(&[("GALLEY__REDIS__PASSWORD_FILE", "")]).expect("allowed").redis.password.is_none());
}

#[test]
fn a_file_in_the_file_of_settings_counts_too() {
    let secret = SecretFile::new(CANARY);
    let toml = SecretFile::new(format!("[redis]\npassword_file = {:?}\n", secret.path()));
    let settings = Settings::from_sources(Some(&toml.path()), HashMap::new()).expect("allowed");
    assert_eq!(settings.redis.password.expect("set").expose_secret(), CANARY);
}

#[test]
fn a_secret_that_is_set_twice_is_an_error_that_names_both() {
    let file = SecretFile::new("pw");
    let url = ("GALLEY__REDIS__URL", "redis://user:pw@host");
    let password = ("GALLEY__REDIS__PASSWORD", CANARY);
    let sentinels = ("GALLEY__REDIS__URL", "redis+sentinel://user:pw@a,b/name");
    let sentinel_password = ("GALLEY__REDIS__SENTINEL_PASSWORD", CANARY);
    let path = file.path();
    let password_file = ("GALLEY__REDIS__PASSWORD_FILE", path.as_str());
    for (variables, names) in [
        (vec![password, password_file], ["redis.password", "redis.password_file"]),
        (vec![url, ("GALLEY__REDIS__URL_FILE", path.as_str())], ["redis.url", "redis.url_file"]),
        (vec![url, password], ["redis.password", "redis.url"]),
        (vec![url, password_file], ["redis.password", "redis.url"]),
        (vec![url, ("GALLEY__REDIS__USERNAME", "me")], ["redis.username", "redis.url"]),
        (vec![("GALLEY__REDIS__USERNAME", "me")], ["redis.username", "password"]),
        (vec![sentinels, password], ["redis.password", "redis.url"]),
        (vec![sentinel_password], ["redis.sentinel_password", "redis+sentinel://"]),
        (vec![sentinels, ("GALLEY__REDIS__SENTINEL_USERNAME", "me")], ["redis.sentinel_username", "sentinel_password"]),
    ] {
        let error = with(&variables).expect_err("twice").to_string();
        assert!(names.iter().all(|name| error.contains(name)) && !error.contains(CANARY), "{error}");
    }
}

#[test]
fn a_file_that_cannot_be_used_is_an_error_that_names_setting_and_path_and_shows_nothing_of_it() {
    let path = |file: &SecretFile| file.path();
    let long = SecretFile::new(CANARY.repeat(6000));
    let binary = SecretFile::new([b"\xff\xfe".as_slice(), CANARY.as_bytes()].concat());
    let empty = SecretFile::new("\n");
    for (path, problem) in [
        ("/no/such/secret".to_owned(), "No such file"),
        ("/".to_owned(), "directory"),
        (path(&long), "more than 65536 bytes"),
        (path(&binary), "not UTF-8"),
        (path(&empty), "empty"),
    ] {
        let error = with(&[("GALLEY__REDIS__PASSWORD_FILE", &path)]).expect_err(problem);
        let shown = format!("{error} {error:?}");
        assert!(shown.contains("redis.password_file") && shown.contains(&path), "{shown}");
        assert!(shown.contains(problem) && !shown.contains(CANARY), "{shown}");
    }
}

#[test]
fn tls_settings_without_tls_and_halves_of_a_pair_are_errors() {
    let tls = ("GALLEY__REDIS__URL", "rediss://host:6380/5");
    let (ca, cert) = (("GALLEY__REDIS__TLS_CA_FILE", "/ca.pem"), ("GALLEY__REDIS__TLS_CERT_FILE", "/c.pem"));
    let (key, name) = (("GALLEY__REDIS__TLS_KEY_FILE", "/k.pem"), ("GALLEY__REDIS__TLS_SERVER_NAME", "redis.local"));
    assert!(with(&[tls, ca, cert, key, name]).expect("allowed").redis.url.is_tls());
    let tls_sentinels = ("GALLEY__REDIS__URL", "rediss+sentinel://a,b/name/5");
    assert!(with(&[tls_sentinels, ca, cert, key]).expect("allowed").redis.url.is_tls());
    let otlp_ca = ("GALLEY__TELEMETRY__OTLP_CA_FILE", "/ca.pem");
    assert!(with(&[("GALLEY__TELEMETRY__OTLP_ENDPOINT", "https://host:4317"), otlp_ca]).is_ok());
    assert!(with(&[("GALLEY__TELEMETRY__OTLP_LOGS_ENDPOINT", "https://host:4317"), otlp_ca]).is_ok());
    for (variables, named) in [
        (vec![ca], "redis.tls_ca_file"),
        (vec![cert, key], "redis.tls_cert_file"),
        (vec![name], "redis.tls_server_name"),
        (vec![tls, cert], "redis.tls_cert_file"),
        (vec![tls, key], "redis.tls_key_file"),
        (vec![tls, ("GALLEY__REDIS__TLS_SERVER_NAME", "a b")], "redis.tls_server_name"),
        (vec![tls_sentinels, name], "redis.tls_server_name"),
        (vec![("GALLEY__REDIS__URL", "rediss://host/#insecure")], "redis.url"),
        (vec![("GALLEY__TELEMETRY__OTLP_ENDPOINT", "http://host:4317"), otlp_ca], "telemetry.otlp_ca_file"),
    ] {
        let error = with(&variables).expect_err(named).to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn no_error_and_no_debug_form_shows_a_secret() {
    let settings = with(&[("GALLEY__REDIS__PASSWORD", CANARY)]).expect("allowed");
    assert!(!format!("{settings:?} {settings:#?}").contains(CANARY));
    for url in ["redis", "rediss"] {
        let settings = with(&[("GALLEY__REDIS__URL", &format!("{url}://me:{CANARY}@host/5"))]).expect("allowed");
        assert!(!format!("{settings:?}").contains(CANARY));
    }
    for (name, value) in [
        ("GALLEY__REDIS", format!("redis://:{CANARY}@host")),
        ("GALLEY__REDIS__URL", format!("http://:{CANARY}@host")),
        ("GALLEY__REDIS__URL", format!("redis://:{CANARY}@host/x")),
        ("GALLEY__REDIS__URL__X", CANARY.to_owned()),
        ("GALLEY__REDIS__PASWORD", CANARY.to_owned()),
        ("GALLEY__REDIS__PASSWORD__X", CANARY.to_owned()),
        ("GALLEY__REDIS__PASSWORD_FILE__X", CANARY.to_owned()),
    ] {
        let error = with(&[(name, &value)]).expect_err(name);
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(CANARY), "{name}: {shown}");
    }
    for text in [
        format!("[redis]\npassword = {CANARY}\n"),
        format!("[redis]\npassword = \"{CANARY}\nurl = 1"),
        format!("[redis]\npassword = [\"{CANARY}\"]"),
        format!("redis = \"{CANARY}\""),
    ] {
        let file = SecretFile::new(&text);
        let error = Settings::from_sources(Some(&file.path()), HashMap::new()).expect_err(&text);
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(CANARY), "{text}: {shown}");
    }
}
