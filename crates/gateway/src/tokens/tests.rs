//! Good tokens, and every kind of bad one.

use std::time::Duration;

use common::settings::{Settings, TokenTables};
use model::access::{Access, NamePatterns, Scope};
use serde_json::{Value, json};
use testkit::{TokenIssuer, hs256_token, signed};

use super::*;

const NOW: Millis = 1_700_000_000_000;
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// The settings with these variables below `GALLEY__AUTH__`.
fn settings(variables: &[(&str, &str)]) -> TokenTables {
    let named = variables.iter().map(|(name, value)| (format!("GALLEY__AUTH__{name}"), (*value).to_owned()));
    Settings::from_sources(None, named.collect()).expect("allowed").auth.tables
}

fn tokens(variables: &[(&str, &str)]) -> Tokens {
    Tokens::start(&settings(variables), Duration::from_secs(2), CancellationToken::new()).expect("keys")
}

/// Tokens of an issuer whose keys are in a file.
fn of_issuer(issuer: &TokenIssuer) -> (Tokens, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keys.json");
    std::fs::write(&path, issuer.keys().to_string()).expect("a file");
    (tokens(&[("JWT__JWKS_FILE", path.to_str().expect("text"))]), folder)
}

fn claims() -> Value {
    json!({
        "sub": "ada", "exp": NOW / 1000 + 60, "scopes": ["jobs:read", "channels:subscribe", "openid"],
        "channels": ["orders.*"], "queues": ["mails"], "namespace": "acme",
    })
}

async fn refusal(tokens: &Tokens, token: &str) -> Option<TokenRefusal> {
    tokens.verify(token, NOW).await.err()
}

#[tokio::test]
async fn a_token_of_each_algorithm_gives_the_rights_that_it_claims() {
    let issuer = TokenIssuer::new("a");
    let (from_file, _folder) = of_issuer(&issuer);
    let shared = tokens(&[("JWT__HS256_SECRET", SECRET)]);
    let head = json!({ "alg": "HS256" });
    for (tokens, token) in [
        (&from_file, issuer.ed_token(&claims())),
        (&from_file, issuer.rsa_token(&claims())),
        (&shared, hs256_token(SECRET.as_bytes(), &head, &claims())),
        // Issuers name their secret too; there is one
        (&shared, hs256_token(SECRET.as_bytes(), &json!({ "alg": "HS256", "kid": "x" }), &claims())),
    ] {
        let given = tokens.verify(&token, NOW).await.unwrap_or_else(|why| panic!("{token}: {why}"));
        let access = given.access;
        assert_eq!((access.id.as_str(), access.name.as_str()), ("jwt:ada", "ada"));
        assert_eq!(access.scopes.iter().collect::<Vec<_>>(), [Scope::JobsRead, Scope::ChannelsSubscribe]);
        assert!(access.queues.matches("mails") && !access.queues.matches("mail"));
        assert!(access.channels.matches("orders.x") && !access.channels.matches("mails"));
        assert_eq!(access.namespace.map(|space| space.to_string()).as_deref(), Some("acme"));
        assert_eq!((access.expires_at, given.made_by), (Some(NOW + 60_000), None));
    }
}

#[tokio::test]
async fn a_forged_token_is_refused_whatever_it_says_of_itself() {
    let issuer = TokenIssuer::new("a");
    let (tokens, _folder) = of_issuer(&issuer);
    let other = TokenIssuer::new("a");
    let good = issuer.ed_token(&claims());
    assert_eq!(refusal(&tokens, &good).await, None);
    let (head, rest) = good.split_once('.').expect("three parts");
    let (body, signature) = rest.split_once('.').expect("three parts");
    let swapped = issuer.ed_token(&json!({ "exp": NOW, "scopes": "admin:write" }));
    let other_body = swapped.split('.').nth(1).expect("three parts");
    let of = |head: Value| signed(&head, &claims(), |_| Vec::new());
    let ed_id = issuer.ed_id();
    for (token, why) in [
        (other.ed_token(&claims()), TokenRefusal::Signature),
        (format!("{head}.{other_body}.{signature}"), TokenRefusal::Signature),
        (format!("{head}.{body}.{}", &signature[..signature.len() - 2]), TokenRefusal::Signature),
        // Without a signature, and with none of the words for it
        (of(json!({ "alg": "none" })), TokenRefusal::Malformed),
        (format!("{}x", of(json!({ "alg": "none" }))), TokenRefusal::Algorithm),
        (format!("{}xx", of(json!({ "alg": "nOnE", "kid": ed_id }))), TokenRefusal::Algorithm),
        (format!("{}xx", of(json!({ "kid": ed_id }))), TokenRefusal::Algorithm),
        (format!("{}xx", of(json!({ "alg": "ES256", "kid": ed_id }))), TokenRefusal::Algorithm),
        (format!("{}xx", of(json!({ "alg": "HS512" }))), TokenRefusal::Algorithm),
        // A public key as the shared secret
        (
            hs256_token(&issuer.rsa_public_key(), &json!({ "alg": "HS256", "kid": issuer.rsa_id() }), &claims()),
            TokenRefusal::UnknownKey,
        ),
        (hs256_token(&issuer.ed_public_key(), &json!({ "alg": "HS256" }), &claims()), TokenRefusal::UnknownKey),
        // A good signature of one algorithm under the name of another, and of a key under the name of another
        (
            issuer.ed_token_with_head(&json!({ "alg": "RS256", "kid": issuer.rsa_id() }), &claims()),
            TokenRefusal::Signature,
        ),
        (
            issuer.ed_token_with_head(&json!({ "alg": "EdDSA", "kid": issuer.rsa_id() }), &claims()),
            TokenRefusal::UnknownKey,
        ),
        (issuer.ed_token_with_head(&json!({ "alg": "EdDSA", "kid": "../a" }), &claims()), TokenRefusal::UnknownKey),
        // Extensions that must be understood
        (
            issuer.ed_token_with_head(&json!({ "alg": "EdDSA", "kid": ed_id, "crit": ["x"], "x": 1 }), &claims()),
            TokenRefusal::Malformed,
        ),
        // A key that the token brings itself
        (
            other.ed_token_with_head(
                &json!({ "alg": "EdDSA", "kid": other.ed_id(), "jwk": other.keys()["keys"][0] }),
                &claims(),
            ),
            TokenRefusal::Signature,
        ),
        // Made by a gateway, it says
        (
            issuer.ed_token_with_head(&json!({ "alg": "EdDSA", "typ": TOKEN_KIND }), &claims()),
            TokenRefusal::NotAccepted,
        ),
    ] {
        assert_eq!(refusal(&tokens, &token).await, Some(why), "{token}");
    }
}

#[tokio::test]
async fn a_cut_or_bloated_token_is_refused() {
    let issuer = TokenIssuer::new("a");
    let (tokens, _folder) = of_issuer(&issuer);
    let good = issuer.ed_token(&claims());
    for length in 0..good.len() {
        assert!(refusal(&tokens, &good[..length]).await.is_some(), "{length} bytes");
    }
    for bad in [format!("{good}."), format!("{good}.{good}"), format!(" {good}"), format!("{good}=")] {
        assert_eq!(refusal(&tokens, &bad).await, Some(TokenRefusal::Malformed), "{bad}");
    }
    let long = issuer.ed_token(&json!({ "exp": NOW / 1000 + 60, "x": "y".repeat(8192) }));
    assert_eq!(refusal(&tokens, &long).await, Some(TokenRefusal::Malformed));
    let deep = format!("{}1{}", "[".repeat(3000), "]".repeat(3000));
    let deep = format!("eyJhbGciOiJFZERTQSJ9.{}.eA", base64_of(&deep));
    assert!(refusal(&tokens, &deep).await.is_some());
}

/// The text as a part of a token.
fn base64_of(text: &str) -> String {
    let token = signed(&json!({}), &json!({}), |_| text.as_bytes().to_vec());
    token.rsplit('.').next().expect("a part").to_owned()
}

#[tokio::test]
async fn claims_with_other_shapes_and_bad_patterns_are_refused() {
    let issuer = TokenIssuer::new("a");
    let (tokens, _folder) = of_issuer(&issuer);
    for (name, value) in [
        ("channels", json!(null)),
        ("channels", json!(["a b"])),
        ("channels", json!([1])),
        ("channels", json!(vec!["a"; 33])),
        ("queues", json!(["{x}"])),
        ("namespace", json!("Acme")),
        ("namespace", json!("")),
        ("exp", json!("1700000060")),
        ("sub", json!(7)),
    ] {
        let mut claims = claims();
        claims[name] = value.clone();
        assert!(refusal(&tokens, &issuer.ed_token(&claims)).await.is_some(), "{name} {value}");
    }
    let mut without = claims();
    without["channels"] = json!([]);
    let given = tokens.verify(&issuer.ed_token(&without), NOW).await.expect("good");
    assert!(!given.access.channels.matches("orders.x"), "an empty list allows nothing");
}

#[tokio::test(start_paused = true)]
async fn a_set_of_keys_is_read_again_for_an_unknown_key_and_a_withdrawn_key_ends_what_it_signed() {
    let (old, new) = (TokenIssuer::new("old"), TokenIssuer::new("new"));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keys.json");
    std::fs::write(&path, old.keys().to_string()).expect("a file");
    let file = path.to_str().expect("text");
    let tokens = tokens(&[("JWT__JWKS_FILE", file), ("JWT__UNKNOWN_KEY_PAUSE_MS", "100")]);
    let given = tokens.verify(&old.ed_token(&claims()), NOW).await.expect("good");
    std::fs::write(&path, "{}").expect("a file");
    tokio::time::advance(Duration::from_millis(150)).await;
    assert_eq!(refusal(&tokens, &new.ed_token(&claims())).await, Some(TokenRefusal::UnknownKey));
    assert_eq!(refusal(&tokens, &old.ed_token(&claims())).await, None, "a bad file changes nothing");
    std::fs::write(&path, new.keys().to_string()).expect("a file");
    tokio::time::advance(Duration::from_millis(150)).await;
    assert_eq!(refusal(&tokens, &new.ed_token(&claims())).await, None);
    given.signer.withdrawn().await;
    assert_eq!(refusal(&tokens, &old.ed_token(&claims())).await, Some(TokenRefusal::UnknownKey));
}

#[test]
fn keys_that_prove_nothing_are_refused() {
    let short = json!({ "keys": [{ "kty": "oct", "k": base64_of("short") }] });
    let shared = json!({ "keys": [{ "kty": "oct", "k": base64_of(SECRET) }] });
    let parse = |keys: &Value, origin| IssuerKeySet::parse(keys.to_string().as_bytes(), origin);
    assert!(parse(&short, key_set::KeyOrigin::File).is_err());
    assert!(parse(&shared, key_set::KeyOrigin::File).is_ok());
    assert!(parse(&shared, key_set::KeyOrigin::Url).is_err(), "everybody knows it");
    let issuer = TokenIssuer::new("a").keys();
    for (name, value) in [("use", "enc"), ("alg", "RSA-OAEP"), ("kty", "EC")] {
        let mut keys = json!({ "keys": [issuer["keys"][1]] });
        keys["keys"][0][name] = value.into();
        assert!(parse(&keys, key_set::KeyOrigin::Url).is_err(), "{name} {value}");
    }
    let many = json!({ "keys": vec![&issuer["keys"][0]; 65] });
    for keys in [json!({}), json!([]), json!({ "keys": [] }), json!({ "keys": [7] }), many] {
        assert!(parse(&keys, key_set::KeyOrigin::Url).is_err());
    }
}

fn maker() -> Access {
    Access {
        id: "k1".to_owned(),
        scopes: [Scope::ChannelsSubscribe, Scope::JobsRead].into_iter().collect(),
        channels: NamePatterns::parse(Some(["orders.*"])).expect("patterns"),
        ..Access::everything()
    }
}

#[tokio::test]
async fn a_token_that_a_gateway_made_has_the_rights_that_were_asked_for_and_ends_with_its_maker() {
    let tokens = tokens(&[("TOKENS__SECRET", SECRET), ("TOKENS__MAX_LIFETIME_MS", "60000")]);
    let channels = NamePatterns::parse(Some(["orders.eu"])).expect("patterns");
    let granted = Access { name: "page".to_owned(), channels, ..maker() };
    let made = tokens.make(&granted, &maker(), NOW, None).expect("a token");
    assert_eq!(made.expires_at, NOW + 60_000);
    let given = tokens.verify(&made.token, NOW).await.expect("good");
    assert_eq!((given.access.id.as_str(), given.made_by.as_deref()), ("token:page", Some("k1")));
    assert!(given.access.channels.matches("orders.eu") && !given.access.channels.matches("orders.us"));
    assert_eq!(given.access.scopes, granted.scopes);
    assert_eq!(refusal(&tokens, &made.token).await, None);
    assert_eq!(tokens.verify(&made.token, NOW + 65_000).await.err(), Some(TokenRefusal::Expired));
    let short = Access { expires_at: Some(NOW + 1000), ..maker() };
    assert_eq!(tokens.make(&granted, &short, NOW, None).expect("a token").expires_at, NOW + 1000);
    let wider = Access { channels: NamePatterns::All, ..granted.clone() };
    assert_eq!(tokens.make(&wider, &maker(), NOW, None).err(), Some(MintRefusal::MoreThanMaker));
    let too_long = Some(Duration::from_secs(61));
    assert!(matches!(tokens.make(&granted, &maker(), NOW, too_long), Err(MintRefusal::Lifetime(_))));
    // The secret of the gateways signs nothing for an issuer, and the other way round
    let both =
        self::tokens(&[("TOKENS__SECRET", SECRET), ("JWT__HS256_SECRET", "another secret of at least 32 bytes")]);
    let head = json!({ "alg": "HS256" });
    assert_eq!(refusal(&both, &hs256_token(SECRET.as_bytes(), &head, &claims())).await, Some(TokenRefusal::Signature));
    assert_eq!(refusal(&both, &made.token).await, None);
    let changed =
        self::tokens(&[("TOKENS__SECRET", "a new secret of more than 32 bytes!"), ("TOKENS__PREVIOUS_SECRET", SECRET)]);
    assert_eq!(refusal(&changed, &made.token).await, None, "the secret before it still counts");
}
