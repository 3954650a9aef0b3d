//! An issuer of tokens (JWT) for tests, which also makes tokens that no issuer makes.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    hmac,
    rand::SystemRandom,
    rsa::PublicKeyComponents,
    signature::{Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
};
use serde_json::{Value, json};

/// A key for tests alone.
const RSA_KEY: &[u8] = include_bytes!("token_issuer_rsa.der");

/// An issuer with a key for `EdDSA` of its own, and one for RS256 that all such issuers share.
pub struct TokenIssuer {
    name: String,
    ed: Ed25519KeyPair,
    rsa: RsaKeyPair,
}

impl TokenIssuer {
    /// An issuer. Its name begins the names of its keys.
    ///
    /// # Panics
    /// The keys cannot be made.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let pair = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("random bytes");
        let ed = Ed25519KeyPair::from_pkcs8(pair.as_ref()).expect("a key pair");
        Self { name: name.to_owned(), ed, rsa: RsaKeyPair::from_pkcs8(RSA_KEY).expect("a key pair") }
    }

    /// Its keys, a JWK Set.
    #[must_use]
    pub fn keys(&self) -> Value {
        let public = PublicKeyComponents::<Vec<u8>>::from(self.rsa.public());
        let (n, e) = (&public.n, &public.e);
        json!({ "keys": [
            { "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": self.ed_id(),
              "x": encoded(self.ed.public_key().as_ref()) },
            { "kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.rsa_id(), "n": encoded(n), "e": encoded(e) },
        ] })
    }

    /// The public key for RS256 as bytes: what an attacker would use as a shared secret.
    #[must_use]
    pub fn rsa_public_key(&self) -> Vec<u8> {
        self.rsa.public().as_ref().to_vec()
    }

    /// The public key for `EdDSA` as bytes.
    #[must_use]
    pub fn ed_public_key(&self) -> Vec<u8> {
        self.ed.public_key().as_ref().to_vec()
    }

    /// The id of its key for `EdDSA`.
    #[must_use]
    pub fn ed_id(&self) -> String {
        format!("{}-ed", self.name)
    }

    /// The id of its key for RS256.
    #[must_use]
    pub fn rsa_id(&self) -> String {
        format!("{}-rsa", self.name)
    }

    /// A token signed with `EdDSA`.
    #[must_use]
    pub fn ed_token(&self, claims: &Value) -> String {
        self.ed_token_with_head(&json!({ "typ": "JWT", "alg": "EdDSA", "kid": self.ed_id() }), claims)
    }

    /// A token signed with `EdDSA`, whatever its head says.
    #[must_use]
    pub fn ed_token_with_head(&self, head: &Value, claims: &Value) -> String {
        signed(head, claims, |message| self.ed.sign(message).as_ref().to_vec())
    }

    /// A token signed with RS256.
    ///
    /// # Panics
    /// It cannot be signed.
    #[must_use]
    pub fn rsa_token(&self, claims: &Value) -> String {
        let head = json!({ "typ": "JWT", "alg": "RS256", "kid": self.rsa_id() });
        signed(&head, claims, |message| {
            let mut signature = vec![0; self.rsa.public().modulus_len()];
            self.rsa.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).expect("a signature");
            signature
        })
    }
}

/// A token signed with a shared secret, whatever its head says.
#[must_use]
pub fn hs256_token(secret: &[u8], head: &Value, claims: &Value) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    signed(head, claims, |message| hmac::sign(&key, message).as_ref().to_vec())
}

/// A token with any signature.
#[must_use]
pub fn signed(head: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", encoded(head.to_string().as_bytes()), encoded(claims.to_string().as_bytes()));
    let signature = sign(message.as_bytes());
    format!("{message}.{}", encoded(&signature))
}

fn encoded(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
